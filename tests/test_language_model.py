"""Language models of characters: a convex one whose optimum is known, and the transformer's study."""

import json
import pydoc_data.topics

import numpy as np
import pytest
import tomli_w

import isthmus
from isthmus.errors import ShardError
from isthmus.toml_files import read_toml

TEXT = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
"""A text that comes with every Python."""


@pytest.fixture(autouse=True)
def experiments(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    return repository / "experiments"


@pytest.fixture
def counts_of_site():
    from language_model import coded, pair_counts

    codes, kinds = coded([TEXT[:40_000], TEXT[-40_000:]])
    return [pair_counts([each], kinds) for each in codes]


def test_no_strategy_is_below_the_conditional_entropy_and_all_come_near(counts_of_site):
    from language_model import bigram_rows

    rows, optimum = bigram_rows(counts_of_site)
    found = {name: bits for name, _, bits in rows}
    assert min(found.values()) > optimum
    assert found["8 local steps"] < optimum + 0.1
    assert found["DiLoCo, 8 steps"] < optimum + 0.04
    assert found["DiLoCo, 8 steps"] < found["synchronous"]  # with an eighth of the exchanges
    assert {name: sent for name, sent, _ in rows}["8 local steps"] == 25


def test_the_gradient_is_that_of_the_bits_and_vanishes_at_the_optimum(counts_of_site):
    from language_model import bigram_gradient, bits

    both = sum(counts_of_site)
    kinds = len(both)
    optimum = np.log(np.maximum(both, 1e-300))
    shares = [each.sum() / both.sum() for each in counts_of_site]
    gradient = bigram_gradient(counts_of_site)
    mean = sum(share * gradient(site, optimum.ravel(), 0) for site, share in enumerate(shares))
    assert np.abs(mean).max() < 1e-12
    assert bits(both, optimum) == pytest.approx(bits(both), abs=1e-12)
    logits, row = np.random.default_rng(0).normal(size=(kinds, kinds)), int(both.sum(axis=1).argmax())
    moved = logits.copy()
    moved[row, 3] += 1e-5
    slope = (bits(both, moved) - bits(both, logits)) / 1e-5 * np.log(2)
    own = sum(share * gradient(site, logits.ravel(), 0) for site, share in enumerate(shares))
    share_of_row = both[row].sum() / both.sum()
    assert own.reshape(kinds, kinds)[row, 3] * share_of_row == pytest.approx(slope, rel=1e-3)


def test_a_machine_without_fortunes_is_told_how_to_get_them(tmp_path):
    from language_model import read_texts

    with pytest.raises(ShardError, match="apt-get install fortunes"):
        read_texts(tmp_path)
    (tmp_path / "art").write_text("one\n%\ntwo\n")
    (tmp_path / "art.dat").write_bytes(b"\0")
    (tmp_path / "art.u8").symlink_to("art")
    assert read_texts(tmp_path) == ["one\n%\ntwo\n"]


def test_the_transformer_has_a_million_parameters_and_does_not_look_ahead(tmp_path):
    torch = pytest.importorskip("torch")
    from language_model import LENGTH, loss, make_net

    torch.manual_seed(0)
    net = make_net()
    assert 0.9e6 < sum(each.numel() for each in net.parameters()) < 1.1e6
    blocks = torch.randint(0, 128, (2, LENGTH))
    later = blocks.clone()
    later[:, 40:] += 1
    with torch.no_grad():
        one, other = (net(each % 128).reshape(2, LENGTH, 128) for each in (blocks, later))
    assert torch.allclose(one[:, :40], other[:, :40], atol=1e-5)
    assert not torch.allclose(one[:, 40], other[:, 40], atol=1e-3)
    small = {"width": 16, "layers": 1, "heads": 2}
    begun = [each.detach().numpy().ravel() for each in make_net(**small).parameters()]
    np.save(tmp_path / "start.npy", np.concatenate(begun))
    again = make_net(**small, start=tmp_path / "start.npy").parameters()
    assert all(np.array_equal(each.detach().numpy().ravel(), old) for each, old in zip(again, begun))
    scores = torch.zeros(2, LENGTH * 128)
    assert loss(scores, blocks).item() == pytest.approx(np.log(128), rel=1e-6)


@pytest.mark.slow
def test_a_row_of_the_transformer_is_learnt_and_timed_and_the_study_goes_on(
    experiments, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    import language_model
    import language_model_study

    monkeypatch.setattr(language_model_study, "read_texts", lambda: [TEXT[:30_000], TEXT[-30_000:]])
    table = read_toml(experiments / "language_model_study.toml", ValueError)
    table |= {
        "results": str(tmp_path / "results"),
        "model": {"width": 16, "layers": 1, "heads": 2},
        "blocks": 320,
        "trial_blocks": 128,
        "judged_blocks": 16,
        "training": table["training"] | {"warmup_steps": 1, "batch_size": 16, "learning_rates": [0.01]},
        "start": {"blocks": 320, "batch_size": 16, "learning_rate": 0.01},
        "link": {"latency_seconds": 0.02, "bytes_per_second": 1e6},
        "rows": [table["rows"][1] | {"strategy": {"kind": "local_steps", "every": 4}}],
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(table))
    language_model_study.run(tmp_path / "study.toml")
    text = (tmp_path / "results.jsonl").read_text()
    lines = list(map(json.loads, text.splitlines()))
    start, found, timed = lines
    assert [line["part"] for line in lines] == ["start", "run", "seconds"]
    assert start["sent_nbytes"] == 0  # the cloud was alone
    assert found["curve"][0][1] < start["curve"][0][1]  # and the run has begun where it was
    assert found["learning_rate"] == 0.01
    assert 0 < found["bits"] < 7
    assert [step for step, *_ in found["curve"]] == [20]
    size = sum(
        each.numel()
        for each in language_model.make_net(
            kinds=len(set(TEXT[:30_000] + TEXT[-30_000:])), **table["model"]
        ).parameters()
    )
    assert found["sent_nbytes"] == 5 * 2 * isthmus.Int8().wire_nbytes(size)  # 20 steps, both ways
    assert timed["step_seconds"] > 0.02 / 4
    assert 0 < timed["computing_share"] < 1
    assert "| 32 local steps, int8 | 0.01 |" in (tmp_path / "results.md").read_text()
    language_model_study.run(tmp_path / "study.toml")
    assert (tmp_path / "results.jsonl").read_text() == text  # nothing is done twice
