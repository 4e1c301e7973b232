"""The cases of the literature, one after another: a table of what each claims and what was found.

    python experiments/cases [CASE.py ...]        what `make cases` runs; some minutes for all of them

Ends with 1 where a claim does not hold or a case fails.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from isthmus.terminal import Terminal, table_of

COLUMNS = (("case", "left"), ("claim", "left"), ("result", "left"), ("seconds", "right"))


def main(cases):
    """Run the scripts `cases`; return whether all that they claim holds."""
    terminal, rows, holds = Terminal(), [], True
    for case in cases:
        print(f"{case.stem} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(case)], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        results = [(line["claim"], _result(line), line["holds"]) for line in lines]
        if done.returncode and all(line["holds"] for line in lines):
            print(done.stderr, file=sys.stderr)
            results.append((f"ends with {done.returncode}, as told above", "FAILS", False))
        for place, (claim, result, held) in enumerate(results):
            first = (_name(case), f"{seconds:.0f}") if not place else ("", "")
            rows.append(((first[0], claim, result, first[1]), "" if held else "bold red"))
            holds &= held
    terminal.result(table_of(COLUMNS, rows))
    return holds


def _name(case):
    """Return what a case is called: "1 distributed trainer"."""
    return case.stem.removeprefix("case_").replace("_", " ")


def _result(line):
    """Return what was found, beside what was wanted."""
    words = f"{line['found']} ({line['wanted']})" if line["wanted"] else line["found"]
    return words if line["holds"] else f"FAILS: {words}"


if __name__ == "__main__":
    named = list(map(Path, sys.argv[1:]))
    try:
        sys.exit(not main(named or sorted(Path(__file__).parent.glob("case_*.py"))))
    except KeyboardInterrupt:
        sys.exit(130)
