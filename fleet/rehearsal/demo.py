"""The demo's repository, with a real bug, and its backlog."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fleet.models import TaskSpec, Workspace, WorkspaceKind

FILES = {
    "README.md": "# orders\n\nTotals of orders. Tests: `python3 -m unittest discover -s tests -t .`\n",
    ".gitignore": "__pycache__/\n",
    "orders/__init__.py": "",
    "orders/totals.py": '''"""Totals of orders."""


def total(items: list[tuple[float, int]], discount: float = 0.0) -> float:
    """Return the price of all items, each a price and a count, less the discount (a fraction)."""
    price = sum(price * count for price, count in items)
    return round(price * (1 + discount), 2)
''',
    "tests/__init__.py": "",
    "tests/test_totals.py": """import unittest

from orders import totals


class Totals(unittest.TestCase):
    def test_prices_add_up(self) -> None:
        self.assertEqual(totals.total([(2.5, 2), (1.0, 1)]), 6.0)

    def test_a_discount_is_taken_off(self) -> None:
        self.assertEqual(totals.total([(100.0, 1)], discount=0.2), 80.0)
""",
}


def make_repository(folder: Path) -> Path:
    """Make the repository in a folder that does not exist or is empty; return it."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    # A machine without a git configuration must do, and one with a configuration must not change what comes out.
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "fleet demo"],
        ["config", "user.email", "demo@fleet.invalid"],
        ["add", "-A"],
        ["commit", "-q", "-m", "Totals of orders"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, env=env, check=True, capture_output=True)
    return folder


def backlog(repository: Path) -> list[tuple[str, TaskSpec, tuple[str, ...]]]:
    """Return the tasks: a name for each, what is asked, and the names of those it waits for."""
    here = Workspace(kind=WorkspaceKind.DIRECTORY, path=str(repository))
    develop = (
        "A test of this repository fails. Find out why and mend orders/totals.py. Then add a function "
        "with_tax(amount, rate) to it, and commit when all tests pass."
    )
    review = "Review the last commit of this repository: orders/totals.py, its correctness and its input checks."
    test = "Write more tests for the edge cases of orders/totals.py and run all tests."
    return [
        ("develop", TaskSpec(role="api_developer", prompt=develop, workspace=here, priority=7), ()),
        ("review", TaskSpec(role="code_reviewer", prompt=review, workspace=here), ("develop",)),
        ("test", TaskSpec(role="qa_tester", prompt=test, workspace=here), ("develop",)),
    ]
