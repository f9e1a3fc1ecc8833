"""Tool calls outside a role's rules: refused with words, or asked of a person."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, PermissionUpdate, ToolPermissionContext
from claude_agent_sdk.types import PermissionRuleValue

from fleet.claude.frames import describe_tool
from fleet.errors import FleetError
from fleet.models import Approval, Approvals, ApprovalState, RunOrder, new_id

log = logging.getLogger("fleet.agent")

Ask = Callable[[Approval], Awaitable[None]]
Withdraw = Callable[[str], Awaitable[None]]
Park = Callable[[str], None]
Note = Callable[[str, dict[str, Any]], None]


class Permissions:
    """Answers Claude Code's questions for permission in one run.

    Attributes:
        denials: the calls that were refused.
        waited_s: how long people were waited for.
        waiting: how many calls wait now.
    """

    def __init__(self, order: RunOrder, ask: Ask, withdraw: Withdraw, note: Note, park: Park) -> None:
        self.order = order
        self.denials: list[dict[str, Any]] = []
        self.waited_s = 0.0
        self.waiting = 0
        self._ask, self._withdraw, self._note, self._park = ask, withdraw, note, park
        self._open: dict[str, asyncio.Future[Approval]] = {}

    async def can_use_tool(
        self, tool: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        """Answer one question; the SDK calls it and cancels it when the call no longer waits."""
        if self.order.role.approvals is Approvals.DENY:
            rules = ", ".join((*self.order.role.tools, *self.order.rules)) or "none"
            return self._deny(
                tool,
                tool_input,
                f"The role {self.order.role.name} may not make this call; it may use: {rules}. Nobody can be asked: "
                "do the task another way, or say in your answer what is missing.",
            )
        now = time.time()
        approval = Approval(
            id=new_id("a"),
            task_id=self.order.task.id,
            run_id=self.order.run.id,
            agent_id=self.order.run.agent_id,
            role=self.order.role.name,
            tool=tool,
            input=tool_input,
            description=context.title or context.description or describe_tool(tool, tool_input),
            created_at=now,
            expires_at=now + self.order.role.approval_timeout_s,
        )
        started = time.monotonic()
        self.waiting += 1
        try:
            decided = await self._decision(approval)
        finally:
            self.waiting -= 1
            self.waited_s += time.monotonic() - started
        return self._answer(decided, tool, tool_input, context)

    async def _decision(self, approval: Approval) -> Approval:
        future: asyncio.Future[Approval] = asyncio.get_running_loop().create_future()
        self._open[approval.id] = future
        words = {"approval_id": approval.id, "tool": approval.tool, "description": approval.description}
        self._note("approval_asked", words)
        log.info("approval asked task=%s run=%s approval=%s", approval.task_id, approval.run_id, approval.id)
        left = False
        role = self.order.role
        try:
            deadline = time.monotonic() + min(role.approval_timeout_s, role.approval_hold_s)
            await self._tell(approval, deadline)
            decided = await asyncio.wait_for(future, max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if role.approval_hold_s < role.approval_timeout_s:
                # The person may take long, and 200 MB of memory must not wait with the call: the run is parked, and
                # what is left of it here is cancelled.
                self._note("approval_parked", words)
                self._park(approval.id)
                await asyncio.Event().wait()
            left = True
            allow = self.order.role.approval_default == "allow"
            decided = approval.model_copy(
                update={
                    "state": ApprovalState.ALLOWED if allow else ApprovalState.DENIED,
                    "message": "" if allow else "Nobody answered in time, so the call is not made.",
                    "decided_by": "timeout",
                    "decided_at": time.time(),
                }
            )
        except asyncio.CancelledError:
            left = True
            self._note("approval_withdrawn", words)
            raise
        finally:
            self._open.pop(approval.id, None)
            if left:
                self._spawn(self._leave(approval.id))
        self._note("approval_decided", {**words, "state": decided.state.value, "by": decided.decided_by})
        return decided

    async def _tell(self, approval: Approval, deadline: float) -> None:
        """Tell the router; it may be restarting."""
        while True:
            try:
                await self._ask(approval)
                return
            except FleetError as error:
                if time.monotonic() + 0.5 >= deadline:
                    raise TimeoutError from error
                await asyncio.sleep(0.5)

    async def _leave(self, approval_id: str) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._withdraw(approval_id), 10.0)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._kept = task  # A task that nobody holds may be collected.

    def decide(self, approval: Approval) -> bool:
        """Give the decision of a person to the call that waits for it; False when none does."""
        future = self._open.get(approval.id)
        if future is None or future.done():
            return False
        future.set_result(approval)
        return True

    def _answer(
        self, decided: Approval, tool: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        if decided.state is not ApprovalState.ALLOWED:
            return self._deny(tool, tool_input, decided.message or "A person refused this call.")
        updates = session_rules(context.suggestions) if decided.scope in ("task", "role") else None
        return PermissionResultAllow(
            updated_input=decided.changed_input if decided.changed_input is not None else tool_input,
            updated_permissions=updates or None,
        )

    def _deny(self, tool: str, tool_input: dict[str, Any], message: str) -> PermissionResultDeny:
        self.denials.append({"tool_name": tool, "tool_input": tool_input, "message": message})
        self._note("call_refused", {"tool": tool, "description": describe_tool(tool, tool_input), "message": message})
        return PermissionResultDeny(message=message)


def session_rules(suggestions: list[PermissionUpdate]) -> list[PermissionUpdate]:
    """Return Claude Code's own suggestions, for the session only: theirs would be written into the work tree."""
    rules: list[PermissionRuleValue] = []
    for update in suggestions:
        if update.type == "addRules" and update.behavior == "allow":
            rules += update.rules or []
    if not rules:
        return []
    return [PermissionUpdate(type="addRules", rules=rules, behavior="allow", destination="session")]
