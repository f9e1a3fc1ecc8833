"""The environment of a Claude Code process: by allow-list, since every command it runs inherits it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fleet.claude.credentials import Credentials

INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "VIRTUAL_ENV",
    "FLEET_INSTANCE",
)
"""Taken over from the agent's process. `FLEET_INSTANCE` lets `fleet down` find what is left of its fleet."""

SETTINGS = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    # Work in the background would start turns by itself after the result.
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    # Tries beyond these are the fleet's: it waits without holding an agent.
    "CLAUDE_CODE_MAX_RETRIES": "4",
    # The shortest silence of a byte stream that Claude Code looks into; its own default is 300 s.
    "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": "120000",
}

RUN_TAG = "FLEET_RUN_ID"
AGENT_TAG = "FLEET_AGENT_ID"
OWNER_TAG = "FLEET_AGENT_OWNER"
"""`HOME#AGENT`: two fleets on a machine may both have an agent `qa_tester-1`."""


def claude_environment(
    environ: Mapping[str, str],
    credentials: Credentials,
    *,
    config_dir: Path,
    run_id: str,
    agent_id: str,
    owner: str,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the whole environment of one Claude Code process (without what goes by file descriptor)."""
    env = {name: environ[name] for name in INHERITED if environ.get(name)}
    env.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    env.setdefault("LANG", "C.UTF-8")
    env |= SETTINGS
    env |= credentials.visible
    env["CLAUDE_CONFIG_DIR"] = str(credentials.config_dir or config_dir)
    env |= {RUN_TAG: run_id, AGENT_TAG: agent_id, OWNER_TAG: owner}
    return env | dict(extra or {})
