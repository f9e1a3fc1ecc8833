"""The README is tested: what exists is in it, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from fleet.cli.command import app
from fleet.config import BUILTIN_ROLES, FleetConfig
from fleet.errors import ERROR_TABLE
from fleet.lifecycle import TaskState
from fleet.models import Role

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [f"{name} {sub}" for sub in inner] if inner else [name]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_it(command: str) -> None:
    assert f"fleet {command}" in TEXT


@pytest.mark.parametrize("name", FleetConfig.model_fields)
def test_every_setting_is_in_it(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", Role.model_fields)
def test_every_key_of_a_role_is_in_it(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", [*BUILTIN_ROLES, *(state.value for state in TaskState)])
def test_every_role_and_state_is_in_it(name: str) -> None:
    assert f"`{name}`" in TEXT


def test_every_exit_code_is_in_it() -> None:
    line = TEXT.partition("Exit codes:")[2].partition("\n\n")[0]
    for code in {code for _, code in ERROR_TABLE.values()} | {0, 130}:
        assert re.search(rf"\b{code} [a-zA-Z]", line), code


def test_what_it_links_exists() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_its_commands_exist() -> None:
    known = {command.partition(" ")[0] for command in commands()}
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S):
        for word in re.findall(r"(?:^|bin/)fleet ([a-z]+)", block, re.M):
            assert word in known


def test_ci_runs_its_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "install -q --disable-pip-version-check -e '.[test]'" in script
    assert re.search(r"^pytest$", script, re.M)
