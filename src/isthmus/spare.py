"""What a job's work stands without: reports, pictures, last lines. They are made where they can be."""

import logging

from isthmus.errors import IsthmusError


def if_possible(make, what, cure):
    """Return `make()`; or None and a warning that `what` is missing, why, and the `cure`."""
    try:
        return make()
    except Exception as problem:
        why = problem if isinstance(problem, IsthmusError) else f"{type(problem).__name__}: {problem}"
        logging.getLogger("isthmus").warning(
            f"{what} is missing: {' '.join(str(why).split())[:1000]}; {cure}"
        )
        return None
