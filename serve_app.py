"""The Serve application of a fleet: `serve run serve_app:app` on a running Ray cluster.

The settings come from `fleet.toml` and `FLEET_*` as for `fleet up`; the store's actor is created by the router.
"""

from fleet.cluster.app import build_app
from fleet.config import load_config

app = build_app(load_config())
