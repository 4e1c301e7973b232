"""The literature's cases: what each claims holds, and the table says so where one does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import launched

ROOT = Path(__file__).resolve().parent.parent
CASES = sorted((ROOT / "experiments/cases").glob("case_*.py"))
TIMED = ("case_1_distributed_trainer", "case_3_cnn_and_task_graph")
"""That claim something of seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.alone] * (case.stem in TIMED)) for case in CASES],
    ids=lambda case: case.stem,
)
def test_what_a_case_claims_holds(case):
    for package in ("torch", "sklearn", "skimage"):
        pytest.importorskip(package)
    for _ in range(3 if case.stem in TIMED else 1):  # a machine has slow moments
        done = subprocess.run([sys.executable, case], capture_output=True, text=True, timeout=3000)
        if done.returncode == 0:
            break
    claims = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert claims
    assert all(each["holds"] for each in claims)


def test_each_case_has_a_heading_on_the_page():
    page = (ROOT / "docs/cases.md").read_text().lower()
    for case in CASES:
        _, number, name = case.stem.split("_", 2)
        assert f"\n## {number}. {name.replace('_', ' ')}\n" in page, case.stem


def test_a_table_of_cases_tells_what_holds_what_does_not_and_which_has_ended(tmp_path):
    programs = {
        "case_1_true": 'yield Claim("bytes", 1234, equal=1234)',
        "case_2_false": 'yield Claim("accuracy", float("nan"), at_least=0.95, at_most=1.0)',
        "case_3_broken": 'yield Claim("one", 1, equal=1); isthmus("evaluate", folder / "none")',
    }
    for name, body in programs.items():
        lines = [
            f"import sys; sys.path.insert(0, {str(ROOT / 'experiments/cases')!r})",
            "import claims as frame; from claims import *",
            f"from pathlib import Path; frame.RUNS = Path({str(tmp_path)!r}) / 'runs'",
            f"def claims(folder): {body}",
            "tell(claims)",
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
    command = [sys.executable, ROOT / "experiments/cases", *sorted(tmp_path.glob("case_*.py"))]
    done = launched(command)
    assert done.returncode == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    rows = [row[:3] for row in rows if row]
    assert rows == [
        ["1 true", "bytes", "1,234 (= 1,234)"],
        ["2 false", "accuracy", "FAILS: nan (>= 0.95 and <= 1)"],
        ["3 broken", "one", "1 (= 1)"],
        ["", "ends with 1, as told above", "FAILS"],
    ]
    assert "none" in done.stderr
    command[2:] = command[2:3]
    assert launched(command).returncode == 0
