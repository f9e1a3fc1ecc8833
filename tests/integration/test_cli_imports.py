"""The command starts fast: what is slow to import is imported where it is used."""

from __future__ import annotations

import subprocess
import sys


def test_help_imports_neither_ray_nor_gradio() -> None:
    code = (
        "import sys; from fleet.cli.command import run; code = run(['--help']); "
        "slow = [name for name in ('ray', 'gradio', 'duckdb', 'pandas', 'fastapi', 'httpx') if name in sys.modules]; "
        "print('slow:', slow); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "slow: []"
