"""A city's video as a single pass: frames go to the nodes at the edge, which count what moves in them.

The frames are drawn, not filmed: squares that move before a still background.
"""

from pathlib import Path

import numpy as np

import isthmus

FRAMES, HEIGHT, WIDTH = 480, 120, 160
NODES, FRAMES_PER_SECOND, BYTES_PER_SECOND, LATENCY_SECONDS = 3, 150.0, 6.25e6, 0.002
"""Those of city.toml."""


def documents_seconds():
    """Return the document's T = D / N (d / C + d / B), with D in frames and d / C of one of them."""
    return FRAMES / NODES * (1 / FRAMES_PER_SECOND + HEIGHT * WIDTH / BYTES_PER_SECOND)


def plan():
    """Return isthmus.plan_single_pass of the frames: the archive itself computes nothing."""
    compute, send = FRAMES / FRAMES_PER_SECOND, FRAMES * HEIGHT * WIDTH / BYTES_PER_SECOND
    return isthmus.plan_single_pass(
        None, [compute] * NODES, [send] * NODES, latency_seconds=LATENCY_SECONDS
    )


def planned_frames():
    """Return how many frames each node gets, by the plan."""
    ends = np.rint(np.cumsum(plan().worker_shares) * FRAMES).astype(int)
    return np.diff(ends, prepend=0).tolist()


def even_frames():
    """Return how many frames each node gets in the document: as many as any other."""
    return [FRAMES // NODES] * NODES


def graph(name, frames_of_nodes):
    """Return the tables of the file that `isthmus schedule` takes; name: "planned" or "even"."""
    ends = [
        {"name": each, "seconds": 0.0, "pinned": 0, "function": f"city_video:{each}_{name}"}
        for each in ("archive", "report")
    ]
    tasks, edges = [], []
    for number, frames in enumerate(frames_of_nodes, 1):
        node = f"node {number}"
        tasks.append({"name": node, "units": frames, "pinned": number, "function": "city_video:node"})
        edges.append({"from": "archive", "to": node, "nbytes": frames * HEIGHT * WIDTH})
        edges.append({"from": node, "to": "report", "nbytes": 4 * frames})
    cluster = {"file": "city.toml", "links": "paced", "compute": "paced"}
    return {"cluster": cluster, "task": [*ends, *tasks], "edge": edges}


def video():
    """Return uint8[frames, height, width]."""
    frames = np.repeat(background()[None], FRAMES, axis=0)
    for number, frame in enumerate(frames):
        top, left = number % (HEIGHT - 10), 2 * number % (WIDTH - 10)
        frame[top : top + 10, left : left + 10] = 255
    return frames


def background():
    """Return what stands still: uint8[height, width], dark."""
    return np.random.default_rng(0).integers(0, 100, (HEIGHT, WIDTH), np.uint8)


def moving(frames):
    """Return int32[frames]: how many pixels of each are other than the background."""
    return (frames != background()).sum(axis=(1, 2), dtype=np.int32)


def _parts(frames_of_nodes):
    ends = np.cumsum(frames_of_nodes)
    return {f"node {node}": part for node, part in enumerate(np.split(video(), ends[:-1]), 1)}


def archive_planned(inputs):
    return _parts(planned_frames())


def archive_even(inputs):
    return _parts(even_frames())


def node(inputs):
    return moving(inputs["archive"].reshape(-1, HEIGHT, WIDTH))


def report_planned(inputs):
    _keep("planned", inputs)


def report_even(inputs):
    _keep("even", inputs)


def _keep(name, inputs):
    counts = [inputs[f"node {number}"].view(np.int32) for number in range(1, NODES + 1)]
    np.save(Path(__file__).with_name(f"moving_{name}.npy"), np.concatenate(counts))
