"""`serve.yaml` in the fleet's home: Ray Serve's config file of the running fleet, for `serve deploy`.

A deploy replaces router and gateway, one after the other; store and agents stay, and what they run goes on. What
differs in `runtime_env` or `args` is what makes a version: an unchanged file replaces nothing.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from fleet.cluster.record import write_private
from fleet.config import FleetConfig
from fleet.contracts import SERVE_APP
from fleet.revision import revision

HEADER = """\
# Ray Serve's config file of this fleet, written by `fleet up`. To replace router and gateway while agents work on,
# change a setting, or FLEET_REVISION after a newer fleet was installed on every node; then:
#     export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}
#     serve deploy --address {dashboard} {path}
# Serve removes applications that an earlier file had and this one has not: on a cluster with applications of your own,
# put the one below into their file.
"""


def serve_file(config: FleetConfig) -> Path:
    """Return where the file is."""
    return config.home / "serve.yaml"


def write_serve_file(config: FleetConfig, dashboard: str, ray_token: str) -> Path:
    """Write the file of a fleet with these settings.

    Args:
        config: the settings, with the port that the fleet has.
        dashboard: the Ray dashboard's address, for the comment.
        ray_token: the path of Ray's token, for the comment.
    """
    path = serve_file(config)
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": config.host, "port": config.port},
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": SERVE_APP,
                "route_prefix": "/",
                "import_path": "fleet.cluster.app:build_app_of",
                # A worker process that has imported an earlier revision has another environment, and is not taken.
                "runtime_env": {"env_vars": {"FLEET_REVISION": revision()}},
                "args": {"settings": config.model_dump(mode="json")},
            }
        ],
    }
    header = HEADER.format(path=path, dashboard=dashboard, token=ray_token)
    write_private(path, header + yaml.safe_dump(content, sort_keys=False))
    return path
