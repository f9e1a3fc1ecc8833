"""Fleets as fixtures: one for all tests that break nothing, and a maker of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fleet import Fleet
from tests.integration.support import Home, temporary_home

NewFleet = Callable[..., Home]


@pytest.fixture(scope="session")
def fleet() -> Iterator[Home]:
    """A running fleet in rehearsal, for tests that leave it as they found it."""
    with temporary_home() as home:
        yield home.up()


@pytest.fixture
def home() -> Iterator[Home]:
    """A home in which nothing runs yet."""
    with temporary_home() as made:
        yield made


@pytest.fixture
def new_fleet() -> Iterator[NewFleet]:
    """Make fleets of the test's own, with settings (TOML), for tests that kill things."""
    with ExitStack() as stack:

        def make(settings: str = "", *arguments: str, **extra: str) -> Home:
            return stack.enter_context(temporary_home(settings, **extra)).up(*arguments)

        yield make


@pytest.fixture
def client(fleet: Home) -> Iterator[Fleet]:
    """A client of the session's fleet."""
    with fleet.connect() as connected:
        yield connected
