"""What every route needs, in one value; and the questions that several of them ask."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from fleet.config import FleetConfig
from fleet.contracts import Router, Store
from fleet.errors import AgentGone, FleetError, NotFound
from fleet.gateway.broadcaster import Broadcaster
from fleet.lifecycle import AgentState
from fleet.models import AgentInfo, NodeInfo

NODES_FRESH_S = 10.0


@dataclass
class Parts:
    """The gateway's view of the fleet.

    Attributes:
        started_at: when this gateway began, in seconds since the epoch.
    """

    config: FleetConfig
    store: Store
    router: Router
    broadcaster: Broadcaster
    started_at: float = field(default_factory=time.time)
    _nodes: tuple[float, bool] = (0.0, True)

    async def agent(self, agent_id: str) -> AgentInfo:
        """Return an agent, also one that was stopped. Raises NotFound."""
        # Not from the overview: it lags by a moment, and who has just spawned or stopped an agent sees what was.
        for every in (False, True):
            for agent in await self.store.agents(all=every):
                if agent.id == agent_id:
                    return agent
        raise NotFound(
            f"There is no agent {agent_id[:80]!r}. `fleet agents` lists those there are.", what="agent", id=agent_id
        )

    async def living_agent(self, agent_id: str) -> AgentInfo:
        """Return an agent that can still do something. Raises NotFound, AgentGone."""
        agent = await self.agent(agent_id)
        if agent.state in (AgentState.STOPPED, AgentState.FAILED) and not agent.wanted:
            raise AgentGone(
                f"Agent {agent_id} is gone: it is {agent.state.value}. Start another with `fleet spawn {agent.role}`.",
                agent=agent_id,
                state=agent.state.value,
            )
        return agent

    async def one_machine(self) -> bool:
        """Whether all agents run on this machine, so that paths can be checked here."""
        asked, answer = self._nodes
        if time.monotonic() - asked > NODES_FRESH_S or not asked:
            try:
                nodes: list[NodeInfo] = await self.router.nodes()
                answer = sum(node.alive for node in nodes) <= 1
                self._nodes = (time.monotonic(), answer)
            except FleetError:
                pass  # The submit that asks will meet the same trouble and say so.
        return answer


def dump(model: Any) -> Any:
    """Return a model as JSON values."""
    return model.model_dump(mode="json")
