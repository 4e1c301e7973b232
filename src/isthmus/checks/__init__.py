"""Is this machine, and this job, fit for a run? Each line passes, warns or fails, with the cure."""

from isthmus.checks.checking import check, check_words

__all__ = ["check", "check_words"]
