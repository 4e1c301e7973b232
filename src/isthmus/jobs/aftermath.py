"""What became of a run whose mpirun has ended, told by what had started it.

    python -m isthmus.jobs.aftermath CODE FOLDER

Where ranks, daemons or launch agents are lost there are only mpirun's words, and its code may be 0.
This says how far the run came and how to go on, and ends with a code that is not 0 without a summary.
"""

import sys
from pathlib import Path

from isthmus.errors import EXIT_CODES, MachineError
from isthmus.folders.status import describe_run
from isthmus.terminal import Terminal

OWN_CODES = {2, 130, *EXIT_CODES.values()}
"""With which a run has told itself why it ends."""


def aftermath(code, folder):
    """Return the code to end with, and the lines to say, where mpirun has ended with `code`.

    folder: the run's; None where it had none yet, or where no run was started.
    """
    if folder is None or code in OWN_CODES:
        return code, []
    run = describe_run(Path(folder)) if Path(folder).is_dir() else {"state": "", "step": 0, "steps": 0}
    damaged = run["state"] == "damaged" and Path(folder, "summary.json").exists()
    if run["state"] == "finished" or damaged:
        return code, []
    last = f"{run['step']} of {run['steps']}" if run["steps"] else f"{run['step']}"
    line = (
        f"isthmus: {folder}: mpirun has ended with code {code} and the run has no summary: it was "
        "stopped, or a rank, a daemon or a launch agent is lost, and mpirun's words name its host; "
        f"the last step on record is {last}; "
    )
    if Path(folder, "checkpoint.h5").is_file():
        line += f"go on from its checkpoint with `isthmus train RUN.toml --resume {folder}`"
    else:
        line += "it has written no checkpoint (run.checkpoint_every), so begin again"
    return code or MachineError.exit_code, [line]


def main():
    """Say what became of the run in the folder that is named."""
    code, lines = aftermath(int(sys.argv[1]), sys.argv[2])
    for line in lines:
        Terminal().tell(line)
    sys.exit(code)


if __name__ == "__main__":
    main()
