"""Makes the store a Ray actor: named, detached, restarted for ever, on the node where its file is."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fleet.config import FleetConfig
from fleet.contracts import NAMESPACE, STORE_NAME
from fleet.store.actor import StoreActor

MAX_CONCURRENCY = 1000
"""Calls at once: every follower holds one, every agent's batch another."""


def launch_store(config: FleetConfig) -> Any:
    """Return the store's actor handle, made on this node when there is none yet.

    It is pinned here (`soft=False`): on another node it would find no file and begin an empty one.
    """
    node = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(StoreActor)
        .options(
            name=STORE_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            max_concurrency=MAX_CONCURRENCY,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        )
        .remote(
            str(config.store_path),
            retention_days=config.event_retention_days,
            export_url=config.export_url,
            export_every_s=config.export_every_s,
        )
    )
