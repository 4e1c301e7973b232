"""The main job, as `make demo` runs it: seconds, accuracy, and how right the prediction was."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from isthmus.runs.launch import mpirun, rank_environment

RUN = Path(__file__).resolve().parent.parent / "fashion_two_sites.toml"


class MainJob:
    """One run; three figures of it."""

    timeout = 180

    def setup_cache(self):
        with tempfile.TemporaryDirectory() as folder:
            measured = f"{folder}/cluster.toml"
            start = [mpirun(), "-n", "4", sys.executable, "-m", "isthmus.cli"]
            for arguments in (["calibrate", RUN, "-o", measured],
                              ["train", RUN, "--cluster", measured, "--json"]):
                done = subprocess.run([*start, *map(str, arguments)], check=True, text=True,
                                      env=rank_environment(), stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    setup_cache.timeout = 180

    def track_test_accuracy(self, summary):
        return summary["accuracy"]

    def track_training_seconds(self, summary):
        return summary["seconds"]

    def track_predicted_over_measured(self, summary):
        return summary["step"]["predicted_seconds"] / summary["step"]["measured_seconds"]

    def track_link_bytes_per_parameter_and_step(self, summary):
        return max(link["sent_nbytes"] for link in summary["links"]) / summary["steps"] / 101_770
