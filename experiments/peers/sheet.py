"""The sheet of compare_peers: RESULTS.md and RESULTS.svg, written again from RESULTS.jsonl.

python experiments/peers/sheet.py [RESULTS.jsonl]
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from peers.findings import Findings, tables
from peers.picture import draw
from study import tell

RESULTS = Path(__file__).resolve().parents[2] / "data/measurements/compare_peers.jsonl"


def tell_findings(path):
    """Write what the lines in `path` say beside them, and print the tables."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    if lines:
        findings = Findings(lines)
        tell(path, tables(findings), draw(findings))


if __name__ == "__main__":
    tell_findings(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
