"""A run's record tells when it was changed: which line, or that its end is missing."""

import json
import shutil

import numpy as np
import pytest
from test_rebalancing import lab

from isthmus.errors import RecordError
from isthmus.folders.chain import read_chain
from isthmus.folders.record import RunFolder
from isthmus.folders.statements import state, stated, verify_record
from isthmus.jobs.train import train
from isthmus.security.key_files import make_keys


@pytest.fixture
def run(tmp_path):
    """A run's folder of 12 lines, which two sites have signed twice, and their keys."""
    folder, keys = tmp_path / "run", tmp_path / "keys"
    folder.mkdir()
    for site in ("cloud", "edge"):
        make_keys(keys, site)
    record = RunFolder(folder, chained=True)
    for step in range(12):
        record.note("replicas", step=step, hash=f"{step:064x}", loss=np.float32(0.5))
        if step in (5, 9):
            record.flush()
            record.write_json("summary.json", {"step": step})
            for site in ("cloud", "edge"):
                state(folder, site, stated(folder, step, record.written, record.chain), keys)
    record.close()
    return folder, keys


def lines_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines(keepends=True)


def rewrite(folder, lines):
    """Write lines as who knows how they are made: every hash and checksum is right again."""
    (folder / "metrics.jsonl").unlink()
    record = RunFolder(folder, chained=True)
    for line in lines:
        table = json.loads(line)
        for key in ("format", "crc32", "chain"):
            del table[key]
        record.note(table.pop("kind"), **table)
    record.close()


def test_a_record_as_it_was_written_is_right(run):
    folder, keys = run
    found = {"lines": 12, "kept_lines": 10, "sites": ["cloud", "edge"]}
    assert verify_record(folder, keys) == found | {"signed": True}
    assert verify_record(folder) == found | {"signed": False}


@pytest.mark.parametrize("number", [1, 4, 7, 12])
def test_the_first_line_that_was_changed_is_named(run, number):
    folder, keys = run
    lines = lines_of(folder)
    for wrong in (
        lines[number - 1].replace('"loss": 0.5', '"loss": 0.4'),
        lines[number - 1].replace('"loss": 0.5', '"loss":  0.5'),
        lines[number - 1].replace('"chain": "', '"chain": "0'),
        lines[number - 1].replace('"step": ', '"step": 1'),
    ):
        assert wrong != lines[number - 1]
        (folder / "metrics.jsonl").write_text("".join([*lines[: number - 1], wrong, *lines[number:]]))
        with pytest.raises(RecordError, match=f"line {number} is not what was written"):
            verify_record(folder, keys)
    (folder / "metrics.jsonl").write_text("".join([*lines[: number - 1], "{}\n", *lines[number:]]))
    with pytest.raises(RecordError, match=f"line {number} has no hash: it was added"):
        verify_record(folder)
    if number < len(lines):  # the last is after what sites have signed
        (folder / "metrics.jsonl").write_text("".join([*lines[: number - 1], *lines[number:]]))
        with pytest.raises(RecordError, match=f"line {number} is not what was written, or one before"):
            verify_record(folder)


def test_who_writes_hashes_anew_meets_what_sites_have_signed(run):
    folder, keys = run
    lines = lines_of(folder)
    rewrite(folder, [*lines[:2], lines[2].replace("0.5", "0.4"), *lines[3:]])
    with pytest.raises(RecordError, match="one of the lines 1 to 6 is not what site 'cloud' has seen"):
        verify_record(folder, keys)
    rewrite(folder, [*lines[:7], lines[7].replace("0.5", "0.4"), *lines[8:]])
    with pytest.raises(RecordError, match="one of the lines 7 to 10 is not what site 'cloud' has seen"):
        verify_record(folder, keys)
    rewrite(folder, lines[:8])
    with pytest.raises(
        RecordError, match="end is missing: it has 8 lines, and site 'cloud' has seen 10"
    ):
        verify_record(folder, keys)
    path = folder / "record/cloud.json"
    told = path.read_text()
    state(folder, "cloud", stated(folder, 7, 8, read_chain(folder / "metrics.jsonl")[-1]))
    with pytest.raises(RecordError, match="is not signed by site 'cloud' as it stands"):
        verify_record(folder, keys)
    path.write_text(told)
    shutil.copy(folder / "record/edge.json", path)
    with pytest.raises(RecordError, match=r"cloud.json: is of site 'edge'"):
        verify_record(folder, keys)


def test_files_keys_and_statements_are_looked_at(run, tmp_path):
    folder, keys = run
    (folder / "summary.json").write_text("{}")
    with pytest.raises(RecordError, match=r"summary.json: is not what site 'cloud' has seen"):
        verify_record(folder, keys)
    (keys / "cloud.pub").unlink()
    with pytest.raises(RecordError, match=r"cloud.pub: no such file, and .* bring its .pub there"):
        verify_record(folder, keys)
    shutil.rmtree(folder / "record")
    with pytest.raises(RecordError, match="no site has signed this record"):
        verify_record(folder, keys)
    with pytest.raises(RecordError, match="no such file; name the folder of a run"):
        verify_record(tmp_path)


@pytest.mark.ranks(2)
def test_a_run_signs_its_record_and_goes_on_with_it(comm, shared_folder):
    path = lab(
        comm,
        shared_folder,
        (1, 1),
        cluster={"compute": "real"},
        plan={"replan": False},
        training={"epochs": 2},
        run={"checkpoint_every": 15},
    )
    if comm.rank == 0:
        for number in range(2):
            make_keys(shared_folder / "keys", f"site{number}")
        more = '\n[security]\nlink = "sealed"\nrecord = "signed"\nkeys = "keys"\n'
        path.write_text(path.read_text() + more)
    comm.Barrier()

    def go(resume=None):
        summary = train(comm, path, lambda line, passing=False: None, resume=resume)
        comm.Barrier()
        made = verify_record(summary["folder"], shared_folder / "keys")
        assert made["lines"] == made["kept_lines"] > 20
        assert made["sites"] == ["site0", "site1"]
        return summary

    first = go()
    assert go(first["folder"])["parameter_hash"] == first["parameter_hash"]
    private = [file.read_text().split()[-4] for file in sorted((shared_folder / "keys").glob("*.key"))]
    for file in (each for each in (shared_folder / "runs").rglob("*") if each.is_file()):
        assert not any(key.encode() in file.read_bytes() for key in private), file
