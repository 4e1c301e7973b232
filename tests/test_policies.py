"""Data that stays: what the origin of a shard signs, nobody plans, reads, sends or keeps otherwise."""

import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from test_rebalancing import lab as run_lab

import isthmus
from isthmus.cli.main import main
from isthmus.errors import PlanError, PolicyError, SecurityError
from isthmus.jobs import preparation
from isthmus.jobs.preparation import place_data
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.train import train
from isthmus.jobs.using import evaluate_run
from isthmus.jobs.verifying import verify_steps
from isthmus.links.agreement import from_root, gather_json
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.pages.protection import protection_words
from isthmus.pages.report import write_report
from isthmus.planning.programme.objectives import OBJECTIVES
from isthmus.planning.replanning import Replanner
from isthmus.security.key_files import make_keys
from isthmus.shards.adopting import adopt_shards
from isthmus.shards.cache import ShardCache
from isthmus.shards.moving import move_shards
from isthmus.shards.repacking import split_into_clients
from isthmus.training.checkpoint_file import CHECKPOINT

pytest.importorskip("cryptography")

SAMPLES, SHARDS = 60, 6
EDGE = {"origin": "site1", "readers": ["site1"]}


def arrays(seed=0):
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 3, SAMPLES, dtype="u1")
    features = (draw.normal(size=(SAMPLES, 4)) + (np.arange(4) % 3 == targets[:, None])).astype("f4")
    return {"features": features, "targets": targets}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder of keys of site0 and site1, and a set whose shards 0 to 2 are for all and others not."""
    folder = tmp_path_factory.mktemp("policies")
    for site in ("site0", "site1"):
        make_keys(folder / "keys", site)
    some = {"numbers": [0, 1, 2], "readers": ["site0", "site1"]}
    isthmus.pack_shards(
        arrays(), folder / "some", SHARDS, policy=EDGE | {"shards": [some]}, keys=folder / "keys"
    )
    return folder


def run(capsys, monkeypatch, *arguments):
    """Return the exit code of `isthmus ARGUMENTS`, and what it printed."""
    monkeypatch.setattr("sys.argv", ["isthmus", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out + said.err


def test_pack_signs_who_may_read_and_a_set_is_read_by_their_keys_alone(tmp_path, capsys, monkeypatch):
    for site in ("edge", "cloud"):
        make_keys(tmp_path / "keys", site)
    np.savez(tmp_path / "a.npz", **arrays())
    (tmp_path / "p.toml").write_text(
        tomli_w.dumps({"origin": "edge", "shards": [{"numbers": [0], "readers": ["cloud"]}]})
    )
    said = [f"--array={name}={tmp_path}/a.npz:{name}" for name in arrays()]
    said += ["--shards", "4", "--keys", tmp_path / "keys"]
    packed = ("pack", tmp_path / "mine", *said)
    code, out = run(capsys, monkeypatch, *packed, "--origin", "edge", "--validation", "0.2")
    assert code == 0, out
    assert "4 shards for edge alone to read, signed by edge" in " ".join(out.split())
    for folder in (tmp_path / "mine", tmp_path / "mine" / "validation"):
        shards = isthmus.ShardSet.open(folder, keys=tmp_path / "keys")
        assert {*shards.readers} == {frozenset({"edge"})}
        assert shards.read(0)["targets"].size
        with pytest.raises(SecurityError, match="signed by 'edge', and nobody knows whose key"):
            isthmus.ShardSet.open(folder).read(0)
    (tmp_path / "cloud").mkdir(mode=0o700)
    for name in ("edge.pub", "cloud.pub", "cloud.key"):
        shutil.copy(tmp_path / "keys" / name, tmp_path / "cloud" / name)
    theirs = isthmus.ShardSet.open(tmp_path / "mine", keys=tmp_path / "cloud")
    with pytest.raises(PolicyError, match=r"shard-00002.h5: may be read by 'edge' alone, says 'edge'"):
        theirs.read(2)
    code, out = run(capsys, monkeypatch, *packed, "--overwrite", "--policy", tmp_path / "p.toml")
    assert code == 0, out
    theirs = isthmus.ShardSet.open(tmp_path / "mine", keys=tmp_path / "cloud")
    assert (list(theirs.readable), theirs.read(0)["targets"].size) == ([0], 15)
    for wrong, (code, words) in {
        ("--readers", "edge"): (2, "goes with --origin SITE"),
        ("--origin", "edge", "--policy", tmp_path / "p.toml"): (2, "goes without"),
        ("--origin", "nobody"): (17, "nobody.key"),
        ("--origin", "a b"): (21, "origin"),
        ("--policy", tmp_path / "p.toml", "--validation", "0.1"): (21, "set apart for validation"),
    }.items():
        before = (tmp_path / "mine" / "manifest.json").read_bytes()
        found, out = run(capsys, monkeypatch, *packed, "--overwrite", *wrong)
        assert (found, words in " ".join(out.split())) == (code, True), out
        assert (tmp_path / "mine" / "manifest.json").read_bytes() == before


OTHERWISE = {
    "a reader more": lambda t: t["shards"][4]["readers"].append("site0"),
    "another origin's word": lambda t: t["shards"][4].update(origin="site0"),
    "other samples": lambda t: t["shards"][4]["arrays_sha256"].update(features="0" * 64),
    "another file": lambda t: t["shards"][4].update(sha256="0" * 64),
    "two shards' places": lambda t: t["shards"].insert(0, t["shards"].pop(4)),
    "arrays' order": lambda t: t.update(arrays=dict(reversed(t["arrays"].items()))),
    "a shard less": lambda t: t["shards"].pop(),
    "another signature": lambda t: t["signatures"].update(site1="0" * 128),
    "somebody else's": lambda t: t["signatures"].update(site0=t["signatures"].pop("site1")),
    "a signature less": lambda t: t["signatures"].pop("site1"),
    "no signatures": lambda t: t.pop("signatures"),
    "no policy of one": lambda t: [t["shards"][4].pop(key) for key in ("origin", "readers")],
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_manifest_that_says_anything_else_than_was_signed_is_refused(lab, tmp_path, what):
    table = json.loads((lab / "some" / "manifest.json").read_text())
    OTHERWISE[what](table)
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(PolicyError, match="is not what site 'site1' has signed|a part of a policy"):
        isthmus.ShardSet.open(tmp_path, keys=lab / "keys")


def test_a_policy_is_verified_by_the_key_that_is_known_and_no_other(lab, tmp_path):
    keys = tmp_path / "keys"
    make_keys(keys, "site1")
    with pytest.raises(PolicyError, match=r"or .*site1.pub is not the key that signed it"):
        isthmus.ShardSet.open(lab / "some", keys=keys)
    for path in keys.iterdir():
        path.unlink()
    with pytest.raises(SecurityError, match=r"site1.pub: no such file, and .* site 'site1' has signed"):
        isthmus.ShardSet.open(lab / "some", keys=keys)
    shutil.copy(lab / "keys" / "site1.pub", keys)
    shards = isthmus.ShardSet.open(lab / "some", keys=keys)  # who may plan, and read nothing
    assert (len(shards.readers), list(shards.readable)) == (SHARDS, [])
    allowed = shards.allowed(isthmus.Cluster(cluster_of(2, 1)))
    assert allowed == {number: [0, 1, 2] if number < 3 else [2] for number in range(SHARDS)}
    placed = isthmus.allocate_shards(shards.samples, [1.0, 1.0, 9.0], allowed=allowed).rank_of_shard
    assert all(rank in allowed[number] for number, rank in enumerate(placed))
    with pytest.raises(PolicyError, match="has a policy, and a run that splits it"):
        split_into_clients(shards, tmp_path / "clients", 3, None, 2)


def test_a_run_tells_who_could_read_its_shards(lab):
    told = isthmus.ShardSet.open(lab / "some").manifest.told()
    assert told["readers"] == [
        {"sites": ["site0", "site1"], "shards": 3},
        {"sites": ["site1"], "shards": 3},
    ]
    settings = {"allreduce": {"algorithm": "hierarchical"}, "security": {}}
    run = SimpleNamespace(
        cluster=isthmus.Cluster(cluster_of(1, 1)),
        settings=settings,
        provenance={"data": {"train": told, "test": {"samples": 1, "sha256": "0"}}},
    )
    assert [sentence for sentence in protection_words(run) if "signed" in sentence] == [
        "Shards were read by those that their origins have signed: train 3 for site0 and site1 alone, "
        "3 for site1 alone."
    ]


NAMES = ("site0", "site1", "site2")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sets(st.sampled_from((*NAMES, "elsewhere")), min_size=1)),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.dictionaries(st.integers(0, 11), st.sampled_from(NAMES), max_size=3),
    st.sampled_from([*OBJECTIVES]),
    st.sampled_from([1e9, 50.0]),
)
def test_no_plan_ever_places_what_a_policy_forbids(shards, ranks, pinned, objective, storage):
    table = cluster_of(*ranks, bytes_per_second=9e7)
    for site in table["site"]:
        site["storage_nbytes"] = storage
    cluster = isthmus.Cluster(table)
    samples = tuple(samples for samples, _ in shards)
    readers = tuple(frozenset(names) for _, names in shards)
    names = tuple(f"shard-{number:05d}.h5" for number in range(len(shards)))
    pinned = {shard: site for shard, site in pinned.items() if shard < len(shards)}
    held = SimpleNamespace(samples=samples, nbytes=samples, readers=readers, names=names)
    workload = isthmus.Workload(size=1000, batch_size=8, data_site="site0")
    able = [
        {*NAMES} & readers[number] & ({pinned[number]} if number in pinned else {*NAMES})
        for number in range(len(shards))
    ]
    try:
        plan, problem = isthmus.plan_shards(cluster, held, workload, objective, pinned), ""
    except (PlanError, PolicyError) as told:
        plan, problem = None, f"{type(told).__name__} {told}"
    nowhere = [number for number, sites in enumerate(able) if not sites]
    bound = [number for number in range(len(shards)) if not readers[number] >= {*NAMES}]
    if nowhere:
        assert f"{names[nowhere[0]]} (shard {nowhere[0]}) may be read by" in problem
        assert problem.startswith("PolicyError")
        assert "packed with more --readers" in problem
        return
    if plan is None:
        assert storage < 1e9
        assert not bound or f"{names[bound[0]]} (shard {bound[0]})" in problem
        assert ("give those sites what they lack" in problem) == bool(bound)
        assert problem.endswith("more --readers") == bool(bound)
        return
    site_of_rank = [cluster.names[site] for site in cluster.site_of_rank]
    sites = [site_of_rank[rank] for rank in plan.rank_of_shard]
    assert all(site in able[number] for number, site in enumerate(sites))
    if objective not in ("makespan", "period"):
        return
    planner = Replanner(cluster, held, workload, objective=objective, pinned=pinned)
    rates = np.array(cluster.rates) * np.random.default_rng(0).uniform(0.05, 5, cluster.size)
    again = planner.plan_again(plan.rank_of_shard, rates, 100)
    sites = [site_of_rank[rank] for rank in again.rank_of_shard]
    assert all(site in able[number] for number, site in enumerate(sites))


def played(lab, act, ranks=(2, 2)):
    """Return what `act(tiers)` gives on the ranks of two sites, that are threads here."""
    cluster = isthmus.Cluster(cluster_of(*ranks))
    return in_threads(cluster.size, lambda table, rank: act(tiers_in_process(table, cluster, rank)))


def placed(*shards_of_rank):
    return SimpleNamespace(shards_of_rank=shards_of_rank)


def test_ranks_that_may_not_read_a_shard_neither_get_nor_send_it(lab, tmp_path):
    keys, whole = lab / "keys", arrays()["targets"].reshape(SHARDS, -1)

    def scattered(plan, sees, **more):
        def act(tiers):
            shards = isthmus.ShardSet.open(lab / "some") if tiers.world.rank in sees else None
            return isthmus.scatter_shards(tiers, shards, plan, keys=keys, **more)

        return played(lab, act)

    plan = placed([0], [1, 2], [3, 4], [5])
    for sees in ((0, 1, 2, 3), (2,), (1, 3)):
        for rank, local in enumerate(scattered(plan, sees)):
            assert (local.arrays["targets"] == whole[list(plan.shards_of_rank[rank])].ravel()).all()
    with pytest.raises(
        PolicyError, match=r"shard-00003.h5 \(shard 3\) is for rank 2 .*'site0', none may"
    ):
        scattered(plan, (0, 1))  # the cloud happens to see the folder
    scattered(placed([0], [1], [2], []), (0,))
    with pytest.raises(
        PolicyError, match=r"shard 3\) would go to rank 1 of site 'site0', .*'site1' lets"
    ):
        scattered(placed([0], [1, 3], [2, 4], [5]), (0, 1, 2, 3))
    with pytest.raises(SecurityError, match="has a policy, signed by 'site1', and nobody knows"):
        played(
            lab, lambda tiers: isthmus.scatter_shards(tiers, isthmus.ShardSet.open(lab / "some"), plan)
        )

    def keeps(tiers):
        cache = ShardCache(tmp_path / f"cache{tiers.world.rank}", 1 << 30)
        shards = isthmus.ShardSet.open(lab / "some") if tiers.world.rank == 2 else None
        isthmus.scatter_shards(tiers, shards, plan, cache=cache, keys=keys)

    played(lab, keeps)
    kept = [len(list((tmp_path / f"cache{rank}").iterdir())) for rank in range(4)]
    assert kept == [1, 2, 0, 1]


def test_shards_that_move_or_are_adopted_stay_where_they_may_be_read(lab):
    old = np.array([0, 0, 1, 2, 3, 2])

    def act(tiers):
        shards = isthmus.ShardSet.open(lab / "some") if tiers.site_name == "site1" else None
        plan = placed(*(np.flatnonzero(old == rank).tolist() for rank in range(4)))
        local = isthmus.scatter_shards(tiers, shards, plan, keys=lab / "keys")
        moved = move_shards(tiers, local, old, np.array([1, 2, 3, 3, 3, 3]))
        assert moved.access == local.access
        with pytest.raises(
            PolicyError, match=r"moving shards: shard-00004.h5 .* rank 1 of site 'site0'"
        ):
            move_shards(tiers, local, old, np.array([0, 0, 1, 2, 1, 2]))
        held = isthmus.scatter_shards(tiers, shards, placed([0], [], [3], [4]), keys=lab / "keys")
        slow = adopt_shards(tiers, held, lab / "some", (1e6, 1e6, 1.0, 1.0))
        blind = adopt_shards(
            tiers, held, lab / "some" if tiers.site_name == "site0" else "no", [1.0] * 4
        )
        return moved.shards, slow.shards_of_rank, slow.never, blind.shards_of_rank, blind.never

    found = played(lab, act)
    assert [each[0] for each in found] == [(), (0,), (1,), (2, 3, 4, 5)]
    assert {*found[0][1][0], *found[0][1][1]} == {0, 1, 2}
    assert (sorted(found[0][1][2] + found[0][1][3]), found[0][2]) == ([3, 4, 5], [])
    assert sorted(itertools.chain(*found[0][3])) == [0, 1, 2, 3, 4]
    assert found[0][4] == [5]  # those that see it may not read it


def test_the_sets_of_a_run_are_placed_where_they_were_born(tmp_path):
    for part, shards, sealed in (("train", 6, True), ("test", 3, False)):
        if part == "train":
            for site in ("site0", "site1"):
                make_keys(tmp_path / "keys", site)
        isthmus.pack_shards(
            arrays(), tmp_path / part, shards, policy=EDGE, keys=tmp_path / "keys", sealed=sealed
        )
    cluster = isthmus.Cluster(cluster_of(2, 2, bytes_per_second=9e7))
    table = {
        "cluster": {"file": "cluster.toml"},
        "data": {"train": "train", "test": "test"},
        "model": {"kind": "perceptron", "inputs": 4, "hidden": [3], "classes": 3},
        "training": {"batch_size": 20},
    }

    def placed_data(**sections):
        path = tmp_path / "run.toml"
        path.write_text(tomli_w.dumps(table | sections))
        settings = RunSettings.from_toml(path)

        def act(tiers):
            found = place_data(tiers, settings, lambda *told: None)
            return found.local.shards, found.sets["test"].shards

        return in_threads(4, lambda ranks, rank: act(tiers_in_process(ranks, cluster, rank)))

    keys = {"security": {"keys": "keys"}}
    found = placed_data(**keys)
    assert found[0] == found[1] == ((), ())
    assert sorted(found[2][0] + found[3][0]) == [*range(6)]
    assert sorted(found[2][1] + found[3][1]) == [*range(3)]
    with pytest.raises(PolicyError, match=r"shard-00000.h5 \(shard 0\) may be read by site1 alone"):
        placed_data(plan={"pinned": {"0": "site0"}}, **keys)
    with pytest.raises(SecurityError, match="name the folder of keys"):
        placed_data()


def pack_again(folder, keys):
    """Pack the sets of a run anew, sealed, for site1 alone but for half of the training shards."""
    for site in ("site0", "site1"):
        make_keys(keys, site)
    half = {"numbers": [*range(30)], "readers": ["site0", "site1"]}
    for part, policy in (("train", EDGE | {"shards": [half]}), ("test", EDGE)):
        shards = isthmus.ShardSet.open(folder / part)
        whole = [shards.read(number) for number in range(len(shards.samples))]
        columns = {name: np.concatenate([each[name] for each in whole]) for name in shards.arrays}
        more = {"overwrite": True, "policy": policy, "keys": keys, "sealed": True}
        isthmus.pack_shards(columns, folder / part, len(whole), **more)


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_a_run_keeps_its_training_and_test_shards_and_residuals(comm, shared_folder, monkeypatch):
    """The edge sees the folder, and what the cloud may read comes to it over a sealed link."""
    path = run_lab(comm, shared_folder, plan={"replan": False}, cluster={"compute": "real"})
    text = path.read_text() + '\n[security]\nlink = "sealed"\nkeys = "keys"\n'
    from_root(comm, lambda: pack_again(shared_folder / "data", shared_folder / "keys"))
    from_root(comm, lambda: path.write_text(text) and None)

    class Blind(type(path)):
        def is_dir(self):
            return False

    def train_where(sees, **more):
        with monkeypatch.context() as blind:
            if not sees:
                blind.setattr(preparation, "Path", Blind)
            return train(comm, path, lambda *told: None, **more)

    kept = []
    really = preparation.scatter_shards

    def scatter(*arguments, **more):
        kept.append(really(*arguments, **more))
        return kept[-1]

    monkeypatch.setattr(preparation, "scatter_shards", scatter)
    summary = train_where(comm.rank >= 2, name="mine")
    of_rank = gather_json(comm, [list(local.shards) for local in kept])
    assert [other for _, other in of_rank[:2]] == [[], []]
    cloud = [*of_rank[0][0], *of_rank[1][0]]
    assert len(cloud) > 10
    assert max(cloud) < 30
    assert sorted([*cloud, *of_rank[2][0], *of_rank[3][0]]) == [*range(60)]
    again = train_where(comm.rank >= 2, resume=shared_folder / "runs/mine")
    assert again["parameter_hash"] == summary["parameter_hash"]
    with pytest.raises(PolicyError, match=r"of those that do, 'site0', none may read it, says 'site1'"):
        train_where(comm.rank < 2, name="other")
    if comm.rank:
        return
    _, table = CHECKPOINT.read(shared_folder / "runs/mine/checkpoint.h5")
    assert len(table["sealed"]) == 2  # one a site
    page = write_report(shared_folder / "runs/mine").read_text()
    assert "train 30 for site0 and site1 alone, 30 for site1 alone, sealed at rest" in page
    assert verify_steps(shared_folder / "runs/mine")["parameter_hash"] == summary["parameter_hash"]
    with pytest.raises(SecurityError, match="name the folder of keys"):
        evaluate_run(MPI.COMM_SELF, shared_folder / "runs/mine")
    found = evaluate_run(MPI.COMM_SELF, shared_folder / "runs/mine", keys=shared_folder / "keys")
    assert found["samples"] == 60
