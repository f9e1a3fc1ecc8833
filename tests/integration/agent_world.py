"""What an agent needs around it: a scripted model on loopback, a store that records, a router that is asked."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from fleet.agent.actor import FleetAgent
from fleet.config import FleetConfig
from fleet.errors import Unavailable
from fleet.lifecycle import TaskState
from fleet.models import Activity, Approval, Event, EventKind, Role, Run, RunOrder, Task, Workspace, new_id

PATIENCE_S = 60.0
"""How long a test waits for what must come; the machine may be slow."""


async def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait for a condition and return its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for: {what}"
        await asyncio.sleep(0.02)
    return value


def call(tool: str, **given: Any) -> dict[str, Any]:
    """A step of a script: a tool call."""
    return {"tool": tool, "input": given}


def say(text: str) -> dict[str, Any]:
    """A step of a script: the last words of a turn."""
    return {"text": text}


class ScriptedModel:
    """The Messages API on loopback. The next step follows the highest one that the conversation already has.

    A step may have `status` (an HTTP error), or `hold` (an asyncio.Event that is waited for first).
    """

    def __init__(self, steps: Sequence[dict[str, Any]]) -> None:
        self.steps = list(steps)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.base_url = ""

    async def start(self) -> ScriptedModel:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_route("*", "/{rest:.*}", self._other)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _other(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("x-api-key", ""))
        number = self._next(body["messages"])
        step = self.steps[number] if number < len(self.steps) else say("Nothing more to do.")
        if hold := step.get("hold"):
            await hold.wait()
        if status := step.get("status"):
            headers = {"retry-after": "600"} if status == 429 else {}
            error = {"type": "error", "error": {"type": "error", "message": f"scripted {status}"}}
            return web.json_response(error, status=status, headers=headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in self._events(step, number, body["model"]):
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        return response

    def _next(self, messages: list[dict[str, Any]]) -> int:
        highest = -1
        for message in messages:
            content = message.get("content")
            for block in content if isinstance(content, list) and message["role"] == "assistant" else ():
                text = str(block.get("text", ""))
                if block.get("type") == "tool_use" and block["id"].startswith("toolu_s_"):
                    highest = max(highest, int(block["id"].rpartition("_")[2]))
                elif text.startswith("#"):
                    highest = max(highest, int(text[1:].split()[0]))
        return highest + 1

    def _events(self, step: dict[str, Any], number: int, model: str) -> list[dict[str, Any]]:
        usage = {"input_tokens": 100, "output_tokens": 1, "cache_read_input_tokens": 10}
        message = {
            "id": f"msg_{number}_{len(self.requests)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "usage": usage,
        }
        if "tool" in step:
            block = {"type": "tool_use", "id": f"toolu_s_{number}", "name": step["tool"], "input": {}}
            piece = {"type": "input_json_delta", "partial_json": json.dumps(step["input"])}
        else:
            block = {"type": "text", "text": ""}
            piece = {"type": "text_delta", "text": f"#{number} {step['text']}"}
        stop = "tool_use" if "tool" in step else "end_turn"
        return [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": piece},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 20}},
            {"type": "message_stop"},
        ]


class Recorder:
    """The few methods of the store that an agent uses, and of the router."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.activities: list[Activity] = []
        self.asked: list[Approval] = []
        self.withdrawn: list[str] = []
        self.away = False

    async def append_events(self, events: Sequence[Event]) -> int:
        self._reach()
        last: dict[str, int] = {}
        for known in self.events:
            last[known.run_id] = max(last.get(known.run_id, -1), known.seq)
        for event in events:
            if event.seq > last.get(event.run_id, -1):
                # As over Ray: a copy, through JSON.
                self.events.append(Event.model_validate_json(event.model_dump_json()))
        return events[-1].seq

    async def beat(self, activity: Activity) -> None:
        self._reach()
        self.activities.append(activity)

    async def transcript(self, session_id: str) -> list[dict[str, Any]]:
        seen: dict[str, dict[str, Any]] = {}
        for event in self.events:
            if event.kind is EventKind.TRANSCRIPT and Path(event.payload["file"]).stem == session_id:
                for entry in event.payload["entries"]:
                    seen.setdefault(str(entry.get("uuid") or json.dumps(entry, sort_keys=True)), entry)
        return list(seen.values())

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("The store does not answer.", part="store")

    async def ask(self, approval: Approval) -> None:
        self.asked.append(approval)

    async def withdraw(self, approval_id: str) -> None:
        self.withdrawn.append(approval_id)

    def states(self, run_id: str | None = None) -> list[str]:
        return [e.type for e in self.events if e.kind is EventKind.STATE and run_id in (None, e.run_id)]

    def frames(self, type: str) -> list[dict[str, Any]]:
        return [e.payload for e in self.events if e.kind is EventKind.FRAME and e.type == type]


ROLE = Role(name="tester", prompt="You test agents.", tools=("Read", "Write", "Edit", "Bash"), silence_limit_s=120)


class World:
    """One folder with a model, a recorder and agents."""

    def __init__(self, folder: Path, model: ScriptedModel) -> None:
        self.folder = folder
        self.model = model
        self.store = Recorder()
        self.agents: list[FleetAgent] = []
        (folder / "home").mkdir()

    def agent(self, name: str = "tester-1", **settings: Any) -> FleetAgent:
        values = {"home": self.folder / "fleet", "roots": (self.folder,), "lease_s": 60.0, **settings}
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "ANTHROPIC_API_KEY": "dummy-key-of-a-test",
            "ANTHROPIC_BASE_URL": self.model.base_url,
        }
        made = FleetAgent(
            FleetConfig(**values),
            ROLE,
            name,
            store=self.store,  # type: ignore[arg-type]
            router=self.store,
            environ=environ,
        )
        self.agents.append(made)
        return made

    def order(
        self,
        prompt: str = "Do what the script says.",
        *,
        workspace: Workspace | None = None,
        role: Role | None = None,
        before: RunOrder | None = None,
        epoch: int = 1,
        agent_id: str = "tester-1",
        task: dict[str, Any] | None = None,
        **changes: Any,
    ) -> RunOrder:
        """Return an order; with `before` the next run of the same task."""
        role = role or ROLE
        now = time.time()
        if before is not None:
            made = before.task.model_copy(update=task or {})
        else:
            made = Task(
                id=new_id("t"),
                role=role.name,
                prompt=prompt,
                workspace=workspace,
                state=TaskState.RUNNING,
                created_at=now,
                updated_at=now,
                **(task or {}),
            )
        run = Run(
            id=new_id("r"),
            task_id=made.id,
            number=before.run.number + 1 if before else 1,
            role=role.name,
            agent_id=agent_id,
            incarnation=1,
            epoch=epoch,
            started_at=now,
        )
        return RunOrder(epoch=epoch, run=run, task=made, role=role, **changes)

    async def close(self) -> None:
        for agent in self.agents:
            await agent.stop()
        await self.model.stop()
