"""Makes the store a Ray actor: named, detached, restarted for ever, on the node where its file is."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fleet.config import FleetConfig
from fleet.contracts import NAMESPACE, STORE_NAME
from fleet.errors import FleetError
from fleet.observability.launch import logged
from fleet.store.actor import StoreActor

log = logging.getLogger("fleet.store")

MAX_CONCURRENCY = 1000
"""Calls at once: every follower holds one, every agent's batch another."""
HEAD = "node:__internal_head__"
RETRY_S = 1.0
"""How long a restarted store that cannot open its file waits before the next try."""


class Store(StoreActor):
    """The store as Ray runs it: a restart that fails is tried again."""

    def __init__(self, path: str, **options: Any) -> None:
        try:
            super().__init__(path, **options)
        except FleetError as error:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                raise
            # Ray gives up an actor whose constructor raises, but restarts one whose process ends: a full disk passes.
            log.error("store cannot open its file yet path=%s error=%s", path, error)
            time.sleep(RETRY_S)
            os._exit(1)


def launch_store(config: FleetConfig) -> Any:
    """Return the store's actor handle, made on this node when there is none yet.

    It is pinned here: on another node it would find no file and begin an empty one. A head that comes back has another
    node id, so there it is pinned by the head's mark.
    """
    node = ray.get_runtime_context().get_node_id()
    here = next(entry for entry in ray.nodes() if entry["NodeID"] == node)
    place: dict[str, Any] = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}
    if HEAD in here["Resources"]:
        place = {"resources": {HEAD: 0.001}}
    return (
        ray.remote(logged(Store, "store", config.log_level))
        .options(
            name=STORE_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            max_concurrency=MAX_CONCURRENCY,
            **place,
        )
        .remote(
            str(config.store_path),
            retention_days=config.event_retention_days,
            export_url=config.export_url,
            export_every_s=config.export_every_s,
        )
    )
