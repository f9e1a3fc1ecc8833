"""Roles, agents and nodes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fleet.cli import state
from fleet.cli.fleet_commands import now
from fleet.cli.output import Json, ago, money, out, show_json, state_text, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (roles, agents, spawn, stop, send, scale, pause, resume, nodes, drain):
        app.command()(command)


def roles(json: Json = False) -> None:
    """List the roles, with their agents and queues."""
    with state.connect() as api:
        found = api.roles()
    if json:
        show_json(found)
        return
    table(
        ("role", "agents", "idle", "queued", "state", "prompt"),
        [
            (
                role["name"],
                f"{role.get('agents', 0)}/{role.get('agents_wanted', 0)}",
                role.get("idle", 0),
                role.get("queued", 0),
                "paused" if role.get("paused") else role.get("why") or "",
                role["prompt"][:70],
            )
            for role in found
        ],
    )


def agents(
    all: Annotated[bool, typer.Option("--all", "-a", help="Also those that were stopped.")] = False,
    json: Json = False,
) -> None:
    """List the agents."""
    with state.connect() as api:
        found = api.agents(all=all)
        names = {} if json else {node["id"]: node["name"] for node in api.nodes()}
    if json:
        show_json(found)
        return
    show_agents(found, names)


def show_agents(found: list[dict[str, Any]], nodes: dict[str, str]) -> None:
    """Print agents as a table; `nodes` are the names of the nodes by their ids."""
    table(
        ("id", "state", "task", "now", "node", "runs", "cost", "since"),
        [
            (
                agent["id"],
                state_text(agent["state"]),
                agent.get("task_id") or "",
                now(agent),
                nodes.get(agent.get("node") or "", (agent.get("node") or "")[:12]),
                agent.get("runs", 0),
                money(agent.get("cost_usd")),
                ago(agent["updated_at"]),
            )
            for agent in found
        ],
    )


def spawn(
    role: Annotated[str, typer.Argument(help="The role.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many.")] = 1,
    json: Json = False,
) -> None:
    """Start agents of a role."""
    with state.connect() as api:
        made = api.spawn(role, count)
    if json:
        show_json(made)
    else:
        for agent in made:
            print(agent["id"])


def stop(
    agent: Annotated[str, typer.Argument(help="The agent's id.")],
    drain: Annotated[
        bool,
        typer.Option("--drain/--now", help="Let it end its run first, or end it at once (the run goes on elsewhere)."),
    ] = True,
    json: Json = False,
) -> None:
    """Stop an agent."""
    with state.connect() as api:
        stopped = api.stop(agent, drain=drain)
    if json:
        show_json(stopped)
    else:
        out.print(f"{stopped['id']} is {stopped['state']}", markup=False)


def send(
    agent: Annotated[str, typer.Argument(help="The agent's id.")],
    message: Annotated[str, typer.Argument(help="What to say.")],
    json: Json = False,
) -> None:
    """Say something to an agent: into its running conversation, or as a task for it."""
    with state.connect() as api:
        reply = api.send(agent, message)
    if json:
        show_json(reply)
    elif reply.get("delivered"):
        out.print(f"said in task {reply.get('task_id')}", markup=False)
    else:
        out.print(f"task {reply.get('task_id')} for {agent}", markup=False)


def scale(
    role: Annotated[str, typer.Argument(help="The role.")],
    agents: Annotated[int, typer.Argument(min=0, help="How many agents it has.")],
    json: Json = False,
) -> None:
    """Say how many agents a role has."""
    with state.connect() as api:
        role_state = api.scale(role, agents)
    if json:
        show_json(role_state)
    else:
        out.print(f"{role} has {agents} agents", markup=False)


Role = Annotated[str | None, typer.Argument(help="The role; without one the whole fleet.")]


def pause(role: Role = None) -> None:
    """Pause the queue of a role, or of the whole fleet; what runs goes on."""
    with state.connect() as api:
        api.pause(role, True)
    out.print(f"{role or 'the fleet'} is paused", markup=False)


def resume(role: Role = None) -> None:
    """Let a paused queue go on."""
    with state.connect() as api:
        api.pause(role, False)
    out.print(f"{role or 'the fleet'} goes on", markup=False)


def nodes(json: Json = False) -> None:
    """List the nodes."""
    with state.connect() as api:
        found = api.nodes()
    if json:
        show_json(found)
        return
    table(
        ("id", "name", "state", "agents", "cpus", "free", "memory free", "why"),
        [
            (
                node["id"][:12],
                node["name"],
                "draining" if node.get("draining") else "alive" if node["alive"] else "gone",
                node.get("agents", 0),
                f"{node.get('cpus', 0):g}",
                f"{node.get('cpus_free', 0):g}",
                f"{node.get('memory_free_mb', 0):.0f} MB",
                node.get("refuses") or "",
            )
            for node in found
        ],
    )


def drain(
    node: Annotated[str, typer.Argument(help="The node's id or name.")],
    deadline: Annotated[float | None, typer.Option(help="Seconds after which its runs are moved.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Use the node again.")] = False,
    json: Json = False,
) -> None:
    """Take no new runs on a node, and let its agents end theirs."""
    with state.connect() as api:
        found = api.drain_node(node, deadline, undo)
    if json:
        show_json(found)
    else:
        out.print(f"{found['name']} is {'draining' if found.get('draining') else 'in use'}", markup=False)
