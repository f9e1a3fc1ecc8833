"""What the core asks its shell to do: rows to commit first, then actions. Values, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fleet.models import (
    AgentInfo,
    Approval,
    Batch,
    Refusal,
    Result,
    Role,
    RoleState,
    Run,
    RunOrder,
    Task,
    Transition,
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Give a run to an agent; `acknowledge` is its last run whose outcome is committed."""

    agent_id: str
    order: RunOrder
    acknowledge: str | None = None


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Interrupt a run."""

    agent_id: str
    run_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class LaunchAgent:
    """Start an agent's actor on a node; None leaves the node to Ray."""

    agent: AgentInfo
    role: Role
    node: str | None


@dataclass(frozen=True, slots=True)
class StopAgent:
    """End this life of an agent and everything of it."""

    agent_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """An outcome is committed: the agent may forget it."""

    agent_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class DeliverDecision:
    """Tell an agent what a person decided."""

    agent_id: str
    approval: Approval


@dataclass(frozen=True, slots=True)
class RequestNodes:
    """Tell Ray's autoscaler what all agents need while some have no node: one bundle and its labels for each."""

    bundles: tuple[dict[str, float], ...]
    labels: tuple[dict[str, str], ...] = ()


Action = Dispatch | CancelRun | LaunchAgent | StopAgent | Acknowledge | DeliverDecision | RequestNodes


@dataclass(slots=True)
class Effects:
    """Rows to commit, then actions to do; rows of one id replace each other, the last wins."""

    tasks: dict[str, Task] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    agents: dict[str, AgentInfo] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    roles: dict[str, RoleState] = field(default_factory=dict)
    transitions: list[Transition] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)

    @property
    def rows(self) -> bool:
        """Whether there is anything to commit."""
        return bool(
            self.tasks
            or self.runs
            or self.agents
            or self.results
            or self.approvals
            or self.roles
            or self.transitions
            or self.refusals
            or self.settings
        )

    def merge(self, later: Effects) -> None:
        """Add what came later."""
        for name in ("tasks", "runs", "agents", "results", "approvals", "roles", "settings"):
            getattr(self, name).update(getattr(later, name))
        for name in ("transitions", "refusals", "actions"):
            getattr(self, name).extend(getattr(later, name))

    def batch(self) -> Batch:
        """Return the rows as a batch of the store."""
        return Batch(
            tasks=tuple(self.tasks.values()),
            runs=tuple(self.runs.values()),
            agents=tuple(self.agents.values()),
            results=tuple(self.results.values()),
            approvals=tuple(self.approvals.values()),
            roles=tuple(self.roles.values()),
            transitions=tuple(self.transitions),
            refusals=tuple(self.refusals),
            settings=self.settings,
        )
