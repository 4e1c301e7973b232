"""Which term of a step was furthest from its prediction, and what that comes from."""

from isthmus.pages.page import milliseconds
from isthmus.registry import ALLREDUCE_STAGES

WORTH_SAYING = 0.03
"""Share of the measured step by which a term must be off to be told."""
MEASURED_BY_CALIBRATION = {*ALLREDUCE_STAGES, "update", "python"} - {"links"}
OF_CORES = MEASURED_BY_CALIBRATION | {"compute"}
"""Terms that take longer where ranks share cores."""


def furthest_off(run):
    """Return sentences on the term that was furthest from its prediction; none before the first step."""
    step_seconds = run.step_seconds[1]
    if not step_seconds:
        return []
    name, predicted, measured = max(run.terms, key=lambda term: abs(term[2] - term[1]))
    if abs(measured - predicted) < WORTH_SAYING * step_seconds:
        return [f"No term is off by more than {100 * WORTH_SAYING:.0f} % of a step."]
    return [
        f"Furthest off is {name}: {milliseconds(measured)} ms where {milliseconds(predicted)} ms were "
        f"predicted. {_why(run, name, longer=measured > predicted, known=predicted > 0)}"
    ]


def _why(run, name, longer, known):
    calibration = run.cluster.calibration
    crowded = [host for host in (calibration.hosts if calibration else ()) if _is_crowded(host)]
    if longer and not known and name in MEASURED_BY_CALIBRATION:
        return "The cluster file does not say what it takes: isthmus calibrate measures it."
    if longer and name == "compute" and run.settings["cluster"]["compute"] == "paced":
        return "Computing is held to the cluster file's rates, which this machine is too slow for."
    if longer and name in OF_CORES and crowded:
        host = min(crowded, key=lambda host: host.cores / len(host.ranks))
        return (
            f"{len(host.ranks)} ranks of a host share {host.cores:.2g} cores, and wait for each other "
            "there; a core for each rank, or fewer ranks, would mend it."
        )
    if name == "compute":
        return (
            f"Ranks compute {'slower' if longer else 'faster'} than the cluster file says: isthmus "
            "calibrate measures them, and replan = true follows them while a run goes on."
        )
    if name == "links":
        return (
            "Links are slower than the cluster file says, or others use them: isthmus bench links "
            "measures them."
            if longer
            else "Links are faster than the cluster file says, or hidden behind more computing."
        )
    if name == "wait":
        return "Ranks were late in turn; a trace shows which ([run] trace = true)."
    if calibration is None:
        return "The cluster file was not calibrated: isthmus calibrate measures what ranks take."
    return "The machine is not as it was when it was calibrated: isthmus calibrate measures it again."


def _is_crowded(host):
    """Whether the ranks of a host had less than nine tenths of a core each."""
    return host.cores < 0.9 * len(host.ranks)
