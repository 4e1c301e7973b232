"""Accuracy, bytes and seconds of the main job by compressor; how: see compare_compressors.toml.

Writes a JSON line a run to data/measurements/compare_compressors.jsonl, and prints a table.
"""

import json
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import tomli_w
from rich.console import Console
from rich.table import Table

from isthmus.jobs.launch import mpirun, rank_environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data/measurements/compare_compressors.jsonl"


def run_with(settings, compressor, folder):
    """Run the main job with `compressor` and return its summary."""
    chosen = dict(compressor)
    name, feedback = chosen.pop("name"), chosen.pop("error_feedback", True)
    rate = chosen.pop("learning_rate", settings["training"]["learning_rate"])
    changed = settings | {
        "training": settings["training"] | {"learning_rate": rate},
        "allreduce": {"algorithm": "hierarchical", "error_feedback": feedback}
        | ({"compressor": chosen} if chosen else {}),
    }
    path = Path(folder, "run.toml")
    path.write_text(tomli_w.dumps(changed))
    done = subprocess.run(
        [mpirun(), "-n", "4", sys.executable, "-m", "isthmus", "train", str(path), "--json"],
        env=rank_environment(),
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    summary = json.loads(done.stdout)
    run = json.loads(Path(summary["folder"], "run.json").read_text())
    return {
        "name": name,
        "learning_rate": rate,
        "accuracy": summary["accuracy"],
        "loss": summary["loss"],
        "steps": summary["steps"],
        "seconds": round(summary["seconds"], 3),
        "link_nbytes_a_direction": max(link["sent_nbytes"] for link in summary["links"]),
        "predicted_step_seconds": summary["step"]["predicted_seconds"],
        "measured_step_seconds": summary["step"]["measured_seconds"],
        "date": time.strftime("%Y-%m-%d"),
        "commit": run["commit"],
        "processor": run["processor"],
        "mpi": run["mpi_library"].splitlines()[0],
        "command": "python experiments/compare_compressors.py",
    }


def main():
    study = tomllib.loads((HERE / "compare_compressors.toml").read_text())
    settings = tomllib.loads((HERE / study["run"]).read_text())
    for section, key in (("cluster", "file"), ("data", "train"), ("data", "test")):
        settings[section][key] = str(HERE / settings[section][key])
    table = Table(
        "compressor",
        "learning rate",
        "accuracy",
        "test loss",
        "MB a direction",
        "seconds",
        "ms a step",
        "predicted",
    )
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        settings["run"]["folder"] = folder
        for compressor in study["compressors"]:
            line = run_with(settings, compressor, folder)
            lines.append(line)
            table.add_row(
                line["name"],
                str(line["learning_rate"]),
                f"{line['accuracy']:.4f}",
                f"{line['loss']:.4f}",
                f"{line['link_nbytes_a_direction'] / 1e6:.1f}",
                f"{line['seconds']:.1f}",
                f"{1e3 * line['measured_step_seconds']:.1f}",
                f"{1e3 * line['predicted_step_seconds']:.1f}",
            )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Console().print(table)


if __name__ == "__main__":
    main()
