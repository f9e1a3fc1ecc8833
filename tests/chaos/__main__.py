"""The chaos run.

    python -m tests.chaos --kills 300 --seed 7

Starts a fleet of its own, keeps submitting a known set of tasks, kills and freezes its parts at random points, and
compares at the end what was promised with what is there. Exit code 1: a promise was broken.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.chaos.campaign import run


def main() -> int:
    """Run and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--second-node", action="store_true", help="start a second Ray node, and kill its raylet too")
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    given = parser.parse_args()
    report = run(given.kills, given.seed, second_node=given.second_node, say=lambda text: print(text, flush=True))
    print(report.text())
    if given.report is not None:
        given.report.write_text(report.text() + "\n", encoding="utf-8")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
