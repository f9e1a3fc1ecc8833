"""`fleet demo --exit` with an empty HOME: three tasks succeed, and the repository is really mended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.support import Home


def test_the_demo_mends_a_repository(home: Home) -> None:
    done = home.fleet("demo", "--exit", "--home", str(home.home), "--port", "0")
    assert "rehearsal" in done.stdout
    repository = home.home / "repository"
    assert str(repository) in done.stdout
    assert suite_passes(repository), "the bug is fixed and the new tests pass, run by hand"
    assert (home.home / "fleet.duckdb").exists()
    # The rows are there for the next fleet of this home.
    home.up()
    rows = home.json("sql", "select role, state from task order by created_at")
    assert {row["role"] for row in rows} == {"api_developer", "code_reviewer", "qa_tester"}
    assert {row["state"] for row in rows} == {"succeeded"}


def suite_passes(repository: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode == 0
