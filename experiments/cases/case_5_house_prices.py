"""Case 5, house prices: a regression federated over edge, region and cloud, made smaller, and deployed.

    python experiments/cases/case_5_house_prices.py          half a minute on two cores

The table is scikit-learn's diabetes (Efron, Hastie, Johnstone and Tibshirani 2004): ten features of 442
patients, and how far their illness went in a year. No package ships a table of house prices whose terms
are clear. A fifth of the rows is held out, and another fifth chooses the round and the smaller model.
"""

from pathlib import Path

import numpy as np
from claims import Claim, isthmus, tell

SETTINGS = Path(__file__).with_suffix(".toml")


def claims(folder):
    sets = pack(folder)
    run = isthmus("train", SETTINGS, ranks=5)
    model = Path(run["folder"])
    error = isthmus("evaluate", model, "--best")["metrics"]["loss"]
    pooled = least_squares_error(sets)
    yield Claim(
        "squared error on held-out rows, of least squares on all rows", error / pooled, at_most=1.1
    )
    sent = {(each["source"], each["target"]): each for each in run["links"]}
    up = sent["region", "cloud"]["sent_nbytes"]
    edges = sum(sent[site, "region"]["sent_nbytes"] for site in ("north", "east", "west"))
    yield Claim("bytes from the region up, of those that its sites send it", up / edges, at_most=0.34)
    counted = sum(each["sent_nbytes"] for each in run["links"])
    formula = sum(each["predicted_nbytes"] for each in run["links"])
    yield Claim("bytes over all links are the formula's", counted, equal=formula)

    ladder = ("--weights", "int8", "--weights", "int4", "--weights", "pruned")
    widths = ("--keep", 1, "--keep", 0.5, "--keep", 0.25)
    lesson = ("--teacher", model, "--accuracy-loss", 0.03)
    made = isthmus("compress", model, "--best", *ladder, *widths, *lesson)
    whole, kept = made["rungs"][0], next(x for x in made["rungs"] if x["name"] == made["best"])
    smaller = whole["nbytes"] / kept["nbytes"]
    yield Claim(
        f"bytes of weights, over those of the model kept ({kept['name']})", smaller, at_least=2.4
    )

    answers = folder / "answers.npy"
    isthmus("predict", made["folder"], f"{folder / 'test.npz'}:features", "-o", answers)
    deployed = float(np.mean((np.load(answers).reshape(-1) - sets["test"][1]) ** 2))
    yield Claim("its squared error at the edge, of the whole model's", deployed / error, at_most=1.05)


def pack(folder):
    """Pack three fifths, a fifth and a fifth of the rows; return name -> (features, targets).

    Features and targets are brought to mean 0 and variance 1 by the training rows.
    """
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(targets))
    rows = dict(zip(("train", "validation", "test"), np.split(order, [264, 353])))
    train = rows["train"]
    features = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    targets = (targets - targets[train].mean()) / targets[train].std()
    sets = {}
    for name, chosen in rows.items():
        file = folder / f"{name}.npz"
        sets[name] = features[chosen].astype(np.float32), targets[chosen].astype(np.float32)
        np.savez(file, features=sets[name][0], targets=sets[name][1])
        arrays = ("-a", f"features={file}:features", "-a", f"targets={file}:targets")
        isthmus("pack", folder / name, *arrays, "--shards", 6)
    return sets


def least_squares_error(sets):
    """Return the squared error on held-out rows of the line that fits all others best."""
    features, targets = (np.concatenate([sets["train"][k], sets["validation"][k]]) for k in (0, 1))
    solution = np.linalg.lstsq(np.column_stack([features, np.ones(len(targets))]), targets)[0]
    held_out, wanted = sets["test"]
    guessed = np.column_stack([held_out, np.ones(len(wanted))]) @ solution
    return float(np.mean((guessed - wanted) ** 2))


if __name__ == "__main__":
    tell(claims, "sklearn")
