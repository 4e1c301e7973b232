"""What a check says: findings, and the same finding of many ranks as one line."""

from dataclasses import asdict, dataclass

from isthmus.errors import EXIT_CODES, MachineError

ORDER = ("FAIL", "WARN", "PASS")


@dataclass(frozen=True)
class Finding:
    """How one subject stands: "PASS", "WARN" or "FAIL", what was found, and the cure.

    error: the name of the exception that a run would end with, which gives the exit code.
    """

    subject: str
    status: str
    found: str
    cure: str = ""
    error: str = ""

    def to_json(self):
        return asdict(self)


def passed(subject, found):
    """Return a Finding with which all is well."""
    return Finding(subject, "PASS", found)


def warned(subject, found, cure):
    """Return a Finding that costs time or safety, not the run."""
    return Finding(subject, "WARN", found, cure)


def failed(subject, found, cure, error=MachineError):
    """Return a Finding with which a run would end in `error`."""
    return Finding(subject, "FAIL", found, cure, error.__name__)


def refused(subject, problem):
    """Return the Finding of an IsthmusError, whose message says what is wrong and how to mend it."""
    found, semicolon, cure = str(problem).rpartition("; ")
    return failed(subject, found if semicolon else cure, cure if semicolon else "", type(problem))


def grouped(findings_of_rank, hosts):
    """Return a table for each different finding: its fields, its exit code, its ranks and hosts.

    Subjects come in the order in which ranks have them, then the ranks that say the same.
    """
    ranks_of = {}
    for rank, findings in enumerate(findings_of_rank):
        for finding in findings:
            ranks_of.setdefault(finding, []).append(rank)
    subjects = list(dict.fromkeys(finding.subject for finding in ranks_of))
    return [
        {
            **finding.to_json(),
            "exit_code": EXIT_CODES.get(finding.error, 0),
            "ranks": ranks,
            "hosts": list(dict.fromkeys(hosts[rank] for rank in ranks)),
        }
        for finding, ranks in sorted(
            ranks_of.items(), key=lambda item: (subjects.index(item[0].subject), item[1])
        )
    ]


def exit_code(groups):
    """Return the exit code of the first finding that fails; 0 if none does."""
    return next((group["exit_code"] for group in groups if group["status"] == "FAIL"), 0)


def worst_status(groups):
    """Return "FAIL", "WARN" or "PASS": the worst of all."""
    return min((group["status"] for group in groups), key=ORDER.index, default="PASS")
