"""The main job, as `make demo` runs it: how wrong, how slow, how far from the prediction, how big."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from isthmus.jobs.launch import mpirun, rank_environment

RUN = Path(__file__).resolve().parent.parent / "fashion_two_sites.toml"


class MainJob:
    """One run; some figures of it. Of a step there are samples, from the run's metrics."""

    def setup_cache(self):
        with tempfile.TemporaryDirectory() as folder:
            measured = f"{folder}/cluster.toml"
            start = [mpirun(), "-n", "4", sys.executable, "-m", "isthmus"]
            for arguments in (
                ["calibrate", RUN, "-o", measured],
                ["train", RUN, "--cluster", measured, "--json"],
            ):
                done = subprocess.run(
                    [*start, *map(str, arguments)],
                    check=True,
                    text=True,
                    env=rank_environment(),
                    stdout=subprocess.PIPE,
                )
        summary = json.loads(done.stdout)
        lines = map(json.loads, Path(summary["folder"], "metrics.jsonl").read_text().splitlines())
        return summary | {
            "step_seconds": [line["step_seconds"] for line in lines if line["kind"] == "step"],
            "peak_nbytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        }

    def track_test_error(self, summary):
        return 1 - summary["accuracy"]

    def track_step(self, summary):
        return {"samples": summary["step_seconds"], "number": 1}

    track_step.unit = "seconds"

    def track_prediction_error(self, summary):
        predicted = summary["step"]["predicted_seconds"]
        return {
            "samples": [abs(predicted / seconds - 1) for seconds in summary["step_seconds"]],
            "number": 1,
        }

    track_prediction_error.unit = "share of a step"

    def track_link_bytes(self, summary):
        return max(link["sent_nbytes"] for link in summary["links"]) / summary["steps"] / 101_770

    track_link_bytes.unit = "bytes a parameter and step"

    def track_peak_memory(self, summary):
        return summary["peak_nbytes"]

    track_peak_memory.unit = "bytes"
