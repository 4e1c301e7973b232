"""The loops of the pages about PyTorch: each page's change is applied to its loop, which then runs."""

import subprocess
import sys

import pytest
from patience import launched
from test_docs import ROOT, blocks

from isthmus.jobs.launch import rank_command, rank_environment

pytest.importorskip("torch")


def changed(page, folder):
    """Write the loop of a page to `folder`, apply the page's change, and return the file."""
    for block in blocks(ROOT / "docs" / page):
        if block.word == "loop.py":
            (folder / block.word).write_text(block.text)
        elif block.language == "diff":
            subprocess.run(["git", "apply", "-"], input=block.text, text=True, check=True, cwd=folder)
    return folder / "loop.py"


def run(*arguments):
    environment = rank_environment(OMP_NUM_THREADS="1")
    return launched(rank_command(4, *arguments), cwd=ROOT, env=environment)


@pytest.mark.slow
def test_each_page_ends_with_the_same_loop_and_it_learns(tmp_path):
    pages = ("bring_your_model.md", "from_ddp.md", "from_horovod.md")
    loops = []
    for page in pages:
        folder = tmp_path / page
        folder.mkdir()
        loops.append(changed(page, folder))
    assert len({loop.read_text() for loop in loops}) == 1
    done = run(str(loops[0]))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.95


@pytest.mark.slow
def test_plain_loops_of_the_pages_run(tmp_path):
    (plain,) = (block for block in blocks(ROOT / "docs/bring_your_model.md") if block.word == "loop.py")
    (tmp_path / "loop.py").write_text(plain.text)
    done = subprocess.run([sys.executable, tmp_path / "loop.py"], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.95


@pytest.mark.slow
def test_the_loop_on_real_pictures_learns():
    two_epochs = "import own_loop; own_loop.EPOCHS = 2; own_loop.main()"
    done = run("-c", f"import sys; sys.path.insert(0, 'experiments'); {two_epochs}")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert float(last[3].rstrip(",")) > 0.75, done.stdout
