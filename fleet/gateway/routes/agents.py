"""Agents: list, look at, spawn, stop, talk to, read along."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.responses import JSONResponse, Response

from fleet.errors import FleetError, InvalidInput
from fleet.gateway import sse
from fleet.gateway.bodies import Say, Spawn, StopAgent
from fleet.gateway.parts import Parts, dump
from fleet.gateway.streams import Wish
from fleet.gateway.validate import check_prompt, check_role
from fleet.gateway.views import card, card_of, explained
from fleet.lifecycle import AgentState
from fleet.models import AgentInfo

HISTORY_RUNS = 50
STATES = [state.value for state in AgentState]


def routes(parts: Parts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["agents"])

    @router.get("/agents")
    async def listing(
        all: Annotated[bool, Query(description="Also those that were stopped.")] = False,
        role: str | None = None,
        state: str | None = None,
        node: str | None = None,
    ) -> JSONResponse:
        """List agents with what each does now."""
        if state is not None and state not in STATES:
            raise InvalidInput(f"state: expected one of {', '.join(STATES)}, but got {state[:80]!r}.", field="state")
        view = parts.broadcaster.overview
        agents = await parts.store.agents(all=all)
        shown = [
            card_of(view, agent)
            for agent in sorted(agents, key=_order)
            if (role is None or agent.role == role)
            and (state is None or agent.state.value == state)
            and (node is None or agent.node == node)
        ]
        return JSONResponse({"items": shown})

    @router.get("/agents/{agent_id}", responses={200: {"model": AgentInfo}})
    async def detail(agent_id: str) -> JSONResponse:
        """Return an agent, what it does, its task and its last runs."""
        agent = await parts.agent(agent_id)
        task = None
        if agent.task_id is not None:
            try:
                task = await parts.store.task(agent.task_id)
            except FleetError:
                task = None
        runs = await parts.store.runs(agent_id=agent_id, limit=HISTORY_RUNS)
        shown: dict[str, Any] = card(agent, parts.broadcaster.overview.activities.get(agent_id), task)
        return JSONResponse(
            {**shown, "task": explained(task) if task is not None else None, "history": [dump(run) for run in runs]}
        )

    @router.post("/agents", status_code=201)
    async def spawn(body: Spawn) -> JSONResponse:
        """Start agents of a role; they are `starting` until their node has them."""
        check_role(parts.config, body.role)
        agents = await parts.router.spawn(body.role, body.count)
        return JSONResponse({"items": [dump(agent) for agent in agents]}, 201)

    @router.post("/agents/{agent_id}/stop", responses={200: {"model": AgentInfo}})
    async def stop(agent_id: str, body: StopAgent | None = None) -> JSONResponse:
        """Stop an agent, after its run or now; its task goes on with another agent."""
        await parts.living_agent(agent_id)
        return JSONResponse(dump(await parts.router.stop_agent(agent_id, drain=body.drain if body else True)))

    @router.delete("/agents/{agent_id}", responses={200: {"model": AgentInfo}})
    async def delete(agent_id: str, drain: bool = True) -> JSONResponse:
        """As `stop`."""
        await parts.living_agent(agent_id)
        return JSONResponse(dump(await parts.router.stop_agent(agent_id, drain=drain)))

    @router.post("/agents/{agent_id}/send")
    async def send(agent_id: str, body: Say) -> JSONResponse:
        """Say something: into the running conversation, or to an idle agent as a task pinned to it."""
        check_prompt(body.text, "text")
        await parts.living_agent(agent_id)
        return JSONResponse(await parts.router.send(agent_id, body.text))

    @router.post("/agents/{agent_id}/interrupt")
    async def interrupt(agent_id: str) -> JSONResponse:
        """Cancel what the agent runs now; the agent stays."""
        await parts.living_agent(agent_id)
        return JSONResponse({"done": await parts.router.interrupt(agent_id)})

    @router.get(
        "/agents/{agent_id}/logs",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def logs(
        agent_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        kinds: Annotated[str | None, Query(description="frame,state,stderr,message,transcript,gap")] = None,
        tail: Annotated[int, Query(ge=0, le=1000, description="Begin with so many of the newest.")] = 200,
        follow: Annotated[bool, Query(description="Go on with what comes.")] = True,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Stream an agent's events over all its runs as SSE, until it stops; `Last-Event-ID` resumes."""
        begin, wanted = sse.last_id(last_event_id, after), sse.kinds_of(kinds)
        return await sse.respond(
            parts, Wish(agent_id=agent_id, after=begin, tail=tail, kinds=wanted, live=follow, follow=False)
        )

    return router


def _order(agent: AgentInfo) -> tuple[str, int, str]:
    """Sort `qa_tester-2` before `qa_tester-10`."""
    head, _, number = agent.id.rpartition("-")
    return (head, int(number), "") if number.isdigit() else (agent.id, 0, agent.id)
