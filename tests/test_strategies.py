"""The contract of strategies: a job, its checkpoints and its report ask a strategy, and know none."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_rebalancing import lab, lines_of

import isthmus
from isthmus.jobs.train import train
from isthmus.links.agreement import from_root
from isthmus.pages.report import write_report
from isthmus.timing.stages import site_sum_terms
from isthmus.training.strategies import STRATEGIES
from isthmus.training.strategies.strategy import Exchange, Member, Strategy, exchanges_per_step
from isthmus.training.strategies.synchronous import Synchronous

SIZE = 16 * 8 + 8 + 8 * 3 + 3  # of the lab's model
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class EveryThird(Strategy):
    """Sites go their own ways for three steps, and then go on from where they are on average."""

    def exchanges(self, steps):
        return (Exchange(step) for step in range(1, steps + 1) if step % 3 == 0 or step == steps)

    def join(self, sums, steps):
        return Wanderer(
            sums.of_site(), sums.of_all(buckets=None), {each.step for each in self.exchanges(steps)}
        )


class Wanderer(Member):
    def __init__(self, gradients, mean, due):
        super().__init__(gradients, mean)
        self.mean, self.due = mean, due

    def begin(self, parameters):
        self.start = parameters.copy()

    def anchor(self, parameters):
        return self.start

    def after_step(self, parameters):
        super().after_step(parameters)
        self.agreed = self.step in self.due
        if self.agreed:
            parameters[:] = self.start = self.start + self.mean(parameters - self.start)

    def state(self):
        return super().state() | {"start": self.start}

    def load(self, state):
        super().load(state)
        self.start = state["start"].copy()


def quiet(line, passing=False):
    pass


@pytest.mark.slow
@pytest.mark.ranks(4)
@pytest.mark.parametrize("link", [{}, {"latency_seconds": 0.02}])
def test_a_strategy_of_20_lines_trains_resumes_within_a_round_and_is_told_right(
    comm, shared_folder, monkeypatch, link
):
    monkeypatch.setitem(STRATEGIES, "every_third", EveryThird)
    path = lab(
        comm,
        shared_folder,
        link=link,
        plan={"replan": False},
        cluster={"links": "paced"} if link else {},
    )

    def run(strategy, **options):
        if comm.rank == 0:
            text = path.read_text().replace('strategy = "every_third"\n', "")
            path.write_text((f'strategy = "{strategy}"\n' if strategy else "") + text)
        comm.Barrier()
        summary = train(comm, path, quiet, **options)
        return summary, from_root(
            comm, lambda: json.loads(Path(summary["folder"], "plan.json").read_text())
        )

    summary, plan = run("every_third")
    again, _ = run("every_third", resume=summary["folder"])  # from the checkpoint of step 35
    assert again["parameter_hash"] == summary["parameter_hash"]
    assert (again["loss"], again["accuracy"]) == (summary["loss"], summary["accuracy"])
    every_step, plan_of_all = run(None)
    assert every_step["parameter_hash"] != summary["parameter_hash"]

    wire = isthmus.Int8(16).wire_nbytes(SIZE)
    assert {link["sent_nbytes"] for link in summary["links"]} == {20 * wire}
    assert {link["predicted_nbytes"] for link in summary["links"]} == {20 * wire}
    assert {link["sent_nbytes"] for link in every_step["links"]} == {60 * wire}
    together = sum(seconds for name, seconds in plan_of_all["terms"].items() if name != "compute")
    apart = sum(seconds for name, seconds in plan["terms"].items() if name != "compute")
    assert plan["terms"]["compute"] == plan_of_all["terms"]["compute"]
    inside = site_sum_terms(isthmus.Cluster.from_toml(path.parent / "cluster.toml"), SIZE)
    assert apart == pytest.approx(together / 3 + sum(inside.values()), rel=1e-6)
    of_term = {term["name"]: term for term in summary["terms"]}
    if link:  # an exchange of 20 ms in every third step is more than 5 ms of each
        assert of_term["links"]["measured_seconds"] > 0.005
    if comm.rank:
        return
    lines = lines_of(summary, "step")
    assert [line["step"] for line in lines if line["exchanged"]] == [*range(3, 61, 3)]
    compared = [line["step"] for line in lines_of(summary, "replicas")]
    assert all(step % 3 == 0 for step in compared), compared
    assert write_report(Path(summary["folder"])).exists()


def test_synchronous_exchanges_in_every_step_and_is_what_settings_without_a_strategy_mean():
    assert [each.step for each in Synchronous().exchanges(4)] == [1, 2, 3, 4]
    assert exchanges_per_step(Synchronous()) == 1
    assert exchanges_per_step(EveryThird()) == pytest.approx(1 / 3)
    assert STRATEGIES["synchronous"] is Synchronous is isthmus.Synchronous


def test_nobody_but_their_own_folder_knows_a_strategy_by_name():
    for path in sorted((ROOT / "src/isthmus").rglob("*.py")):
        if "strategies" in path.parts or path.name == "__init__.py":
            continue
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {kind.__name__ for kind in STRATEGIES.values()}, path


def test_a_round_counts_with_its_mean_so_that_what_ends_it_has_its_share():
    from isthmus.folders.terms import typical_terms

    quiet_step, exchange = {"compute": 2.0, "links": 0.0}, {"compute": 2.0, "links": 3.0}
    steps = [(quiet_step, False), (quiet_step, False), (exchange, True)] * 4 + [(quiet_step, False)]
    terms, seconds = typical_terms(steps)
    assert terms == {"compute": 2.0, "links": 1.0}
    assert seconds == 3.0
    assert typical_terms([(quiet_step, False)]) == ({"compute": 2.0, "links": 0.0}, 2.0)
    values = np.random.default_rng(0).random(9).tolist()
    assert typical_terms([({"links": value}, True) for value in values]) == (
        {"links": float(np.median(values))},
        float(np.median(values)),
    )
