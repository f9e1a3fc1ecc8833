"""Finds the Claude Code executable."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from fleet.config import FleetConfig
from fleet.errors import ClaudeNotFound


def find_claude(config: FleetConfig) -> Path:
    """Return the executable: `config.claude_path`, else the one in claude-agent-sdk's wheel, else `claude` on PATH.

    Raises:
        ClaudeNotFound: there is none, or it cannot be executed.
    """
    if config.claude_path is not None:
        path = Path(config.claude_path).expanduser()
        if path.is_file() and os.access(path, os.X_OK):
            return path.absolute()
        raise ClaudeNotFound(
            f"Expected the Claude Code executable at claude_path = {path}, but there is no executable file. "
            "Correct claude_path, or leave it out to use the one of claude-agent-sdk.",
            path=str(path),
        )
    bundled = bundled_claude()
    if bundled is not None and os.access(bundled, os.X_OK):
        return bundled
    if found := shutil.which("claude"):
        return Path(found).absolute()
    raise ClaudeNotFound(
        "Expected Claude Code in the package claude-agent-sdk or as `claude` on PATH, but found neither. Install "
        "claude-agent-sdk on every node (its wheel holds Claude Code), or set claude_path.",
        path=None,
    )


def bundled_claude() -> Path | None:
    """Return the executable in claude-agent-sdk's wheel, without importing the package (0.6 s)."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "_bundled" / "claude"
    return path if path.is_file() else None
