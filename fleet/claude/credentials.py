"""Finds what authenticates to the model service, and says how Claude Code gets it.

A key goes by file descriptor wherever Claude Code takes one: its environment is seen by every command it runs. Values
never appear in arguments, logs or events; `Credentials.secrets` lists them for the redaction of what a tool prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleet.errors import CredentialsMissing

KEY_NAMES = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN")

AWS_NAMES = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "ANTHROPIC_BEDROCK_BASE_URL",
)
VERTEX_NAMES = (
    "CLOUD_ML_REGION",
    "ANTHROPIC_VERTEX_PROJECT_ID",
    "ANTHROPIC_VERTEX_BASE_URL",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CLOUD_PROJECT",
)
MODEL_NAMES = (
    "ANTHROPIC_MODEL",
    "ANTHROPIC_DEFAULT_OPUS_MODEL",
    "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    "ANTHROPIC_SMALL_FAST_MODEL",
)
"""Bedrock and Vertex name models in their own way; these say how."""

NAMES = frozenset(
    {
        *KEY_NAMES,
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_CUSTOM_HEADERS",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        *AWS_NAMES,
        *VERTEX_NAMES,
    }
)
"""Every variable that may hold credentials or belongs to them: kept out of Ray's environment and arguments."""

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "HEADERS")

BY_DESCRIPTOR = {
    "ANTHROPIC_API_KEY": "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN": "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
}
"""Variable → the one by which Claude Code reads it from a file descriptor instead."""


@dataclass(frozen=True)
class Credentials:
    """What authenticates to the model service.

    Attributes:
        kind: `api_key`, `oauth`, `gateway`, `bedrock`, `vertex`, `login` or `rehearsal`.
        environ: the variables it was found in; empty for a login.
        config_dir: for a login, Claude Code's own folder that holds it.
    """

    kind: str
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    config_dir: Path | None = None

    @property
    def by_descriptor(self) -> dict[str, str]:
        """Variable that is to name a file descriptor → the secret to be read from it."""
        return {BY_DESCRIPTOR[name]: value for name, value in self.environ.items() if name in BY_DESCRIPTOR}

    @property
    def visible(self) -> dict[str, str]:
        """Variables that Claude Code reads from its environment only."""
        return {name: value for name, value in self.environ.items() if name not in BY_DESCRIPTOR}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must not be stored or shown."""
        return tuple(
            value
            for name, value in self.environ.items()
            if any(word in name for word in SECRET_WORDS) and not value.startswith("/") and len(value) >= 8
        )


def find_credentials(environ: Mapping[str, str], home: Path, *, one_machine: bool = True) -> Credentials:
    """Return the credentials of this environment.

    Args:
        environ: the variables to look in.
        home: the user's home folder, for a login made with `claude login`.
        one_machine: whether agents run where the login is; its refresh token is single-use and is never copied.

    Raises:
        CredentialsMissing: there are none.
    """
    env = {name: value for name, value in environ.items() if value}
    base = {name: env[name] for name in ("ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS", *MODEL_NAMES) if name in env}
    for kind, switch, names in (
        ("bedrock", "CLAUDE_CODE_USE_BEDROCK", AWS_NAMES),
        ("vertex", "CLAUDE_CODE_USE_VERTEX", VERTEX_NAMES),
    ):
        if env.get(switch, "").lower() in ("1", "true", "yes", "on"):
            return Credentials(kind, {switch: "1", **_take(env, names), **_take(env, MODEL_NAMES)})
    for kind, name in zip(("api_key", "oauth", "gateway"), KEY_NAMES, strict=True):
        if name in env:
            return Credentials(kind, {name: env[name], **base})
    folder = Path(env.get("CLAUDE_CONFIG_DIR") or home / ".claude").expanduser()
    if one_machine and (folder / ".credentials.json").is_file():
        return Credentials("login", base, folder)
    raise CredentialsMissing(
        "Expected credentials for the model service, but found none. Set ANTHROPIC_API_KEY, or "
        "CLAUDE_CODE_OAUTH_TOKEN (from `claude setup-token`), or ANTHROPIC_AUTH_TOKEN with ANTHROPIC_BASE_URL, or "
        "CLAUDE_CODE_USE_BEDROCK=1 or CLAUDE_CODE_USE_VERTEX=1 with their variables, or log in with `claude login`. "
        "To see the fleet work without any, rehearse: `fleet up --rehearsal`, or `fleet demo`.",
        looked_for=[*KEY_NAMES, "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", str(folder / ".credentials.json")],
    )


def handed_over(folder: Path) -> dict[str, str]:
    """Return the variables that `fleet up` left for the agents of this machine, none where it left none."""
    try:
        data = json.loads((folder / "credentials.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in data.items()} if isinstance(data, dict) else {}


def rehearsal_credentials(base_url: str) -> Credentials:
    """Return what Claude Code needs to talk to the rehearsal model; the key opens nothing."""
    return Credentials("rehearsal", {"ANTHROPIC_API_KEY": "rehearsal-no-key", "ANTHROPIC_BASE_URL": base_url})


def _take(env: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: env[name] for name in names if name in env}
