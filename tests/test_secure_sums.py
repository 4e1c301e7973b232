"""Secure sums: the hub learns the sum of all sites, and nothing else of what any has sent."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rebalancing import lab, lines_of
from test_sealed import Watched, keys_of

import isthmus
from isthmus.collectives.allreduce import Allreduce
from isthmus.collectives.masked import SecureSum
from isthmus.compression.fixed_point import FixedPoint
from isthmus.errors import NoDeviceError, NonFiniteError, SecurityError, SettingsError
from isthmus.jobs import train as job
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.links.on_device import Host
from isthmus.links.sealed import TAG_NBYTES, agree_on_keys
from isthmus.links.world import all_gather
from isthmus.models import Perceptron
from isthmus.security.masks import Masking, Stream, revealed_nbytes, unmask

HUB = 0


class Played:
    """A sum of several sites in one process, some of which are lost on the way."""

    def __init__(self, sites, dtype, how, draw):
        self.sites, self.dtype, self.how, self.draw = range(sites), np.dtype(dtype), how, draw
        pairs = {frozenset((a, b)): draw.bytes(32) for a in self.sites for b in self.sites if a < b}
        self.masking = {
            site: Masking(
                site,
                {
                    other: pairs[frozenset((site, other))]
                    for other in self.sites
                    if other not in (site, HUB)
                },
                how == "reveal",
            )
            for site in self.sites
            if site != HUB
        }
        top = ((1 << (8 * self.dtype.itemsize - 1)) - 1) // sites
        self.numbers = draw.integers(-top, top + 1, (sites, 97))
        self.codes = self.numbers.astype(self.dtype)

    def sent(self, site, number, among):
        vector = self.codes[site].copy()
        for mask in self.masking[site].begin(number, among):
            mask.mask(vector)
        return vector

    def sum(self, number, lost):
        """Return the sum, and whose it is. lost: "before" it sends, "again": before it does once more,
        "telling": before it tells its seeds -> sites."""
        among = set(self.sites)
        came = {site: self.sent(site, number, among) for site in among - {HUB} - lost["before"]}
        missing = among - {HUB} - set(came)
        while missing and self.how == "repeat":
            among -= missing
            missing = lost["again"] & among
            came = {site: self.sent(site, number, among) for site in among - {HUB} - missing}
        if self.how == "repeat":
            total = np.sum(list(came.values()), axis=0, dtype=self.dtype)
            return total + self.codes[HUB], {HUB, *came}
        silent = lost["telling"] & set(came)
        told = {site: self.masking[site].reveal({HUB, *came}) for site in came if site not in silent}
        if silent:  # what they alone know stays in the sum: it is made again without them
            among = {HUB, *came} - silent
            missing = lost["again"] & among
            came = {site: self.sent(site, number, among) for site in among - {HUB} - missing}
            told = {site: self.masking[site].reveal({HUB, *came}) for site in came}
        total = np.sum(list(came.values()), axis=0, dtype=self.dtype)
        unmask(total, list(came), sorted(missing), told)
        return total + self.codes[HUB], {HUB, *came}


def test_a_thousand_sums_are_exact_whoever_is_lost_and_when():
    for seed in range(1000):
        draw = np.random.default_rng(seed)
        sites, how = int(draw.integers(3, 9)), ("repeat", "reveal")[seed % 2]
        played = Played(sites, (np.uint8, np.uint16)[seed // 2 % 2], how, draw)
        count = min(int(draw.integers(0, 3)), sites - 3)
        gone = draw.permutation(np.arange(1, sites))[:count].tolist()
        lost = {"before": set(), "again": set(), "telling": set()}
        phases = ("before", "again") if how == "repeat" else ("before", "telling", "again")
        for site in gone:
            lost[phases[draw.integers(len(phases))]].add(site)
        total, whose = played.sum(seed, lost)
        exact = sum(played.numbers[site] for site in whose)
        assert (total.view(f"i{total.itemsize}") == exact).all(), (seed, sites, how, lost)
        assert lost["before"].isdisjoint(whose)


def test_what_is_sent_is_uniform_and_never_the_same_mask():
    played = Played(4, np.uint8, "reveal", np.random.default_rng(1))
    played.codes = np.zeros((4, 1 << 18), np.uint8)
    first, second = (played.sent(1, number, range(4)) for number in (7, 8))
    for sent in (first, first - second):
        counts = np.bincount(sent, minlength=256)
        assert ((counts - 1024) ** 2 / 1024).sum() < 400  # 255 degrees: beyond 400 in 1e-8 of cases
    again = Played(4, np.uint8, "repeat", np.random.default_rng(1)).masking[1]
    assert len({stream.encryptor for stream in again.begin(3, range(4))}) == 2  # none with the hub


def test_a_stream_is_aes_in_counter_mode_however_it_is_cut():
    seed = bytes(range(32))
    whole = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(200_000))
    for dtype in (np.uint8, np.uint16):
        total = np.zeros(200_000 // np.dtype(dtype).itemsize, dtype)
        stream = Stream(seed, 1)
        for part in (slice(0, 32), slice(32, 60_032), slice(60_032, None)):
            stream.mask(total[part])
        assert total.tobytes() == whole


def test_a_site_tells_nothing_that_would_show_what_another_has_sent():
    masking = Played(5, np.uint8, "reveal", np.random.default_rng(2)).masking[1]
    masking.begin(0, range(5))
    with pytest.raises(SecurityError, match="of fewer than 3"):
        masking.reveal([0, 1])
    assert len(masking.reveal([0, 1, 2, 4])) == revealed_nbytes(1)
    with pytest.raises(SecurityError, match="has told them already"):
        masking.reveal([0, 1, 3, 4])  # the other half of what hides sites 2 and 3
    with pytest.raises(SecurityError, match="has done so already"):
        masking.begin(0, range(5))
    with pytest.raises(SecurityError, match="of fewer than 3"):
        masking.begin(1, [0, 1])
    quiet = Played(5, np.uint8, "repeat", np.random.default_rng(2)).masking[1]
    quiet.begin(0, range(5))
    with pytest.raises(SecurityError, match="never will"):
        quiet.reveal(range(5))


@settings(max_examples=60)
@given(
    sites=st.integers(3, 127),
    weights=st.lists(st.floats(0, 1), min_size=3, max_size=8),
    bits=st.sampled_from([8, 16]),
)
def test_weights_add_up_behind_the_entries(sites, weights, bits):
    wires = FixedPoint(bits, max(sites, len(weights)))
    total = np.zeros(wires.digits, wires.dtype)
    for weight in weights:
        digits = np.empty_like(total)
        wires.encode_weight(weight, digits)
        total += digits
    assert wires.decode_weight(total) == pytest.approx(sum(weights), abs=1e-7 * len(weights) + 2e-7)


def test_codes_are_what_numpy_makes_and_residuals_what_they_do_not_say():
    draw, wires = np.random.default_rng(3), FixedPoint(8, 5)
    vector, residual = draw.normal(size=(2, 1000)).astype("f4")
    ranges = draw.uniform(0.1, 2, 4).astype("f4")
    each = np.repeat(ranges, 256)[:1000]
    levels = np.float32(25)
    whole = vector + residual
    expected = np.clip(whole * (levels / each), -levels, levels).round().astype("i1")
    codes = np.empty(1000, "u1")
    kept = residual.copy()
    wires.encode_codes(vector, kept, ranges, codes)
    assert (codes.view("i1") == expected).all()
    assert (kept == whole - expected * (each / levels)).all()
    assert (np.abs(expected) == 25).any()  # beyond the range it is cut, and the rest is kept
    alone = np.empty_like(codes)
    wires.encode_codes(whole, None, ranges, alone)
    assert (alone == codes).all()
    decoded, before = np.empty(1000, "f4"), ranges.copy()
    wires.decode_codes(codes, ranges, decoded)
    assert (decoded == expected * (each / levels)).all()
    largest = [np.abs(decoded[first : first + 256]).max() for first in range(0, 1000, 256)]
    assert (ranges == np.maximum(largest, before * np.float32(0.9))).all()
    wires.decode_codes(np.zeros(1000, "u1"), ranges, decoded)
    assert (ranges < before).all()


@pytest.mark.ranks(5)
def test_sums_over_ranks_are_those_of_the_codes_and_cost_a_byte_an_entry(comm, shared_folder):
    size, sites = 3000, (2, 1, 1, 1)
    folder = keys_of(comm, shared_folder, *(f"site{number}" for number in range(4)))
    left = []
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as plain:
        with pytest.raises(ValueError, match="takes sealed links"):
            Allreduce(plain, size, secure=SecureSum())
        keys = agree_on_keys(plain.cluster, plain.world, plain.site, folder)
        sealed = plain.sealed_by(keys)
        tiers = sealed.through(lambda comm, ranks: Watched(comm, ranks, left))
        with pytest.raises(ValueError, match=r"leave out the compressor Int8\("):
            Allreduce(tiers, size, compressor=isthmus.Int8(), secure=SecureSum())
        with pytest.raises(ValueError, match='with "hierarchical", not with "ring"'):
            Allreduce(tiers, size, "ring", secure=SecureSum())
        world, draw = tiers.world, np.random.default_rng(comm.rank)
        vectors = draw.normal(scale=0.02, size=(12, size)).astype("f4")
        exact = Allreduce(tiers, size, weight=1 + world.rank)
        for how, bits, most in (("repeat", 8, 0.02), ("reveal", 8, 0.02), ("repeat", 16, 0.0005)):
            secure = SecureSum(how, bits, goes_on=True)
            allreduce = Allreduce(
                tiers,
                size,
                weight=1 + world.rank,
                secure=secure,
                buckets=[slice(2000, size), slice(0, 2000)],
                chunk_nbytes=1500,
            )
            wanted = np.zeros(size, "f8")
            found = wanted.copy()
            for vector in vectors:
                left.clear()
                wanted += exact(vector)
                left.clear()
                mean = allreduce(vector)
                found += mean
            own = tiers.cluster.ranks_of_site(tiers.site_name)
            across = [message for rank, message in left if rank not in own]
            # With feedback what is left out of one sum is in the next: sums of sums stay together.
            assert np.abs(found - wanted).max() < 3 * most, (how, bits)
            for rank in range(world.size):
                assert comm.bcast(mean.tobytes(), rank) == mean.tobytes()
            predicted = allreduce.predicted_nbytes()
            assert allreduce.sent_nbytes == {way: 12 * n for way, n in predicted.items()}
            assert sum(len(each) + TAG_NBYTES for each in across) == predicted["link"]
            if across and tiers.site_index != tiers.cluster.tree.hub:
                payload = sum(map(len, across)) / (size * bits / 8)
                assert payload < 1.02
                values = np.frombuffer(b"".join(across), "u1")
                assert len(set(values.tolist())) > 250  # masked: no code is rare
            # A site whose sum is not finite is left out, and the others' count for all.
            broken = vectors[0].copy()
            if world.rank == 3:
                broken[5] = np.nan
            before = allreduce.memory.copy()
            partial = allreduce(broken)
            assert allreduce.tell_left_out() == [(13, [2])]
            assert np.isfinite(partial).all()
            if world.rank == 3:
                assert (allreduce.memory[:size] == before[:size]).all()
            assert comm.bcast(partial.tobytes(), 0) == partial.tobytes()
            weights = np.array([1 + rank for rank in range(5) if rank != 3])
            given = np.stack(
                [vec for rank, vec in enumerate(all_gather(world, vectors[0])) if rank != 3]
            )
            mean = (weights[:, None] * given).sum(0) / weights.sum()
            if bits == 16:
                assert np.abs(partial - mean).max() < 0.002
            allreduce(vectors[0])
            assert allreduce.tell_left_out() == []
            if world.rank in (3, 4):
                broken[5] = np.inf
            allreduce(broken)
            assert not allreduce.finite  # the sum of two would tell each what the other has sent
            stops = Allreduce(tiers, size, secure=SecureSum(how, bits))
            if world.rank == 4:
                broken[5] = np.nan
            stops(broken)
            assert not stops.finite
            state, again = allreduce.state(), vectors[1]
            copied = {name: array.copy() for name, array in state.items()}
            one = allreduce(again)
            resumed = Allreduce(tiers, size, weight=1 + world.rank, secure=secure)
            resumed.load(copied)
            assert resumed(again).tobytes() == one.tobytes()


@pytest.mark.ranks(3)
@pytest.mark.parametrize("how", ["repeat", "reveal"])
def test_secure_sums_that_are_under_way_at_once_have_the_bits_of_those_in_turn(comm, shared_folder, how):
    folder = keys_of(comm, shared_folder, "site0", "site1", "site2")
    vectors = np.random.default_rng(comm.rank).normal(size=(2, 3, 700)).astype("f4")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1, 1)), keys=folder) as tiers:
        pairs = [[Allreduce(tiers, 700, secure=SecureSum(how)) for _ in range(2)] for _ in range(2)]
        for first, second in zip(*vectors):
            turned = [each(vector).tobytes() for each, vector in zip(pairs[0], (first, second))]
            for each, vector in zip(pairs[1], (first, second)):
                each.start(vector)
            assert [each.finish().tobytes() for each in pairs[1]] == turned


def no_room(*_):
    raise MemoryError("1 GB")


@pytest.mark.ranks(5)
@pytest.mark.parametrize("size", [600, 0])
@pytest.mark.parametrize("how", ["repeat", "reveal"])
def test_what_is_wrong_with_one_vector_is_raised_on_all_though_the_sum_goes_on(
    comm, shared_folder, monkeypatch, how, size
):
    folder = keys_of(comm, shared_folder, *(f"site{number}" for number in range(4)))
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1, 1, 2)), keys=folder) as tiers:
        allreduce, last = Allreduce(tiers, size, secure=SecureSum(how, goes_on=True)), comm.size - 1
        good = np.ones(size, "f4")
        wanted = allreduce(good).tobytes()
        for step in range(3):
            before, vector = allreduce.memory.copy(), good
            with monkeypatch.context() as patch:
                if comm.rank == last:
                    if step == 0:
                        vector = good.astype("f8")
                    elif step == 1:
                        allreduce.fail(ValueError("no float64 here"))
                    else:
                        patch.setattr(Host, "empty", staticmethod(no_room))
                with pytest.raises((ValueError, NoDeviceError), match=f"(float64|1 GB).* {last}"):
                    allreduce(vector)
            assert (allreduce.memory == before).all()
            assert allreduce.tell_left_out() == []
            allreduce(good)
        assert size or wanted == b""


@pytest.mark.ranks(4)
def test_a_sum_without_a_site_is_a_mean_by_the_weights_of_now(comm, shared_folder):
    folder = keys_of(comm, shared_folder, *(f"site{number}" for number in range(4)))
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1, 1, 1)), keys=folder) as tiers:
        allreduce = Allreduce(tiers, 100, secure=SecureSum(bits=16, goes_on=True), error_feedback=False)
        allreduce.reweigh((1, 2, 5, 8)[tiers.world.rank])
        if tiers.world.rank == 1:
            allreduce.fail(ValueError("not made"))
        vector = np.ones(100, "f4")
        with pytest.raises(ValueError, match="not made"):
            allreduce(vector)
        for _ in range(9):  # ranges become what they are to be
            allreduce(vector)
        mean = allreduce(vector * np.float32(np.nan if tiers.world.rank == 3 else 1))
        assert allreduce.tell_left_out() == [(11, [3])]
        assert np.abs(mean - 1).max() < 0.001


@pytest.mark.ranks(2)
def test_two_sites_have_no_secret_sum(comm, shared_folder):
    folder = keys_of(comm, shared_folder, "site0", "site1")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1)), keys=folder) as tiers:
        with pytest.raises(ValueError, match="3 sites at least, not 2"):
            Allreduce(tiers, 10, secure=SecureSum())


def secret(comm, folder, sites, **more):
    """Write the settings of a run over so many sites, and keys for each; return their path."""
    path = lab(comm, folder, (1,) * sites, training={"batch_size": 30, "epochs": 2, **more})
    keys_of(comm, folder, *(f"site{number}" for number in range(sites)))
    if comm.rank == 0:
        table = tomllib.loads(path.read_text())
        del table["allreduce"]
        table["plan"]["replan"] = False
        table["cluster"]["compute"] = "real"
        table["security"] = {"link": "sealed", "keys": "keys", "record": "chained"}
        table["privacy"] = {"secure_sum": "reveal", "bits": 8}
        table["run"]["checkpoint_every"] = 25
        path.write_text(tomli_w.dumps(table))
    comm.Barrier()
    return path


@pytest.mark.ranks(4)
def test_a_job_with_secure_sums_learns_resumes_and_goes_on_without_a_site(
    comm, shared_folder, monkeypatch
):
    path = secret(comm, shared_folder, 4, on_non_finite="skip")
    told = []
    whole = job.train(comm, path, lambda line, passing=False: told.append(line))
    lines = comm.bcast(lines_of(whole, "replicas") if comm.rank == 0 else None)
    assert len(lines) == whole["steps"] + 1  # compared after every step, and at the end
    assert whole["accuracy"] > 0.7
    for link in whole["links"]:
        assert link["sent_nbytes"] == link["predicted_nbytes"]
    again = job.train(comm, path, lambda line, passing=False: None, resume=whole["folder"])
    assert again["parameter_hash"] == whole["parameter_hash"]
    # A site whose gradient is not finite in one step.
    real = Perceptron.gradient

    def broken(model, parameters, features, targets, gradient, ready=None):
        calls.append(None)
        if comm.rank == 2 and len(calls) == 5:
            features = features * np.float32(np.nan)
        return real(model, parameters, features, targets, gradient, ready)

    calls = []
    monkeypatch.setattr(Perceptron, "gradient", broken)
    partial = job.train(comm, path, lambda line, passing=False: told.append(line))
    if comm.rank == 0:
        assert [line["sums"] for line in lines_of(partial, "left_out")] == [[[5, [2]]]]
        assert "sum 5 went on without site2: not finite" in told
    assert partial["parameter_hash"] != whole["parameter_hash"]
    if comm.rank == 0:
        table = tomllib.loads(path.read_text())
        table["training"]["on_non_finite"] = "stop"
        path.write_text(tomli_w.dumps(table))
    comm.Barrier()
    calls = []
    with pytest.raises(NonFiniteError, match="step 5: .*ranks: 2"):
        job.train(comm, path, lambda line, passing=False: None)


@pytest.mark.parametrize(
    ("section", "values", "wrong"),
    [
        ("security", {"link": "clear"}, r'needs \[security\] link = "sealed"'),
        ("allreduce", {"algorithm": "mpi"}, "mpi"),
        ("allreduce", {"algorithm": "ring"}, 'not "ring"'),
        ("allreduce", {"compressor": "top_k"}, 'leave out allreduce.compressor, here "top_k"'),
        ("strategy", {"kind": "buffered"}, '"buffered" sends more beside its vectors'),
        ("privacy", {"bits": 4}, "privacy.bits"),
        ("privacy", {"secure_sum": "off", "bits": 16}, "privacy.bits is of secure sums"),
    ],
)
def test_what_secure_sums_cannot_keep_is_refused(tmp_path, section, values, wrong):
    table = tomllib.loads(Path("experiments/fashion_two_sites.toml").read_text())
    table["allreduce"] = {}
    table["security"] = {"link": "sealed", "keys": "keys"}
    table["privacy"] = {"secure_sum": "repeat", "bits": 8}
    table[section] = table.get(section, {}) | values
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(SettingsError, match=wrong):
        RunSettings.from_toml(tmp_path / "run.toml")


def test_a_plan_for_two_sites_says_that_a_secure_sum_takes_three(tmp_path):
    table = tomllib.loads(Path("experiments/fashion_two_sites.toml").read_text())
    table["allreduce"] = {}
    table["cluster"]["file"] = str(Path("experiments/two_sites.toml").resolve())
    table["security"] = {"link": "sealed", "keys": "keys"}
    table["privacy"] = {"secure_sum": "repeat"}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(SettingsError, match=r"\[privacy\] with .*: a secure sum takes 3 sites at least"):
        make_plan(tmp_path / "run.toml")
