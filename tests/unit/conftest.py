"""Unit tests start no Ray, no process and no connection; whoever tries is refused."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from typing import Any, NoReturn

import pytest


def _refuse(what: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"a unit test may not {what}; move it to tests/integration")

    return refuse


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse processes, connections and Ray."""
    monkeypatch.setattr(subprocess.Popen, "__init__", _refuse("start a process"))
    monkeypatch.setattr(asyncio, "create_subprocess_exec", _refuse("start a process"))
    monkeypatch.setattr(asyncio, "create_subprocess_shell", _refuse("start a process"))
    monkeypatch.setattr(socket.socket, "connect", _refuse("connect"))
    monkeypatch.setattr(socket.socket, "listen", _refuse("listen"))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse Ray, where a test has imported it at all."""
    import sys

    if ray := sys.modules.get("ray"):
        monkeypatch.setattr(ray, "init", _refuse("start Ray"))
