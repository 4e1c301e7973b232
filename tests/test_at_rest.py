"""Shards at rest: sealed for their readers, unsealed in memory alone, refused when anything changed."""

import base64
import json
import os
import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.errors import PolicyError, SecurityError, ShardError
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.security import at_rest
from isthmus.security.at_rest import HEAD, TAG_NBYTES, DamagedError, FileKey, new_key, unwrap, wrap
from isthmus.security.key_files import SEALING, make_keys, read_private, read_sealing, sealing_private
from isthmus.shards.cache import ShardCache
from isthmus.shards.moving import move_shards

pytest.importorskip("cryptography")

SEGMENT = 1000
CANARY = b"canary of the edge"
POLICY = {"origin": "site1", "shards": [{"numbers": [0, 1, 2], "readers": ["site0", "site1"]}]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Keys of two sites, and a sealed set of 6 shards in small segments; shards 3 and 4 are alike."""
    folder = tmp_path_factory.mktemp("sealed")
    for site in ("site0", "site1"):
        make_keys(folder / "keys", site)
    whole, at_rest.SEGMENT_NBYTES = at_rest.SEGMENT_NBYTES, SEGMENT
    isthmus.pack_shards(
        arrays(), folder / "set", 6, "none", policy=POLICY, keys=folder / "keys", sealed=True
    )
    yield folder
    at_rest.SEGMENT_NBYTES = whole


def arrays():
    features = np.random.default_rng(0).integers(0, 255, (60, 300), dtype="u1")
    features[:, : len(CANARY)] = np.frombuffer(CANARY, "u1")
    features[40:50] = features[30:40]
    return {"features": features, "targets": np.arange(60) % 10}


def of_shard(name, number):
    return arrays()[name].reshape(6, 10, -1)[number].reshape(10, *arrays()[name].shape[1:])


@pytest.mark.parametrize("nbytes", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT])
def test_content_of_any_length_opens_and_no_other_bytes_do(nbytes, monkeypatch):
    monkeypatch.setattr(at_rest, "SEGMENT_NBYTES", SEGMENT)
    key, content = FileKey(new_key()), np.random.default_rng(nbytes).bytes(nbytes)
    sealed = b"".join(key.seal(content))
    segments = max(1, -(-nbytes // SEGMENT))
    assert len(sealed) == len(HEAD) + nbytes + segments * TAG_NBYTES
    assert key.open(BytesIO(sealed), len(sealed)).getvalue() == content
    whole = SEGMENT + TAG_NBYTES
    others = [sealed[:end] for end in {0, len(HEAD), len(HEAD) + 1, len(sealed) - 1}]
    others += [sealed[: len(HEAD) + number * whole] for number in range(segments)]
    others += [sealed + bytes(1), sealed + sealed[len(HEAD) :], b"x" + sealed[1:]]
    if segments > 1:
        first, rest = sealed[len(HEAD) :][:whole], sealed[len(HEAD) + whole :]
        others += [HEAD + rest[:whole] + first + rest[whole:], HEAD + rest, HEAD + first + first + rest]
    for place in (len(HEAD), len(sealed) // 2, len(sealed) - 1):
        others.append(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
    for other in others:
        with pytest.raises(DamagedError, match="segment|begin or end"):
            key.open(BytesIO(other), len(other))
    with pytest.raises(DamagedError, match="segment 0"):
        FileKey(new_key()).open(BytesIO(sealed), len(sealed))


def test_a_key_is_wrapped_for_one_site_one_key_and_one_purpose(tmp_path):
    for site in ("edge", "other"):
        make_keys(tmp_path / "keys", site)
    private = {
        site: sealing_private(read_private(tmp_path / "keys", site)) for site in ("edge", "other")
    }
    public = read_sealing(tmp_path / "keys", "edge")
    assert public == private["edge"].public_key().public_bytes_raw()
    key = new_key()
    wrapped = wrap(key, "edge", public, b"shard")
    assert unwrap(wrapped, "edge", private["edge"], b"shard") == key
    assert wrap(key, "edge", public, b"shard") != wrapped
    changed = [
        (wrapped, "other", private["edge"], b"shard"),
        (wrapped, "edge", private["other"], b"shard"),
        (wrapped, "edge", private["edge"], b"checkpoint"),
        (bytes(32) + wrapped[32:], "edge", private["edge"], b"shard"),  # a point of small order
    ]
    for place in range(len(wrapped)):
        other = wrapped[:place] + bytes([wrapped[place] ^ 1]) + wrapped[place + 1 :]
        changed.append((other, "edge", private["edge"], b"shard"))
    for each in changed:
        with pytest.raises(DamagedError):
            unwrap(*each)


def test_the_key_to_seal_for_is_signed_by_the_sites_own(tmp_path):
    line = make_keys(tmp_path / "keys", "edge")
    path = tmp_path / "keys" / "edge.pub"
    if shutil.which("ssh-keygen"):
        told = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
        assert len(told.stdout.splitlines()) == 1
    own = path.read_text()
    make_keys(tmp_path / "others", "edge")
    theirs = (tmp_path / "others" / "edge.pub").read_text().splitlines()[1]
    told = bytearray(base64.b64decode(own.splitlines()[1].removeprefix(SEALING).split()[0]))
    told[0] ^= 1
    changed = f"{SEALING}{base64.b64encode(told).decode()} edge"
    for text, words in (
        (f"{line}\n{theirs}\n", "not signed by the site's own"),
        (f"{line}\n{changed}\n", "not signed by the site's own"),
        (f"{line}\n{SEALING}AAAA edge\n", "not signed by the site's own"),
        (f"{line}\n", "isthmus keys rotate edge"),
        (f"{line}\n{SEALING}?? edge\n", "isthmus keys rotate edge"),
    ):
        path.write_text(text)
        with pytest.raises(SecurityError, match=words):
            read_sealing(tmp_path / "keys", "edge")
    path.unlink()
    with pytest.raises(SecurityError, match="no such file; bring it there"):
        read_sealing(tmp_path / "keys", "edge")


def test_a_sealed_set_is_read_by_its_readers_and_tells_others_nothing(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    table = json.loads((lab / "set" / "manifest.json").read_text())
    files = {path.name: path.read_bytes() for path in (lab / "set").iterdir()}
    assert all(CANARY not in content for content in files.values())
    assert all(files[shard["file"]].startswith(HEAD) for shard in table["shards"])
    alike = [table["shards"][number] for number in (3, 4)]
    assert alike[0]["arrays_sha256"] != alike[1]["arrays_sha256"]  # of equal samples
    assert all("samples_of_class" not in shard for shard in table["shards"])
    shards = isthmus.ShardSet.open(lab / "set", keys=lab / "keys")
    for number in range(6):
        for name, values in shards.read(number).items():
            np.testing.assert_array_equal(values, of_shard(name, number))
    shards.verify()
    isthmus.ShardSet.open(lab / "set").verify()  # whole files are known without a key
    assert {path.name: path.read_bytes() for path in (lab / "set").iterdir()} == files
    assert not list(tmp_path.iterdir())
    (tmp_path / "cloud").mkdir(mode=0o700)
    for name in ("site1.pub", "site0.pub", "site0.key"):
        shutil.copy(lab / "keys" / name, tmp_path / "cloud")
    cloud = isthmus.ShardSet.open(lab / "set", keys=tmp_path / "cloud")
    assert list(cloud.readable) == [0, 1, 2]
    np.testing.assert_array_equal(cloud.read(1)["features"], of_shard("features", 1))
    with pytest.raises(PolicyError, match="may be read by 'site1' alone"):
        cloud.read(3)
    with pytest.raises(KeyError):  # and has no key of it, whatever it says that it is
        isthmus.ShardSet(lab / "set", cloud.manifest, replace(cloud.access, sites={"site1"})).read(3)
    shutil.copytree(lab / "keys", tmp_path / "keys")
    make_keys(tmp_path / "keys", "site0", replace=True)
    with pytest.raises(SecurityError, match="shard-00000.h5 is sealed for another key of site 'site0'"):
        isthmus.ShardSet.open(lab / "set", keys=tmp_path / "keys")


def file_of(folder, number=3):
    return folder / f"shard-{number:05d}.h5"


def rewritten(change):
    def of(folder):
        path = file_of(folder)
        path.write_bytes(change(path.read_bytes()))

    return of


def exchanged(folder):
    os.rename(file_of(folder, 3), folder / "aside")
    os.rename(file_of(folder, 4), file_of(folder, 3))
    os.rename(folder / "aside", file_of(folder, 4))


def with_table(change):
    def of(folder):
        table = json.loads((folder / "manifest.json").read_text())
        change(table)
        (folder / "manifest.json").write_text(json.dumps(table))

    return of


CUT = len(HEAD) + SEGMENT + TAG_NBYTES
TAMPERINGS = {
    "cut by a byte": (
        rewritten(lambda content: content[:-1]),
        ShardError,
        "does not open at its segment",
    ),
    "cut after a segment": (rewritten(lambda content: content[:CUT]), ShardError, "segment 0 of 1"),
    "empty": (rewritten(lambda content: b""), ShardError, "does not begin or end as a sealed file does"),
    "two segments for one another": (
        rewritten(
            lambda content: (
                content[: len(HEAD)]
                + content[CUT : 2 * CUT - len(HEAD)]
                + content[len(HEAD) : CUT]
                + content[2 * CUT - len(HEAD) :]
            )
        ),
        ShardError,
        "segment 0",
    ),
    "a bit": (
        rewritten(lambda content: content[:CUT] + bytes([content[CUT] ^ 1]) + content[CUT + 1 :]),
        ShardError,
        "segment 1",
    ),
    "two files for one another": (exchanged, ShardError, "segment 0"),
    "in clear": (rewritten(lambda content: b"\x89HDF\r\n\x1a\n"), ShardError, "does not begin or end"),
    "gone": (lambda folder: file_of(folder).unlink(), ShardError, "cannot be read"),
    "another reader": (
        with_table(lambda table: table["shards"][3]["readers"].append("site0")),
        PolicyError,
        "a part of a policy",
    ),
    "two keys for one another": (
        with_table(lambda table: table["shards"][3].update(sealed=table["shards"][4]["sealed"])),
        PolicyError,
        "not what site 'site1' has signed",
    ),
    "not sealed": (
        with_table(lambda table: table["shards"][3].pop("sealed")),
        PolicyError,
        "not what site 'site1' has signed",
    ),
    "no policy": (
        with_table(
            lambda table: [
                table.pop("signatures"),
                [shard.pop(key) for shard in table["shards"] for key in ("origin", "readers")],
            ]
        ),
        PolicyError,
        "a part of a policy",
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_what_was_changed_is_refused_in_one_line(lab, tmp_path, what):
    change, error, words = TAMPERINGS[what]
    folder = shutil.copytree(lab / "set", tmp_path / "set")
    change(folder)
    with pytest.raises(error, match=words) as caught:
        isthmus.ShardSet.open(folder, keys=lab / "keys").read(3)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_sealed_shards_cross_no_clear_link_and_lie_in_no_cache(lab, tmp_path):
    cluster = isthmus.Cluster(cluster_of(2, 2))

    def played(act, sees, sealed):
        def play(table, rank):
            tiers = replace(tiers_in_process(table, cluster, rank), sealed=sealed)
            shards = isthmus.ShardSet.open(lab / "set") if rank in sees else None
            return act(tiers, shards)

        return in_threads(cluster.size, play)

    plan = SimpleNamespace(shards_of_rank=([0], [1], [2, 4], [3, 5]))

    def scatter(tiers, shards):
        cache = ShardCache(tmp_path / f"cache{tiers.world.rank}", 1 << 30)
        return isthmus.scatter_shards(tiers, shards, plan, 1000, cache, keys=lab / "keys")

    for sees, sealed in (((0, 2), False), ((0, 1, 2, 3), False), ((2,), True)):
        for local in played(scatter, sees, sealed):
            whole = [of_shard("features", number) for number in local.shards]
            np.testing.assert_array_equal(local.arrays["features"], np.concatenate(whole))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(
        PolicyError, match=r"shard 0\) is sealed, and would go from rank 2 to rank 0 of an"
    ):
        played(scatter, (2,), False)

    def move(tiers, shards):
        local = scatter(tiers, shards)
        return move_shards(tiers, local, np.array([0, 1, 2, 3, 2, 3]), np.array([1, 1, 0, 3, 3, 2]))

    for local in played(move, (2,), True):
        whole = [of_shard("features", number) for number in local.shards]
        if whole:
            np.testing.assert_array_equal(local.arrays["features"], np.concatenate(whole))
    with pytest.raises(PolicyError, match=r"shard 2\) is sealed, and would go from rank 2 to rank 0"):
        played(move, (0, 1, 2, 3), False)


def test_a_sealed_set_needs_readers_with_keys_and_replaces_another_whole(lab, tmp_path):
    keys = shutil.copytree(lab / "keys", tmp_path / "keys")
    with pytest.raises(PolicyError, match="takes a policy, which says for whom"):
        isthmus.pack_shards(arrays(), tmp_path / "set", 6, sealed=True)
    stranger = {"origin": "site1", "readers": ["nobody"]}
    with pytest.raises(SecurityError, match="nobody.pub: no such file"):
        isthmus.pack_shards(arrays(), tmp_path / "set", 6, policy=stranger, keys=keys, sealed=True)
    assert not (tmp_path / "set").exists()
    for times in range(2):
        isthmus.pack_shards(
            arrays(),
            tmp_path / "set",
            3 - times,
            overwrite=True,
            policy={"origin": "site1"},
            keys=keys,
            sealed=True,
            validation=0.5,
        )
    names = sorted(str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").rglob("*.h5"))
    assert names == [
        "shard-00000.h5",
        "shard-00001.h5",
        "validation/shard-00000.h5",
        "validation/shard-00001.h5",
    ]
    apart = isthmus.ShardSet.open(tmp_path / "set" / "validation", keys=keys)
    np.testing.assert_array_equal(apart.read(1)["features"], arrays()["features"][45:])
