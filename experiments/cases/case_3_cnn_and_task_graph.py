"""Case 3, a CNN and a task graph: the document's network over cloud and edge, its pipeline by each rule.

    python experiments/cases/case_3_cnn_and_task_graph.py          40 seconds on two cores

The images are Fashion-MNIST (MIT), which lies in data/; the document trains on random numbers.
"""

import json
from pathlib import Path

import numpy as np
from claims import HERE, Claim, isthmus, program, tell

SETTINGS = Path(__file__).with_suffix(".toml")
RULES = {"greedy": "least sum of T_ij", "min_load": "least load"}


def claims(folder):
    run = isthmus("train", SETTINGS, "--name", "cnn", ranks=4)
    yield Claim("accuracy on 2,000 held-out images", run["accuracy"], at_least=0.7)

    methods = (*RULES, "best")
    asked = [word for method in methods for word in (HERE / "pipeline.toml", method)]
    tables = dict(zip(methods, program("graphs.py", *asked, ranks=4)))
    ours = tables["best"]
    for rule, words in RULES.items():
        predicted = tables[rule]["seconds"] / ours["seconds"]
        yield Claim(f"{words}: predicted seconds, of ours", predicted, at_least=1.2)
        measured = tables[rule]["measured_seconds"] / ours["measured_seconds"]
        yield Claim(f"{words}: measured seconds, of ours", measured, at_least=1.05)
    for rule, table in tables.items():
        held = table["seconds"] / table["measured_seconds"]
        name = f"{RULES.get(rule, 'ours')}: predicted seconds, of the clock's"
        yield Claim(name, held, at_least=0.5, at_most=1.01)
    even = imbalance(ours) / imbalance(tables["min_load"])
    yield Claim("imbalance of ours, of that of the least load, which is slower", even, at_least=1.2)
    flow = max(link_seconds(ours) / link_seconds(tables[rule]) for rule in RULES)
    yield Claim("seconds that ours keeps the link busy, of the rules'", flow, at_most=0.8)
    accuracy = json.loads((folder / "evaluated.json").read_text())["accuracy"]
    yield Claim("accuracy after the pipeline, on 400 other images", accuracy, at_least=0.65)


def imbalance(table):
    """Return the document's sum of |L_j - L|: seconds that ranks compute, about their mean."""
    load = np.zeros(4)
    for task in table["tasks"]:
        load[task["rank"]] += task["end_seconds"] - task["start_seconds"]
    return float(np.abs(load - load.mean()).sum())


def link_seconds(table):
    """Return the document's data flow, the sum of T_i: seconds that messages take the link."""
    return sum(each["busy_seconds"] for each in table["messages"] if each["pipes"])


if __name__ == "__main__":
    tell(claims, "torch")
