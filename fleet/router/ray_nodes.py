"""The nodes as Ray tells them, with the memory that is really free on each."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

import psutil
import ray

from fleet.contracts import HOST_LABEL
from fleet.models import Activity, NodeInfo

MIB = 1024 * 1024
HEAD = "node:__internal_head__"
OURS = frozenset({"CPU", "memory", "object_store_memory"})
"""Resources that are told apart from custom ones."""
ANSWER_S = 1.0


def read_nodes(activities: Iterable[Activity] = ()) -> list[NodeInfo]:
    """Return the living nodes; blocks for a call of the GCS."""
    free = {activity.node: activity.node_free_mb for activity in activities if activity.node and activity.node_free_mb}
    here = ray.get_runtime_context().get_node_id()
    # The newest figure of this node costs nothing; those of others come with their agents' beats.
    free[here] = psutil.virtual_memory().available / MIB
    drains = _draining()
    return [_node(entry, free, drains) for entry in ray.nodes() if entry["Alive"]]


def _draining() -> dict[str, float]:
    """Return the nodes that Ray itself drains, by order or by a cloud's notice, with the time each goes; 0 is open."""
    from ray._private.state import state

    return {node: deadline_ms / 1000.0 for node, deadline_ms in state.get_draining_nodes().items()}


def _node(entry: dict[str, Any], free: dict[str, float], drains: dict[str, float]) -> NodeInfo:
    resources, labels = entry["Resources"], dict(entry.get("Labels") or {})
    memory = resources.get("memory", 0.0) / MIB
    return NodeInfo(
        id=entry["NodeID"],
        name=labels.get(HOST_LABEL) or entry["NodeManagerHostname"],
        address=entry["NodeManagerAddress"],
        alive=True,
        head=HEAD in resources,
        cpus=resources.get("CPU", 0.0),
        cpus_free=resources.get("CPU", 0.0),
        memory_mb=memory,
        memory_free_mb=free.get(entry["NodeID"], 0.0),
        labels=labels,
        resources={name: amount for name, amount in resources.items() if name not in OURS and ":" not in name},
        draining=entry["NodeID"] in drains,
        drain_deadline=drains.get(entry["NodeID"]) or None,
    )


def answers(node_id: str) -> bool:
    """Return whether a node's raylet takes a connection; blocks for a second at most, and for a call of the GCS."""
    entry = next((entry for entry in ray.nodes() if entry["NodeID"] == node_id and entry["Alive"]), None)
    if entry is None:
        return False
    try:
        socket.create_connection((entry["NodeManagerAddress"], entry["NodeManagerPort"]), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def request_nodes(bundles: Iterable[dict[str, float]], labels: Iterable[dict[str, str]]) -> None:
    """Tell Ray's autoscaler what the cluster must hold, with the labels of the nodes; nothing takes the wish back."""
    from ray.autoscaler.sdk import request_resources

    wanted = [{key: value for key, value in bundle.items() if value} for bundle in bundles]
    selectors = list(labels)
    request_resources(bundles=wanted, bundle_label_selectors=selectors if any(selectors) else None)
