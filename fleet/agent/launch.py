"""Makes a detached, named Ray actor of the agent's plain class."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fleet.agent.actor import FleetAgent
from fleet.config import FleetConfig
from fleet.contracts import AGENT_PREFIX, NAMESPACE
from fleet.models import Role
from fleet.observability.launch import logged

MIB = 1024 * 1024


def launch_agent(config: FleetConfig, role: Role, agent_id: str, incarnation: int, *, node: str | None = None) -> Any:
    """Start an agent's actor and return its handle; the actor may still wait for its place.

    Args:
        config: the fleet's settings.
        role: what it needs: CPUs, memory, labels, resources.
        agent_id: `ROLE-N`.
        incarnation: which life of the agent this is.
        node: the id of the Ray node it must be on; None leaves the choice to Ray.
    """
    options: dict[str, Any] = {
        "name": AGENT_PREFIX + agent_id,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": role.cpus,
        "memory": role.memory_mb * MIB,
        # The router starts a lost agent again, with its next incarnation; a call that Ray repeats would run a turn
        # of Claude twice.
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if role.labels:
        options["label_selector"] = dict(role.labels)
    if role.resources:
        options["resources"] = dict(role.resources)
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    elif role.spread:
        options["scheduling_strategy"] = "SPREAD"
    actor = logged(FleetAgent, f"agent-{agent_id}", config.log_level)
    return ray.remote(actor).options(**options).remote(config, role, agent_id, incarnation)
