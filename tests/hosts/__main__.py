"""`python -m tests.hosts NAME…`: runs scenarios on hosts that are network namespaces, shows their logs. Needs root."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.hosts import lab

TIMEOUT_S = {"ray_up": 600.0, "node_loss": 600.0, "head_loss": 600.0, "upgrade": 600.0, "autoscale": 600.0}


def main() -> int:
    """Run the scenarios named on the command line; the exit code says whether all held."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument("name", nargs="+", choices=sorted(TIMEOUT_S))
    given = parser.parse_args()
    if reason := lab.missing():
        print(f"not possible here: {reason}")
        return 2
    failed = False
    for name in given.name:
        folder = Path(tempfile.mkdtemp(prefix=f"fl-{name}-", dir="/var/tmp"))
        begin = time.monotonic()
        done = lab.enter(f"tests.hosts.{name}", folder, TIMEOUT_S[name])
        print(done.stdout)
        print(f"{name}: exit code {done.returncode} after {time.monotonic() - begin:.0f} s; {folder}")
        failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
