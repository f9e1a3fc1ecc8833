"""The Serve application: the router and, in front of it, the gateway."""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from fleet.config import FleetConfig
from fleet.contracts import GATEWAY_DEPLOYMENT, ROUTER_DEPLOYMENT
from fleet.gateway.app import Gateway
from fleet.observability.launch import configure_logs
from fleet.router.deployment import Router

ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""Both parts live on the head: their clients and the store's file are there, and a worker node may go at any time."""

SETTINGS = {
    "num_replicas": 1,
    # Each open stream or wait is one ongoing request; Serve's default of 5 would block the sixth.
    "max_ongoing_requests": 1000,
    # A killed replica is noticed after 2 s; with the default of 10 s requests hang for 9.
    "health_check_period_s": 1,
    # An open WebSocket would hold a redeploy for 20 s.
    "graceful_shutdown_timeout_s": 3,
    "ray_actor_options": ON_HEAD,
    "logging_config": {"enable_access_log": False},
}


SURGE = {"max_surge_percent": 100}
"""The gateway's next version answers before the last one ends. Not the router's: two would take each other's epoch."""


def build_app(config: FleetConfig) -> serve.Application:
    """Return the application of a fleet with these settings, for `serve.run`.

    The gateway's ASGI app is built in the replica, where its handlers can hold what cannot be pickled. It gets the
    router's node only to make Serve deploy both: it finds the router by name.
    """
    router = serve.deployment(_Router, name=ROUTER_DEPLOYMENT, **SETTINGS).bind(config)
    ingress = serve.ingress()(_Gateway)
    return serve.deployment(ingress, name=GATEWAY_DEPLOYMENT, **SETTINGS, **SURGE).bind(config, router)


def build_app_of(args: dict[str, Any]) -> serve.Application:
    """Return the application for `serve deploy`: the settings are in `args` of Serve's config file."""
    return build_app(FleetConfig.model_validate(args["settings"]))


class _Router(Router):
    """The router in its replica."""

    def __init__(self, config: FleetConfig) -> None:
        configure_logs("router", config.log_level)
        keep_replica_on_loopback()
        super().__init__(config)


class _Gateway(Gateway):
    """The gateway, bound to the router's handle so that Serve deploys the router with it."""

    def __init__(self, config: FleetConfig, router: object) -> None:
        configure_logs("gateway", config.log_level)
        keep_replica_on_loopback()
        super().__init__(config)


def keep_replica_on_loopback() -> None:
    """On one machine, let this replica's gRPC server listen on 127.0.0.1 only.

    Ray 2.60 binds it to all interfaces (`Replica._on_initialized`, after the constructor of ours), asks for no token
    there and unpickles what comes: whoever reaches the port could run code.
    """
    if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0":
        return
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    if getattr(bind, "on_loopback", False):
        return

    def bind_on_loopback(server: Any, address: str) -> int:
        return int(bind(server, address.replace("[::]:", "127.0.0.1:")))

    bind_on_loopback.on_loopback = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = bind_on_loopback
