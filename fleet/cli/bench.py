"""`fleet bench`: the measurements of `tests/bench`, which are in the source tree and not in the installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fleet.cli.output import err

ROOT = Path(__file__).parents[2]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the medians count.")] = 5,
    only: Annotated[str, typer.Option(help="Parts, with commas between; a wrong one lists them.")] = "",
    to: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small counts: to see that it runs.")] = False,
) -> None:
    """Measure fleet beside bare Ray, a queue on Redis and the CLI by itself (20 minutes; a source tree only)."""
    if not (ROOT / "tests" / "bench" / "run.py").is_file():
        err.print("fleet bench needs a source tree: it is in tests/bench, which is not installed", markup=False)
        raise typer.Exit(4)
    command = [sys.executable, "-m", "tests.bench.run", f"--rounds={rounds}", f"--only={only}"]
    command += [f"--json={to.absolute()}"] if to else []
    command += ["--quick"] if quick else []
    raise typer.Exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
