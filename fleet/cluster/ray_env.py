"""The environment of our own Ray: closed, quiet, quick to see a death, without credentials."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from fleet.cluster.processes import INSTANCE
from fleet.cluster.record import write_private

SECRET = re.compile(r"(API_KEY|ACCESS_KEY|AUTH_TOKEN|OAUTH_TOKEN|SESSION_TOKEN|SECRET|PASSWORD|CREDENTIALS)", re.I)
"""Names that no process of the cluster inherits, whatever they are for."""

FROM_THE_LAUNCHER = frozenset(
    {"RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME", "RAY_OVERRIDE_RESOURCES", "RAY_OVERRIDE_LABELS"}
)
"""What `ray up` tells a node of itself; without them its autoscaler does not know the node that it started."""

FIXED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A driver under `uv run` would otherwise upload the project and start each worker through uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # A dead raylet refuses its connection at once, 5 times in 2.5 s; a slow one has 25 s, so that a busy machine does
    # not lose its only node.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
    # A killed proxy is back after 4 s in place of 28.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # The default keeps 100,000 task events in the memory of the GCS, of no use to us.
    "RAY_task_events_max_num_task_in_gcs": "5000",
    # `ray start` would wait up to 30 s for Serve to leave before it ends; the keeper has seen to that.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONUNBUFFERED": "1",
}


def ray_environment(
    environ: Mapping[str, str],
    *,
    instance: str,
    ray_token_path: Path,
    loopback: bool,
    credential_names: Iterable[str] = (),
    metric_ports: tuple[int, int] | None = None,
) -> dict[str, str]:
    """Return the environment in which our Ray and everything on it runs.

    Args:
        environ: what the `fleet` command was given.
        instance: the mark of this fleet's processes.
        ray_token_path: the file of Ray's own token.
        loopback: bind all of Ray's ports to 127.0.0.1.
        credential_names: variables that stay out beside those that look like secrets.
        metric_ports: of the autoscaler's and the dashboard's own metrics, which are fixed ports otherwise.
    """
    left_out = {"PYTHONDONTWRITEBYTECODE", *credential_names}
    env = {
        name: value
        for name, value in environ.items()
        # Ray's variables may name another cluster.
        if name not in left_out and not SECRET.search(name) and not name.startswith("RAY_")
    }
    if not loopback:
        env |= {name: environ[name] for name in FROM_THE_LAUNCHER if name in environ}
    env |= FIXED
    # Code of a Ray job finds the fleet it runs in by its home.
    env["FLEET_HOME"] = instance.rpartition("#")[0]
    env |= {INSTANCE: instance, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(ray_token_path)}
    if loopback:
        # With 0 Ray behaves on Linux as it does on a desktop: GCS, raylet, metrics and agents listen on 127.0.0.1 only.
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if metric_ports:
        env["AUTOSCALER_METRIC_PORT"], env["DASHBOARD_METRIC_PORT"] = map(str, metric_ports)
    return env


def joined_environment(
    environ: Mapping[str, str], *, instance: str, credential_names: Iterable[str] = ()
) -> dict[str, str]:
    """Return the environment of what joins a Ray cluster that is not ours: its own `RAY_*` variables stay."""
    left_out = set(credential_names)
    env = {name: value for name, value in environ.items() if name not in left_out}
    return env | {INSTANCE: instance, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "GRADIO_ANALYTICS_ENABLED": "False"}


def ensure_token(path: Path) -> str:
    """Return the token of a file, made at first with mode 0600."""
    try:
        if token := path.read_text(encoding="utf-8").strip():
            path.chmod(0o600)
            return token
    except FileNotFoundError:
        pass
    token = secrets.token_hex(32)
    write_private(path, token + "\n")
    return token
