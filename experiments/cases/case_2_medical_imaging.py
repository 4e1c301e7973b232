"""Case 2, medical imaging: ten hospitals learn together from images of tissue that stay where they are.

    python experiments/cases/case_2_medical_imaging.py          two minutes on two cores

The image is scikit-image's `immunohistochemistry`, 512 x 512 pixels of colon tissue in which the protein
FHL2 is stained brown and nuclei blue (of the CMMI, no known copyright restrictions). Each hospital has a
strip of it, cut into tiles of 16 x 16 shades of grey; the cloud has columns in the middle, from which
it validates and tests. What the centre of a tile is, background, protein or nucleus, is told by its
colours (Ruifrok and Johnston 2001), which no model sees.
"""

import shutil
from pathlib import Path

import numpy as np
from claims import Claim, isthmus, tell

from isthmus import Cluster, ShardSet, Workload, pack_shards, plan_shards
from isthmus.errors import PolicyError

HERE = Path(__file__).resolve().parent
CLUSTER = HERE / "case_2_hospitals.toml"
HOSPITALS = [f"hospital{number}" for number in range(10)]
TILE, CENTRE, STRIDE, BRIGHT = 16, slice(6, 10), 4, 190
COLUMNS = ((0, 192), (320, 512)), ((192, 256),), ((256, 320),)
"""Of the image: the hospitals', those for validation, and those for the test."""


def claims(folder):
    prepare(folder)
    yield Claim("images of hospital 0, asked for by the cloud", read_by_cloud(folder), equal="refused")
    edge = isthmus("chaos", HERE / "case_2_edge_model.toml", "--plan", HERE / "case_2_killed.toml")
    played = edge["runs"][0]
    Path(played["folder"]).rename(folder / "runs/edge")
    yield Claim(
        "a hospital is killed in round 17", played["outcome"], equal="restarted from its checkpoint"
    )
    bits = played["verified"].partition(",")[0]
    yield Claim("played again, without the kill", bits, equal="bits equal")
    cloud = isthmus("train", HERE / "case_2_cloud_model.toml", "--name", "cloud", ranks=11)
    yield Claim("accuracy on tiles of no hospital", cloud["accuracy"], at_least=0.85)
    yield Claim("bytes of images over links", cloud["received_nbytes"]["train"], equal=0)
    sent, formula = (
        sum(link[name] for link in cloud["links"]) for name in ("sent_nbytes", "predicted_nbytes")
    )
    yield Claim("bytes of models over sealed links", sent, equal=formula)
    answers = isthmus("infer", HERE / "case_2_answers.toml", ranks=11)["runs"]["least_pending"]
    kept = 1 - answers["from_cloud"] / answers["requests"]
    yield Claim("share that hospitals answer by themselves", kept, at_least=0.2)
    change = answers["accuracy"] - cloud["accuracy"]
    yield Claim("accuracy, against the cloud's for all", change, at_least=-0.02)
    yield Claim("answers that differ, computed again", answers["differing"], equal=0)
    yield from balance(folder)


def prepare(folder):
    """Make the sites' keys, and pack the tiles: a shard a hospital, sealed for it alone."""
    from skimage import color, data

    from isthmus.security.key_files import make_keys

    image = data.immunohistochemistry()
    grey = np.round(255 * color.rgb2gray(image)).astype(np.uint8)
    blue, _, brown = np.moveaxis(color.rgb2hed(image), -1, 0)
    height = len(grey) // len(HOSPITALS)
    mine = [
        _tiles(grey, brown - blue, (height * k, height * (k + 1)), COLUMNS[0])
        for k in range(len(HOSPITALS))
    ]
    for site in ("cloud", *HOSPITALS):
        make_keys(folder / "keys", site)
    own = [{"numbers": [number], "origin": site} for number, site in enumerate(HOSPITALS)]
    pack_shards(
        {name: np.concatenate([tiles[name] for tiles in mine]) for name in mine[0]},
        folder / "images",
        len(HOSPITALS),
        policy={"origin": "cloud", "shards": own},  # each is its origin's alone
        keys=folder / "keys",
        sealed=True,
    )
    for name, columns in (("validation", COLUMNS[1]), ("test", COLUMNS[2])):
        pack_shards(_tiles(grey, brown - blue, (0, len(grey)), columns), folder / name, 1)


def read_by_cloud(folder):
    """Return what comes of it where somebody with the cloud's key alone reads a hospital's shard."""
    keys = folder / "keys-of-cloud"
    keys.mkdir(mode=0o700)
    for file in ("cloud.key", "cloud.pub", *(f"{site}.pub" for site in HOSPITALS)):
        shutil.copy2(folder / "keys" / file, keys)
    try:
        ShardSet.open(folder / "images", keys=keys).read(0)
    except PolicyError:
        return "refused"
    return "read"


def _tiles(grey, browner, rows, columns):
    """Return features uint8[tiles, TILE, TILE] and targets: 0 background, 1 protein, 2 nucleus."""
    corners = [
        (row, column)
        for row in range(rows[0], rows[1] - TILE + 1, STRIDE)
        for first, last in columns
        for column in range(first, last - TILE + 1, STRIDE)
    ]
    cut = [(slice(row, row + TILE), slice(column, column + TILE)) for row, column in corners]
    features = np.array([grey[place] for place in cut])
    stain = np.array([browner[place][CENTRE, CENTRE].mean() for place in cut])
    dark = features[:, CENTRE, CENTRE].mean(axis=(1, 2)) <= BRIGHT
    return {"features": features, "targets": np.where(dark, np.where(stain > 0, 1, 2), 0)}


def balance(folder):
    """Hold the document's load balance factor beside what the plan says."""
    yield Claim(
        "the document's balance factor, of its example", factor(10, 1024.0, 10, 1.0), equal=102.4
    )
    cluster, samples = Cluster.from_toml(CLUSTER), ShardSet.open(folder / "images").samples
    workload = Workload(size=20_000, batch_size=320)
    pinned = plan_shards(cluster, samples, workload, pinned=dict(enumerate(HOSPITALS)))
    free = plan_shards(cluster, [1] * sum(samples), workload)
    yield Claim("slowest hospital over the mean, as images are", uneven(pinned), at_least=1.4)
    yield Claim("were they free to move, of all ranks", uneven(free), at_most=1.05)


def uneven(plan):
    """Return what the slowest rank computes over the mean of those that have samples."""
    seconds = np.array([each for each in plan.seconds_of_rank if each])
    return float(seconds.max() / seconds.mean())


def factor(devices, data, tasks, data_of_task):
    """Return alpha = N D / (N T S), of N devices with data D each, in T tasks of S."""
    return devices * data / (devices * tasks * data_of_task)


if __name__ == "__main__":
    tell(claims, "skimage", "cryptography")
