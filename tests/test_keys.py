"""Keys of sites: one private key in one place, and every other place, owner or mode refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import cluster_of

import isthmus
from isthmus.checks.job import Checked
from isthmus.checks.security import security
from isthmus.errors import ClusterError, SecurityError
from isthmus.jobs.settings import RunSettings
from isthmus.links import sealed
from isthmus.links.agreement import gather_json
from isthmus.security import key_files
from isthmus.security.key_files import (
    check_keys,
    key_paths,
    make_keys,
    read_private,
    read_public,
    show_key,
)
from isthmus.security.public_keys import fingerprint, key_bytes, key_line

# OpenSSH's, made with `ssh-keygen -t ed25519`
LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPKcXcmVwXrYQZ9iRmEZ9ZQnRPlDcpOXMIbsJHTYiTpE who"


def test_keys_are_their_owners_alone_from_the_first_byte(tmp_path, monkeypatch):
    opened = []
    really = os.open

    def watched(path, flags, *mode, **more):
        descriptor = really(path, flags, *mode, **more)
        if flags & os.O_CREAT:
            opened.append((Path(path).name.split(".")[1], os.fstat(descriptor).st_mode & 0o777, flags))
        return descriptor

    monkeypatch.setattr(key_files.os, "open", watched)
    before = os.umask(0)  # of somebody who lets all in
    try:
        line = make_keys(tmp_path / "keys", "edge")
    finally:
        assert os.umask(before) == 0
    assert [(name, mode) for name, mode, _ in opened] == [("key", 0o600), ("pub", 0o600)]
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for *_, flags in opened)
    private, public = key_paths(tmp_path / "keys", "edge")
    modes = [path.stat().st_mode & 0o777 for path in (private.parent, private, public)]
    assert modes == [0o700, 0o600, 0o644]
    assert public.read_text().splitlines()[0] == line
    assert read_private(tmp_path / "keys", "edge").public_key().public_bytes_raw() == key_bytes(line)
    assert check_keys(tmp_path / "keys") == [
        {"site": "edge", "private": True, "fingerprint": fingerprint(key_bytes(line))}
    ]
    other = make_keys(tmp_path / "keys", "edge", replace=True)
    assert other != line
    assert show_key(tmp_path / "keys", "edge") == other
    assert sorted(os.listdir(tmp_path / "keys")) == ["edge.key", "edge.pub"]


def broken(folder, act):
    make_keys(folder, "edge")
    act(folder / "edge.key")
    return folder


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda path: path.chmod(0o640), "mode 0o640 lets others in; chmod 600"),
        (lambda path: path.chmod(0o604), "mode 0o604 lets others in; chmod 600"),
        (lambda path: path.parent.chmod(0o720), "mode 0o720 lets others write there; chmod go-w"),
        (lambda path: path.parent.chmod(0o707), "mode 0o707 lets others write there; chmod go-w"),
        (lambda path: path.unlink(), "No such file or directory; make it where the site's leader runs"),
        (lambda path: path.write_text("-----BEGIN"), "is no private key as `isthmus keys new` makes it"),
        (lambda path: path.write_bytes(b""), "is no private key as `isthmus keys new` makes it"),
        (
            lambda path: os.link(path, path.with_name("twice")),
            "is not a file of its own; put the key itself",
        ),
        (lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")), "symbolic links"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "is not a file of its own"),
        (lambda path: (path.unlink(), path.mkdir(0o600)), "is not a file of its own"),
    ],
)
def test_a_key_in_the_wrong_hands_is_refused(tmp_path, act, words):
    folder = broken(tmp_path / "keys", act)
    with pytest.raises(SecurityError, match=words) as told:
        read_private(folder, "edge")
    assert "; " in str(told.value)
    assert "\n" not in str(told.value)


def test_a_key_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = broken(tmp_path / "keys", lambda path: None)
    monkeypatch.setattr(key_files.os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid():  # root's folder is one that nobody else writes to
        with pytest.raises(SecurityError, match="keys: belongs to user"):
            read_private(folder, "edge")
    monkeypatch.setattr(key_files, "check_place", lambda folder: None)
    with pytest.raises(SecurityError, match=r"edge.key: belongs to user \d+, and this is user"):
        read_private(folder, "edge")


def test_nothing_of_a_key_is_in_what_is_said_of_it(tmp_path):
    folder = broken(tmp_path / "keys", lambda path: None)
    text = (folder / "edge.key").read_text()
    (folder / "edge.key").write_text(text.replace("PRIVATE KEY", "SECRET"))
    with pytest.raises(SecurityError) as told:
        read_private(folder, "edge")
    assert told.value.__cause__ is None
    assert text.splitlines()[1][:20] not in str(told.value)
    table = cluster_of(1, 1)
    table["site"][0]["public_key"] = text
    with pytest.raises(ClusterError, match="public_key: must be a line as") as told:
        isthmus.Cluster(table)
    assert text.splitlines()[1][:20] not in str(told.value)


def test_public_keys_are_openssh_s_and_in_the_cluster_file(tmp_path):
    assert key_line(key_bytes(LINE), "who") == LINE
    assert fingerprint(key_bytes(LINE)).startswith("SHA256:")
    for wrong in ("", "ssh-rsa AAAA", LINE.replace("ssh-ed", "ssh-"), LINE[:-20], f"x{LINE}"):
        with pytest.raises(ValueError, match="must be a line as `isthmus keys show` gives it"):
            key_bytes(wrong)
    table = cluster_of(1, 1)
    table["site"][0]["public_key"] = LINE
    again = isthmus.Cluster(isthmus.Cluster(table).to_table())
    assert [site.public_key for site in again.sites] == [LINE, None]
    table["site"][1]["public_key"] = LINE.replace(" who", "")
    with pytest.raises(ClusterError, match="two sites have one public_key; make a key for each"):
        isthmus.Cluster(table)
    (tmp_path / "edge.pub").write_text("nothing")
    with pytest.raises(SecurityError, match=r"edge.pub: must be a line as .*; bring the site's .pub"):
        read_public(tmp_path, "edge")


@pytest.mark.ranks(2)
def test_what_is_wrong_with_keys_is_told_on_all_ranks(comm, shared_folder, monkeypatch):
    table = cluster_of(1, 1)
    mine = shared_folder / f"of_rank{comm.rank}"
    line = make_keys(mine, f"site{comm.rank}")
    lines = gather_json(comm, line)

    def refused(keys=mine):
        with pytest.raises(SecurityError) as told:
            isthmus.split_tiers(comm, isthmus.Cluster(table), keys)
        assert told.value.everywhere
        assert len({*gather_json(comm, str(told.value))}) == 1
        return str(told.value)

    assert "of_rank0/site1.pub: no such file at site 'site0'; bring it there" in refused()
    assert "nowhere" in refused(shared_folder / "nowhere")
    other = 1 - comm.rank
    (mine / f"site{other}.pub").write_text(lines[other])
    isthmus.split_tiers(comm, isthmus.Cluster(table), mine).__exit__(None)
    if comm.rank == 1:  # its site makes another key, and the cloud is not told
        make_keys(mine, "site1", replace=True)
    comm.Barrier()
    assert "site 'site1' does not sign with the key that is known as its own" in refused()
    for site, known in zip(table["site"], lines):
        site["public_key"] = known
    assert "of_rank1/site1.pub: is not the public_key that cluster has for site 'site1'" in refused()
    if comm.rank == 1:
        (mine / "site1.key").chmod(0o644)
    comm.Barrier()
    assert "of_rank1/site1.key: mode 0o644 lets others in" in refused()
    both = shared_folder / "both"
    if comm.rank == 0:
        for number in range(2):
            make_keys(both, f"site{number}")
    comm.Barrier()
    del table["site"][0]["public_key"], table["site"][1]["public_key"]
    monkeypatch.setenv("HOME", str(both))
    isthmus.split_tiers(comm, isthmus.Cluster(table), "~").__exit__(None)  # one machine
    monkeypatch.setattr(sealed, "machine_name", lambda: str(comm.rank))
    assert "both/site1.key: is the private key of a site that is not on this host" in refused(both)


def test_settings_that_would_leave_something_in_clear_are_refused(tmp_path):
    def read(security, **more):
        lines = [
            '[cluster]\nfile = "c.toml"\n[data]\ntrain = "data/a"\ntest = "data/b"',
            '[model]\nkind = "perceptron"\nhidden = [3]',
            *(f"[{name}]\n{text}" for name, text in more.items()),
            f"[security]\n{security}",
        ]
        (tmp_path / "run.toml").write_text("\n".join(lines))
        return RunSettings.from_toml(tmp_path / "run.toml")

    assert read('link = "sealed"\nkeys = "keys"').security.keys_of_links == tmp_path / "keys"
    assert read('keys = "keys"').security.keys_of_links is None
    assert str(read('link = "sealed"\nkeys = "~/keys"').security.keys) == "~/keys"  # each leader's own
    for table, more, words in (
        ('link = "sealed"', {}, 'link = "sealed" needs keys'),
        ('link = "open"', {}, "link"),
        ('link = "sealed"\nkeys = "k"', {"allreduce": 'algorithm = "mpi"'}, '"mpi" cannot be sealed'),
        ('link = "sealed"\nkeys = "runs/keys"', {}, "security.keys is in .*runs, which"),
        ('link = "sealed"\nkeys = "data/a"', {}, "security.keys is in .*data/a, which"),
    ):
        with pytest.raises(isthmus.IsthmusError, match=words):
            read(table, **more)


class Alone(Checked):
    def __init__(self, hosts):
        super().__init__(None)
        self.hosts, self.started = hosts, len(hosts) > 1


def test_a_check_warns_of_clear_links_and_looks_at_keys(tmp_path):
    settings = RunSettings.model_construct(
        security=RunSettings.model_fields["security"].default.model_copy(
            update={"link": "clear", "keys": tmp_path}
        )
    )
    sites = isthmus.Cluster(cluster_of(1, 1))
    assert security(Alone(["a"]), settings, sites) is None
    assert security(Alone(["a", "a"]), settings, sites) is None
    found = security(Alone(["a", "b"]), settings, sites)
    assert (found.status, "links are clear" in found.found) == ("WARN", True)
    closed = settings.model_copy(
        update={"security": settings.security.model_copy(update={"link": "sealed"})}
    )
    make_keys(tmp_path, "site0")
    found = security(Alone(["a", "b"]), closed, sites)
    assert (found.status, found.error) == ("FAIL", "SecurityError")
    assert "site1.pub: no such file at site 'site0'" in found.found
    make_keys(tmp_path, "site1")
    assert security(Alone(["a", "b"]), closed, sites).status == "PASS"


@pytest.mark.slow
def test_the_verbs_of_keys(tmp_path):
    def keys(*words):
        return subprocess.run(
            [sys.executable, "-m", "isthmus", "keys", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    made = json.loads(keys("new", "edge", "--json").stdout)
    assert made == json.loads(keys("show", "edge", "--json").stdout)
    assert f'public_key = "{made["public_key"]}"' in keys("show", "edge", "--folder", "keys").stdout
    again = keys("new", "edge")
    assert (again.returncode, again.stderr.count("\n")) == (17, 1)
    assert "keys/edge.key: there is a key already; `isthmus keys rotate edge` makes" in again.stderr
    assert keys("check").stdout == f"edge: {made['fingerprint']}, private and public\n"
    other = json.loads(keys("rotate", "edge", "--json").stdout)
    assert other["public_key"] != made["public_key"]
    (tmp_path / "keys/edge.pub").write_text(made["public_key"])
    wrong = keys("check", "edge")
    assert (wrong.returncode, wrong.stdout) == (17, "")
    assert "edge.pub: is not the public key of edge.key beside it" in wrong.stderr
    assert "No such file" in keys("rotate", "cloud").stderr
    assert keys("new", "../edge").returncode == 17
