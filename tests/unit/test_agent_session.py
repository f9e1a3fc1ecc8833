"""What a run says first; folders that are refused; approvals."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, PermissionUpdate, ToolPermissionContext
from claude_agent_sdk.types import PermissionRuleValue

from fleet.agent.approvals import Permissions, session_rules
from fleet.agent.session import CUT_OFF, MOVED, first_message, session_of_task, usable, write_transcript
from fleet.agent.workspace import check_path
from fleet.errors import WorkspaceRefused
from fleet.lifecycle import TaskState
from fleet.models import Approval, Approvals, ApprovalState, Role, Run, RunOrder, Task

ROLE = Role(name="tester", prompt="p", tools=("Read",))


def order(role: Role = ROLE, **changes: Any) -> RunOrder:
    task = Task(id="t-1", role="tester", prompt="Do it.", state=TaskState.RUNNING, created_at=1.0, updated_at=1.0)
    run = Run(
        id="r-1", task_id="t-1", number=1, role="tester", agent_id="tester-1", incarnation=1, epoch=1, started_at=1.0
    )
    return RunOrder(epoch=1, run=run, task=task, role=role, **changes)


SAID: list[dict[str, Any]] = [{"type": "user", "message": {"role": "user", "content": "Do it."}}]


@pytest.mark.parametrize(
    ("changes", "entries", "words"),
    [
        ({}, [], "Do it."),
        ({"moved": True}, [], "Do it."),
        ({"resume": True, "moved": True}, SAID, MOVED),
        ({"resume": True}, SAID, CUT_OFF),
        ({"resume": True}, [{"type": "user", "message": {"content": "Something earlier."}}], "Do it."),
        ({"resume": True, "message": "It was allowed."}, SAID, "It was allowed."),
    ],
)
def test_a_run_says_first_what_its_session_does_not_know(
    changes: dict[str, Any], entries: list[dict[str, Any]], words: str
) -> None:
    assert first_message(order(**changes), entries) == words


def test_a_session_follows_from_its_task() -> None:
    assert session_of_task("t-1") == session_of_task("t-1") != session_of_task("t-2")


def test_a_transcript_in_which_nothing_was_said_is_of_no_use() -> None:
    assert not usable([{"type": "queue-operation"}])
    assert usable(SAID)


def test_a_transcript_is_written_where_claude_looks(tmp_path: Path) -> None:
    file = write_transcript(tmp_path, "-w", "s", SAID)
    assert file == tmp_path / "projects" / "-w" / "s.jsonl"
    assert file.read_text().count("\n") == 1


@pytest.mark.parametrize("text", [None, "", "relative/path", "/none-such", "/etc"])
def test_folders_that_are_missing_or_outside_are_refused(text: str | None, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceRefused) as caught:
        check_path(text, (tmp_path,))
    assert caught.value.fields["roots"] == [str(tmp_path)]


def test_a_link_out_of_the_roots_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(WorkspaceRefused):
        check_path(str(root / "link"), (root,))
    assert check_path(str(root), (root,)) == root.resolve()
    with pytest.raises(WorkspaceRefused):
        check_path(str(root / ".." / "outside"), (root,))


class Desk:
    """Where a person would sit."""

    def __init__(self) -> None:
        self.asked: list[Approval] = []
        self.withdrawn: list[str] = []
        self.noted: list[str] = []
        self.parked: list[str] = []
        self.arrived = asyncio.Event()

    async def ask(self, approval: Approval) -> None:
        self.asked.append(approval)
        self.arrived.set()

    async def withdraw(self, approval_id: str) -> None:
        self.withdrawn.append(approval_id)
        self.arrived.set()

    def note(self, type: str, payload: dict[str, Any]) -> None:
        self.noted.append(type)

    def permissions(self, **changes: Any) -> Permissions:
        return Permissions(
            order(ROLE.model_copy(update=changes)), self.ask, self.withdraw, self.note, self.parked.append
        )


CONTEXT = ToolPermissionContext(title="Claude wants to run ls")


async def test_without_anybody_to_ask_a_call_is_refused_with_words() -> None:
    desk = Desk()
    permissions = desk.permissions()
    answer = await permissions.can_use_tool("Bash", {"command": "ls"}, CONTEXT)
    assert isinstance(answer, PermissionResultDeny)
    assert "Read" in answer.message
    assert permissions.denials[0]["tool_name"] == "Bash"
    assert desk.asked == []


async def test_a_person_allows_a_call_with_another_input() -> None:
    desk = Desk()
    permissions = desk.permissions(approvals=Approvals.ASK)
    call = asyncio.create_task(permissions.can_use_tool("Bash", {"command": "ls"}, CONTEXT))
    await asyncio.wait_for(desk.arrived.wait(), 5)
    asked = desk.asked[0]
    assert (asked.tool, asked.description, asked.role) == ("Bash", "Claude wants to run ls", "tester")
    assert permissions.waiting == 1
    decided = asked.model_copy(update={"state": ApprovalState.ALLOWED, "changed_input": {"command": "ls -l"}})
    assert permissions.decide(decided)
    answer = await call
    assert isinstance(answer, PermissionResultAllow)
    assert answer.updated_input == {"command": "ls -l"}
    assert not permissions.decide(decided)


async def test_a_person_refuses_with_words_for_the_model() -> None:
    desk = Desk()
    permissions = desk.permissions(approvals=Approvals.ASK)
    call = asyncio.create_task(permissions.can_use_tool("Bash", {"command": "ls"}, CONTEXT))
    await asyncio.wait_for(desk.arrived.wait(), 5)
    permissions.decide(desk.asked[0].model_copy(update={"state": ApprovalState.DENIED, "message": "use make"}))
    answer = await call
    assert isinstance(answer, PermissionResultDeny)
    assert answer.message == "use make"


@pytest.mark.parametrize(("default", "kind"), [("allow", PermissionResultAllow), ("deny", PermissionResultDeny)])
async def test_when_nobody_answers_the_default_of_the_role_counts(default: str, kind: type) -> None:
    desk = Desk()
    permissions = desk.permissions(approvals=Approvals.ASK, approval_timeout_s=0.01, approval_default=default)
    started = time.monotonic()
    answer = await permissions.can_use_tool("Bash", {"command": "ls"}, CONTEXT)
    assert isinstance(answer, kind)
    assert time.monotonic() - started < 5
    desk.arrived.clear()
    if not desk.withdrawn:
        await asyncio.wait_for(desk.arrived.wait(), 5)
    assert desk.withdrawn == [desk.asked[0].id]


async def test_a_call_that_no_longer_waits_is_withdrawn() -> None:
    desk = Desk()
    permissions = desk.permissions(approvals=Approvals.ASK)
    call = asyncio.create_task(permissions.can_use_tool("Bash", {"command": "ls"}, CONTEXT))
    await asyncio.wait_for(desk.arrived.wait(), 5)
    desk.arrived.clear()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(desk.arrived.wait(), 5)
    assert desk.withdrawn == [desk.asked[0].id]


def test_allowed_for_longer_means_for_the_session_and_never_in_the_work_tree() -> None:
    rule = PermissionRuleValue(tool_name="Bash", rule_content="ls")
    given = [
        PermissionUpdate(type="addRules", rules=[rule], behavior="allow", destination="localSettings"),
        PermissionUpdate(type="setMode", mode="acceptEdits", destination="session"),
    ]
    assert session_rules(given) == [
        PermissionUpdate(type="addRules", rules=[rule], behavior="allow", destination="session")
    ]
