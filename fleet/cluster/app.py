"""The Serve application: the router and, in front of it, the gateway."""

from __future__ import annotations

from ray import serve

from fleet.config import FleetConfig
from fleet.contracts import GATEWAY_DEPLOYMENT, ROUTER_DEPLOYMENT
from fleet.gateway.app import Gateway
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


def build_app(config: FleetConfig) -> serve.Application:
    """Return the application of a fleet with these settings, for `serve.run`.

    The gateway's ASGI app is built in the replica, where its handlers can hold what cannot be pickled. It gets the
    router's node only to make Serve deploy both: it finds the router by name.
    """
    router = serve.deployment(Router, name=ROUTER_DEPLOYMENT, **SETTINGS).bind(config)
    ingress = serve.ingress()(_Gateway)
    return serve.deployment(ingress, name=GATEWAY_DEPLOYMENT, **SETTINGS).bind(config, router)


class _Gateway(Gateway):
    """The gateway, bound to the router's handle so that Serve deploys the router with it."""

    def __init__(self, config: FleetConfig, router: object) -> None:
        super().__init__(config)
