"""When a rank may be harmed on purpose, and where a run looks for that. Imports no MPI."""

PLAN = "ISTHMUS_FAULTS"
"""The variable of the environment that names the file with a run's faults, a JSON list of tables."""
HAPPENED = "happened.jsonl"
"""The file beside that one to which ranks add a line as a fault happens."""
CONTROL = "control.socket"
"""The socket beside that one, of who has started the run; ranks ask there for what harms links."""
KINDS = ("kill", "stop", "freeze", "flip", "full", "torn")
"""Of faults that happen to a rank."""
LINK_KINDS = ("cut", "close", "slow")
"""Of faults that happen to the link of two sites that are jobs of their own."""
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
    "settle",
    "join",
)
ANY_STEP = ("settle", "join")
"""Moments of whichever step they come in."""
"""When a fault may come. "send": as message `number` of a step is handed over, counted from 0; "agree":
before all agree on a step, which this rank has reduced; "rebuild": while others are made do without one;
"settle": as a site has noticed that one is gone, before it says how far it is or votes for a hub;
"join": while a site comes back, as message `number` of that is handed over. The others are what a rank's
log calls its phases."""
