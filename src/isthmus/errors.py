"""The errors a user of isthmus can meet: one class and one exit code for each kind of cause.

`docs/errors` has a page for each code.
"""

from collections.abc import Sequence


class IsthmusError(Exception):
    """Something that the user can mend; the message says what, where and how.

    `everywhere` is true when all ranks of a job raise the same error together, so that it is
    printed once and the job can end without an abort; `ranks` are then those that found it.
    """

    exit_code: int = 1
    everywhere: bool = False
    ranks: Sequence[int] = ()


class SettingsError(IsthmusError):
    """A run's settings file is missing, unreadable or wrong."""

    exit_code = 3


class ClusterError(IsthmusError):
    """A cluster file is wrong, or does not describe the ranks of this job."""

    exit_code = 4


class ShardError(IsthmusError):
    """A shard, its manifest or the data to be packed is missing, damaged or unsuitable."""

    exit_code = 5


class PlanError(IsthmusError):
    """No allocation of shards satisfies the limits."""

    exit_code = 6


class NonFiniteError(IsthmusError):
    """A gradient holds a NaN or an infinity, and the settings say to stop."""

    exit_code = 7


class OutputError(IsthmusError):
    """A file or folder cannot be written."""

    exit_code = 8


class CheckpointError(IsthmusError):
    """A checkpoint is missing, damaged or belongs to another run."""

    exit_code = 9


class NoDeviceError(IsthmusError):
    """A device was asked for that this machine or this version cannot offer."""

    exit_code = 10


class ReplicaError(IsthmusError):
    """The ranks no longer hold the same parameters, bit for bit."""

    exit_code = 11


class EmulationError(IsthmusError):
    """The testbed cannot be made on this machine, or is not what it was when it was made."""

    exit_code = 12


class SchedulerError(IsthmusError):
    """Slurm is not there, refuses, or was asked for what it cannot give."""

    exit_code = 13


class StoppedError(IsthmusError):
    """A run was told to stop by a signal; its checkpoint is written, and it goes on from there."""

    exit_code = 14


class MachineError(IsthmusError):
    """MPI, or the machine under it, is not fit for a run."""

    exit_code = 15


class ModelError(IsthmusError):
    """A user's own model, loss or module is not there, raises, or is not what training needs."""

    exit_code = 16


class SecurityError(IsthmusError):
    """A key is missing, in the wrong hands or not the one that was agreed on."""

    exit_code = 17


class SealError(IsthmusError):
    """A message between sites is not what was sent. Nothing more is agreed on over such links: the rank
    that finds it ends the job, or has the step be made again where ranks survive.

    `source` is the cluster rank whose message it is, where that is known.
    """

    exit_code = 18
    source: int | None = None


class RecordError(IsthmusError):
    """A run's record is not what the run has written."""

    exit_code = 19


class SiteError(IsthmusError):
    """Another site, a job of its own, cannot be reached, is refused, or has gone.

    `hung_up`: it has closed the connection in the place of a word.
    """

    exit_code = 20
    hung_up: bool = False


class PolicyError(IsthmusError):
    """What the policy of a set of shards forbids, or a policy that is not what its origin has signed."""

    exit_code = 21


EXIT_CODES = {kind.__name__: kind.exit_code for kind in IsthmusError.__subclasses__()}
"""Exit code by class name: how an error keeps its kind when one rank tells it to the others."""


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Write [0, 1, 2, 5] as "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
