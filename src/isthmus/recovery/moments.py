"""When a rank may be harmed on purpose, and where a run looks for that. Imports no MPI."""

PLAN = "ISTHMUS_FAULTS"
"""The variable of the environment that names the file with a run's faults, a JSON list of tables."""
HAPPENED = "happened.jsonl"
"""The file beside that one to which ranks add a line as a fault happens."""
KINDS = ("kill", "stop", "freeze", "flip", "full", "torn")
MOMENTS = (
    "compute",
    "send",
    "allreduce",
    "agree",
    "update",
    "replicas",
    "report",
    "evaluation",
    "buddies",
    "checkpoint",
    "rebuild",
)
"""When a fault may come. "send": as message `number` of a step is handed over, counted from 0; "agree":
before all agree on a step, which this rank has reduced; "rebuild": while others are made do without one.
The others are what a rank's log calls its phases."""
