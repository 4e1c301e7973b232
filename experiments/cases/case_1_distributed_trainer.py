"""Case 1, a distributed trainer: handwritten digits learnt over cloud and edge, and a city's video.

    python experiments/cases/case_1_distributed_trainer.py          half a minute on two cores

The digits are scikit-learn's: 1,797 images of 8 x 8 of the UCI repository (Alpaydin and Kaynak 1998,
CC BY 4.0). A fifth of them is held out. Network, optimiser, batches and epochs are the document's, so
that nothing was chosen on those.
"""

import shutil
from pathlib import Path

import city_video as video
import numpy as np
import tomli_w
from claims import HERE, Claim, isthmus, program, tell

SETTINGS = Path(__file__).with_suffix(".toml")


def claims(folder):
    pack_digits(folder)
    run = isthmus("train", SETTINGS, ranks=4)
    yield Claim("main job: accuracy on held-out digits", run["accuracy"], at_least=0.95)
    sent = sum(link["sent_nbytes"] for link in run["links"])
    predicted = sum(link["predicted_nbytes"] for link in run["links"])
    yield Claim("main job: bytes over the link are the formula's", sent, equal=predicted)

    own = program("digits_loop.py", ranks=4)
    yield Claim("isthmus.torch.Shared: accuracy on held-out digits", own["accuracy"], at_least=0.95)
    yield Claim("Shared: bytes of the cloud over the link", own["sent"], equal=own["predicted"])

    shares = {"planned": video.planned_frames(), "even": video.even_frames()}
    clock = analysed(folder, shares)
    formula = video.documents_seconds() / clock["even"]
    yield Claim("video: seconds by the document's formula, of the clock's", formula, at_most=0.8)
    ours = float(video.plan().seconds) / clock["planned"]
    yield Claim("video: seconds by our plan, of the clock's", ours, at_least=0.6, at_most=1.02)
    gain = clock["planned"] / clock["even"]
    yield Claim("video: planned shares, of the seconds of even ones", gain, at_most=0.97)


def pack_digits(folder):
    """Pack the images to folder/digits, and a fifth of them, held out, to folder/digits/validation."""
    from sklearn.datasets import load_digits

    features, targets = load_digits(return_X_y=True)
    file = folder / "digits.npz"
    np.savez(file, features=features.astype(np.float32), targets=targets)
    arrays = ("-a", f"features={file}:features", "-a", f"targets={file}:targets")
    mixed = ("--shuffle", 0, "--stratify", "--validation", 0.2, "--shards", 24)
    isthmus("pack", folder / "digits", *arrays, *mixed)


def analysed(folder, frames_of_nodes):
    """Return name -> seconds from the archive's first frame to the last count; counts must be right.

    frames_of_nodes: name -> how many frames each node gets.
    """
    for file in ("city.toml", "city_video.py"):
        shutil.copy(HERE / file, folder)
    asked = []
    for name, frames in frames_of_nodes.items():
        path = folder / f"video_{name}.toml"
        path.write_text(tomli_w.dumps(video.graph(name, frames)))
        asked += [path, "best"]
    seconds, wanted = {}, video.moving(video.video())
    for name, table in zip(frames_of_nodes, program("graphs.py", *asked, ranks=4)):
        if not np.array_equal(np.load(folder / f"moving_{name}.npy"), wanted):
            raise SystemExit(f"video_{name}: nodes have counted other pixels than one process does")
        measured = {task["name"]: task["measured_end_seconds"] for task in table["tasks"]}
        seconds[name] = measured["report"] - measured["archive"]
    return seconds


if __name__ == "__main__":
    tell(claims, "sklearn", "torch")
