"""The import rules: the listing shows the architecture, and the code keeps to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fleet

PACKAGE = Path(fleet.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

RAY_FILES = {"launch.py", "deployment.py", "actor.py", "ray_nodes.py"}
"""Modules that wrap a plain class for Ray may import it, and the whole of `fleet.cluster`."""

PURE = [
    "models.py",
    "lifecycle.py",
    "reasons.py",
    "errors.py",
    "config.py",
    "contracts.py",
    "router/core.py",
    "router/idle.py",
    "router/queue.py",
    "router/retry.py",
    "router/placement.py",
    "router/scaler.py",
    "router/effects.py",
    "router/task_table.py",
    "router/admission.py",
]
FORBIDDEN_IN_PURE = {"ray", "duckdb", "gradio", "asyncio", "httpx", "fastapi", "starlette", "subprocess", "socket"}

PUBLIC = {
    "fleet.errors",
    "fleet.models",
    "fleet.lifecycle",
    "fleet.reasons",
    "fleet.contracts",
    "fleet.config",
    "fleet",
}

MAY_IMPORT = {
    "client": set(),
    "cli": {"client", "cluster", "rehearsal", "claude", "report"},
    "gateway": {"cluster", "ui", "client", "observability"},
    "router": {"cluster", "agent", "store", "observability"},
    "agent": {"cluster", "claude", "rehearsal", "observability"},
    "claude": {"rehearsal", "cluster"},
    "store": {"cluster", "observability"},
    "ui": {"gateway", "cluster"},
    "rehearsal": set(),
    "cluster": {"gateway", "router", "store", "agent", "claude", "rehearsal", "observability"},
    "observability": set(),
    "report": set(),
}
"""Package → the other packages of fleet that it may import."""


def imports(path: Path) -> list[tuple[str, int]]:
    """Return the modules a file imports, with lines; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped |= {id(inner) for part in node.body for inner in ast.walk(part)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append((node.module, node.lineno))
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_ray_duckdb_and_gradio_are_imported_only_where_they_belong(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0]
    for module, line in imports(path):
        top = module.partition(".")[0]
        if top == "ray":
            assert part == "cluster" or path.name in RAY_FILES, f"{name_of(path)}:{line} imports ray"
        if top == "duckdb":
            assert part == "store", f"{name_of(path)}:{line} imports duckdb"
        if top == "gradio":
            assert part == "ui", f"{name_of(path)}:{line} imports gradio"


@pytest.mark.parametrize("name", PURE)
def test_what_decides_is_pure(name: str) -> None:
    path = PACKAGE / name
    bad = [(module, line) for module, line in imports(path) if module.partition(".")[0] in FORBIDDEN_IN_PURE]
    assert not bad, f"{name} imports {bad}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_import_only_their_neighbours(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0]
    if part.endswith(".py"):
        return
    for module, line in imports(path):
        pieces = module.split(".")
        if pieces[0] != "fleet" or len(pieces) < 2 or pieces[1] == part or not (PACKAGE / pieces[1]).is_dir():
            continue
        assert pieces[1] in MAY_IMPORT[part], f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_names_a_path_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for start in ("/home/", "/root/", "/work/", "/Users/"):
        assert start not in text, f"{name_of(path)} names {start}"
