"""Open MPI is not left to look for networks that the host has not: it would sleep for a second."""

import os
import subprocess
import sys

import pytest

from isthmus.fabric import CHOSEN, DEVICES, leave_out_fabric


def test_what_this_host_has_not_is_left_out_unless_somebody_has_chosen(tmp_path, monkeypatch):
    devices, file = tmp_path / "infiniband", tmp_path / "mca-params.conf"

    def chosen(before=None):
        monkeypatch.delenv(CHOSEN, raising=False)
        if before:
            monkeypatch.setenv(CHOSEN, before)
        leave_out_fabric([devices], [file])
        return os.environ.get(CHOSEN)

    assert chosen() == "^ofi"
    devices.mkdir()
    assert chosen() == "^ofi"  # a driver without a device
    file.write_text("# btl = self\nbtl_tcp_if_include = eth0\n")
    assert chosen() == "^ofi"
    assert chosen("self,tcp") == "self,tcp"
    file.write_text("pml = ob1\n  btl= self,tcp\n")
    assert chosen() is None
    file.unlink()
    (devices / "mlx5_0").mkdir()
    assert chosen() is None


@pytest.mark.slow
@pytest.mark.skipif(any(each.exists() for each in DEVICES), reason="this host has a fabric")
def test_a_verb_knows_it_before_mpi_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "isthmus", "train", "nothing.toml"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "OMPI_MCA_btl_base_verbose": "100"},
        text=True,
        capture_output=True,
    )
    assert "nothing.toml" in done.stderr
    assert "component tcp" in done.stderr
    assert "component ofi" not in done.stderr
