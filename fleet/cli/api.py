"""What the command asks of a fleet, through the client: plain JSON values, ready to print."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fleet.client.sync import Fleet
from fleet.errors import Conflict, InvalidInput, NotFound
from fleet.models import TaskSpec, Workspace

Row = dict[str, Any]
PAGE = 1000


class Api:
    """A connection to a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @classmethod
    def connect(cls, url: str | None, home: Path | None) -> Api:
        """Return a connection to a URL, else to the fleet of a home."""
        from fleet.cluster.record import read_record

        token = os.environ.get("FLEET_TOKEN")
        if home is not None:
            record = read_record(home / "run.json")
            if url is None:
                if record is None:
                    raise NotFound(
                        f"No fleet is running in {home}. Start one: fleet up, or fleet demo.",
                        what="fleet",
                        id=str(home),
                    )
                url = record.url
            path = home / "token"
            if path.exists():
                token = path.read_text(encoding="utf-8").strip()
        return cls(Fleet.connect(url, token))

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.close()

    # The fleet

    def health(self) -> Row:
        """Return the health of the parts, also when one is not well."""
        return self._fleet.health()

    def status(self) -> Row:
        """Return the figures of the overview."""
        return self._fleet.status()

    def roles(self) -> list[Row]:
        """Return the roles, flat: the role's keys beside its figures."""
        return [{**row(entry["role"]), **entry, "role": row(entry["role"])["name"]} for entry in self._fleet.roles()]

    def scale(self, role: str, agents: int) -> Row:
        """Say how many agents a role has."""
        return row(self._fleet.scale(role, agents))

    def pause(self, role: str | None, paused: bool) -> None:
        """Pause or resume a role, or the whole fleet."""
        if paused:
            self._fleet.pause(role)
        else:
            self._fleet.resume(role)

    def nodes(self) -> list[Row]:
        """Return the nodes."""
        return [row(node) for node in self._fleet.nodes()]

    def drain_node(self, node: str, deadline_s: float | None, undo: bool) -> Row:
        """Take a node out of use, or back into it."""
        return row(self._fleet.drain_node(node, deadline_s=deadline_s, undo=undo))

    # Agents

    def agents(self, *, all: bool = False) -> list[Row]:
        """Return the agents with what each does."""
        return self._fleet.cards(all=all)

    def agent(self, agent: str) -> Row:
        """Return one agent."""
        return self._fleet.agent(agent)

    def spawn(self, role: str, count: int) -> list[Row]:
        """Start agents."""
        return [row(agent) for agent in self._fleet.spawn(role, count)]

    def stop(self, agent: str, *, drain: bool) -> Row:
        """Stop an agent."""
        return row(self._fleet.stop(agent, drain=drain))

    def send(self, agent: str, text: str) -> Row:
        """Say something to an agent."""
        return self._fleet.send(agent, text)

    def interrupt(self, agent: str) -> bool:
        """End what an agent runs now; False when it runs nothing."""
        return self._fleet.interrupt(agent)

    # Tasks

    def submit(self, specs: Sequence[Row]) -> list[Row]:
        """Submit tasks."""
        return [row(handle.task) for handle in self._fleet.submit_many([spec_of(spec) for spec in specs])]

    def tasks(self, *, limit: int = 100, before: str | None = None, **filters: Any) -> list[Row]:
        """Return tasks, newest first."""
        wanted = {key: value for key, value in filters.items() if value not in (None, [], {})}
        return [row(handle.task) for handle in self._fleet.tasks(limit=limit, before=before, **wanted)]

    def task(self, task_id: str) -> Row:
        """Return a task with its runs."""
        return self._fleet.detail(task_id)

    def result(self, task_id: str) -> Row | None:
        """Return what a task left, with its diff; None when it left nothing."""
        shown: Row | None = self._fleet.detail(task_id)["result"]
        if shown is None:
            return None
        try:
            return {**shown, "diff": self._fleet.task(task_id).diff if shown.get("diff_bytes", 1) else ""}
        except (NotFound, Conflict):
            return shown

    def wait(self, task_id: str) -> Row:
        """Return the task when it has ended."""
        self._fleet.task(task_id).wait()
        return self.task(task_id)

    def cancel(self, ids: Sequence[str]) -> list[Row]:
        """Cancel tasks."""
        return [row(task) for task in self._fleet.cancel(self._whole(ids))]

    def retry(self, ids: Sequence[str]) -> list[Row]:
        """Queue tasks again."""
        return [row(task) for task in self._fleet.retry(self._whole(ids))]

    def prioritize(self, ids: Sequence[str], priority: int) -> list[Row]:
        """Change priorities."""
        return [row(task) for task in self._fleet.prioritize(self._whole(ids), priority)]

    def _whole(self, ids: Sequence[str]) -> list[str]:
        return [self._fleet.task(task_id).id for task_id in ids]

    # Events

    def task_events(self, task_id: str, *, follow: bool) -> Iterator[Row]:
        """Return a task's events; with `follow` until it has ended."""
        if not follow:
            yield from self._pages(task=task_id)
            return
        for event in self._fleet.task(task_id).events():
            yield row(event)

    def agent_events(self, agent: str, *, follow: bool) -> Iterator[Row]:
        """Return an agent's events; with `follow` until it stops."""
        if not follow:
            yield from self._pages(agent=agent)
            return
        for event in self._fleet.logs(agent, follow=True):
            yield row(event)

    def _pages(self, **query: Any) -> Iterator[Row]:
        after = 0
        while page := self._fleet.events(after=after, limit=PAGE, **query):
            yield from map(row, page)
            after = page[-1].id or after
            if len(page) < PAGE:
                return

    # Data

    def sql(self, query: str, limit: int) -> Row:
        """Run one SELECT; one row more than the limit says that there are more."""
        rows = self._fleet.sql(query, max_rows=limit)
        found = [list(one.values()) for one in rows.dicts()]
        return {"columns": list(rows.columns), "rows": found}

    def search(self, words: str, **filters: Any) -> list[Row]:
        """Search all transcripts."""
        return self._fleet.search(words, **{key: value for key, value in filters.items() if value is not None})

    def approvals(self, *, waiting: bool) -> list[Row]:
        """Return tool calls that wait for a person."""
        return [row(approval) for approval in self._fleet.approvals(all=not waiting)]

    def decide(self, approval: str, *, allow: bool, scope: str, message: str) -> Row:
        """Allow or deny a tool call."""
        return row(self._fleet.decide(approval, allow=allow, scope=scope, message=message, by="cli"))

    def backup(self, folder: str) -> Row:
        """Make a backup on the store's machine."""
        return self._fleet.backup(folder)

    def export(self, url: str) -> Row:
        """Export what is new."""
        return self._fleet.export(url)


def row(value: Any) -> Row:
    """Return a model as JSON values; what is JSON already stays so."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    found: Row = value
    return found


def spec_of(data: Row) -> TaskSpec:
    """Return a task of JSON values; `workspace` may have its short form."""
    if isinstance(data.get("workspace"), str):
        data = {**data, "workspace": Workspace.parse(data["workspace"])}
    try:
        return TaskSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(TaskSpec.model_fields))
        said = f"unknown; expected some of {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidInput(f"{field}: {said}.", field=field) from error
