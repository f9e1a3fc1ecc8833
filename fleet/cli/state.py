"""Options that stand before the command, and the settings and the connection that follow from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet.cli.api import Api
    from fleet.config import FleetConfig


@dataclass
class Options:
    """What stands before the command."""

    home: Path | None = None
    config: Path | None = None
    url: str | None = None


given = Options()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"fleet {metadata.version('fleet')}")
        raise typer.Exit


def options(
    home: Annotated[Path | None, typer.Option(help="The fleet's folder; FLEET_HOME, else ~/.fleet.")] = None,
    config: Annotated[Path | None, typer.Option(help="The settings file; FLEET_CONFIG, else ./fleet.toml.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A fleet elsewhere; FLEET_URL, with FLEET_TOKEN. Else that of the home.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print fleet's version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Many Claude Code agents as one durable worker cluster on Ray."""
    given.home, given.config, given.url = home, config, url


def settings(**arguments: object) -> FleetConfig:
    """Return the settings of this call; arguments win, None is none."""
    from fleet.config import load_config

    arguments.setdefault("home", None)
    if arguments["home"] is None:
        arguments["home"] = given.home
    path = arguments.pop("config", None) or given.config
    return load_config(path, **arguments)  # type: ignore[arg-type]


def connect() -> Api:
    """Return the connection to the fleet that this call is about."""
    from fleet.cli.api import Api

    url = given.url or os.environ.get("FLEET_URL")
    return Api.connect(url, None if url and given.home is None else settings().home)
