"""The keeper's hands on Ray: `python -m fleet.cluster.deploy up|down`, with its orders as JSON on stdin.

A process of its own, because a process that is connected to Ray is ended by it when the head dies, and the keeper must
outlive the head. It answers with one line of JSON: what it did, or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve

from fleet.config import FleetConfig
from fleet.contracts import AGENT_PREFIX, NAMESPACE, SERVE_APP, STORE_NAME
from fleet.errors import FleetError, StartFailed

log = logging.getLogger("fleet.cluster")

CONNECT_TIMEOUT_S = 90.0
AGENT_GRACE_S = 5.0
STORE_GRACE_S = 10.0


def connect(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Connect to a Ray cluster, which may still be starting."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
            return
        except Exception as error:
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"Expected a Ray cluster at {address} within {timeout_s:.0f} s, but: {error}.", address=address
                ) from error
            ray.shutdown()
            time.sleep(0.5)


def up(config: FleetConfig, address: str) -> dict[str, Any]:
    """Create the store and deploy the application; return when both parts are healthy, with the gateway's port."""
    from ray.serve.config import HTTPOptions, ProxyLocation

    from fleet.cluster.app import build_app
    from fleet.store.launch import launch_store

    connect(address)
    launch_store(config)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=config.host, port=config.port),
        logging_config={"enable_access_log": False},
    )
    try:
        serve.run(build_app(config), name=SERVE_APP, route_prefix="/")
    except RuntimeError as error:
        raise StartFailed(f"The fleet's parts did not start: {_why(error)}") from error
    return {"port": _port(config.port)}


def _port(wanted: int) -> int:
    """Return where Serve listens: on a cluster where it ran before us, its port stays what it was."""
    with contextlib.suppress(Exception):
        from ray.serve.context import _get_global_client

        return int(_get_global_client().http_config.port)
    return wanted


def _why(error: RuntimeError) -> str:
    """Return what Serve knows of the failure: its own exception only names the deployments."""
    with contextlib.suppress(Exception):
        app = serve.status().applications[SERVE_APP]
        messages = [app.message, *(part.message for part in app.deployments.values())]
        return "\n".join(dict.fromkeys(message for message in messages if message)) or str(error)
    return str(error)


def down(address: str, whole: bool) -> None:
    """End the application (with `whole` Serve itself too), then the agents, then the store."""
    connect(address, timeout_s=10.0)
    actors = ray.util.list_named_actors(all_namespaces=True)
    # First the parts that would start the agents again.
    if whole:
        # Serve's own shutdown takes 5 s, and all of Ray ends in a moment.
        for name in sorted(actor["name"] for actor in actors if actor["namespace"] == "serve"):
            with contextlib.suppress(Exception):
                ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
    else:
        with contextlib.suppress(Exception):
            serve.delete(SERVE_APP)
    ours = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
    asyncio.run(_stop_agents([name for name in ours if name.startswith(AGENT_PREFIX)]))
    with contextlib.suppress(Exception):
        _end(ray.get_actor(STORE_NAME, namespace=NAMESPACE), STORE_GRACE_S)


async def _stop_agents(names: list[str]) -> None:
    async def stop(name: str) -> None:
        with contextlib.suppress(Exception):
            actor = ray.get_actor(name, namespace=NAMESPACE)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(_settle(actor.stop.remote(1.0)), AGENT_GRACE_S)
            ray.kill(actor, no_restart=True)

    await asyncio.gather(*(stop(name) for name in names))


async def _settle(reply: Any) -> Any:
    return await reply


def _end(actor: Any, timeout_s: float) -> None:
    """End an actor in order, so that it can close its file; kill it after the timeout."""
    with contextlib.suppress(Exception):
        ray.get(actor.__ray_terminate__.remote(), timeout=timeout_s)
    with contextlib.suppress(Exception):
        ray.kill(actor, no_restart=True)


def main() -> int:
    """Do what stdin says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    answer = sys.stdout
    # Ray and Serve print to stdout.
    sys.stdout = sys.stderr
    orders = json.loads(sys.stdin.read())
    reply: dict[str, Any] = {}
    failed = True
    try:
        if sys.argv[1] == "up":
            reply = up(FleetConfig.model_validate(orders["config"]), orders["address"])
        else:
            down(orders["address"], bool(orders["whole"]))
        failed = False
    except FleetError as error:
        log.exception("deploy failed")
        reply = error.to_dict()
    except Exception as error:
        log.exception("deploy failed")
        reply = StartFailed(f"{type(error).__name__}: {error}").to_dict()
    print(json.dumps(reply), file=answer, flush=True)
    with contextlib.suppress(Exception):
        ray.shutdown()
    return int(failed)


if __name__ == "__main__":
    # Imported by name, so that nothing of this file is pickled by value as a part of `__main__`.
    from fleet.cluster import deploy

    assert Path(deploy.__file__).exists()
    sys.exit(deploy.main())
