"""What the command asks of a fleet, over the client's connection: plain JSON values, ready to print."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from fleet.errors import FleetError, NotFound, Unauthorized, Unavailable, from_dict

Row = dict[str, Any]

PATIENCE_S = 30.0
"""How long a fleet that is restarting a part is waited for."""


class Api:
    """A connection to a fleet."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(150.0, connect=5.0),
            trust_env=False,
        )

    @classmethod
    def connect(cls, url: str | None, home: Path | None) -> Api:
        """Return a connection to a URL, else to the fleet of a home."""
        import os

        from fleet.cluster.record import read_record

        token = os.environ.get("FLEET_TOKEN", "")
        if not token and home is not None and (home / "token").exists():
            token = (home / "token").read_text(encoding="utf-8").strip()
        if url is None:
            record = read_record(home / "run.json") if home is not None else None
            if record is None:
                raise Unavailable(f"No fleet is running in {home}. Start one: fleet up, or fleet demo.", part="fleet")
            url = record.url
        if not token:
            raise Unauthorized("Expected a token in FLEET_TOKEN or the fleet's home; there is none.")
        return cls(url, token)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, json: Any = None, params: dict[str, Any] | None = None) -> Any:
        """Make a request and return its JSON; waits for a part that is restarting where that is safe."""
        query = {key: value for key, value in (params or {}).items() if value not in (None, [], "")}
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                reply = self._http.request(method, f"/api{path}", json=json, params=query)
            except httpx.ConnectError as error:
                failure: FleetError = Unavailable(f"No fleet answers at {self.url}: {error}.", part="gateway")
                wait_s = 0.5
            except httpx.HTTPError as error:
                raise Unavailable(f"The fleet at {self.url} did not answer: {error!r}.", part="gateway") from error
            else:
                if reply.status_code < 400:
                    return reply.json()
                failure = _error_of(reply)
                again = reply.status_code == 429 or (reply.status_code == 503 and method == "GET")
                if not again:
                    raise failure
                wait_s = float(reply.headers.get("retry-after") or 0.5)
            if time.monotonic() + wait_s > deadline:
                raise failure
            time.sleep(wait_s)

    def _items(self, path: str, **params: Any) -> list[Row]:
        items: list[Row] = self.request("GET", path, params=params)["items"]
        return items

    # The fleet

    def health(self) -> Row:
        """Return the health of the parts, also when one is not well."""
        try:
            reply: Row = self.request("GET", "/health")
        except Unavailable as error:
            return {"status": "degraded", **error.fields}
        return reply

    def version(self) -> Row:
        """Return which fleet this is."""
        reply: Row = self.request("GET", "/version")
        return reply

    def status(self) -> Row:
        """Return the figures of the overview."""
        reply: Row = self.request("GET", "/status")
        return reply

    def roles(self) -> list[Row]:
        """Return the roles, flat: the role's keys beside its figures."""
        return [{**entry.pop("role"), **entry} for entry in self._items("/roles")]

    def scale(self, role: str, agents: int) -> Row:
        """Say how many agents a role has."""
        reply: Row = self.request("POST", f"/roles/{quote(role, safe='')}/scale", json={"agents": agents})
        return reply

    def pause(self, role: str | None, paused: bool) -> None:
        """Pause or resume a role, or the whole fleet."""
        word = "pause" if paused else "resume"
        self.request("POST", f"/roles/{quote(role, safe='')}/{word}" if role else f"/fleet/{word}")

    def nodes(self) -> list[Row]:
        """Return the nodes."""
        return self._items("/nodes")

    def drain_node(self, node: str, deadline_s: float | None, undo: bool) -> Row:
        """Take a node out of use, or back into it."""
        body = {"deadline_s": deadline_s, "undo": undo}
        reply: Row = self.request("POST", f"/nodes/{quote(node, safe='')}/drain", json=body)
        return reply

    # Agents

    def agents(self, *, all: bool = False) -> list[Row]:
        """Return the agents with what each does."""
        return self._items("/agents", all="true" if all else None)

    def agent(self, agent: str) -> Row:
        """Return one agent."""
        reply: Row = self.request("GET", f"/agents/{quote(agent, safe='')}")
        return reply

    def spawn(self, role: str, count: int) -> list[Row]:
        """Start agents."""
        items: list[Row] = self.request("POST", "/agents", json={"role": role, "count": count})["items"]
        return items

    def stop(self, agent: str, *, drain: bool) -> Row:
        """Stop an agent."""
        reply: Row = self.request("POST", f"/agents/{quote(agent, safe='')}/stop", json={"drain": drain})
        return reply

    def send(self, agent: str, text: str) -> Row:
        """Say something to an agent."""
        reply: Row = self.request("POST", f"/agents/{quote(agent, safe='')}/send", json={"text": text})
        return reply

    # Tasks

    def submit(self, specs: Sequence[Row]) -> list[Row]:
        """Submit tasks, all or none."""
        items: list[Row] = self.request("POST", "/tasks", json=list(specs))["items"]
        return items

    def tasks(
        self,
        *,
        states: Sequence[str] = (),
        roles: Sequence[str] = (),
        agent: str | None = None,
        text: str | None = None,
        labels: dict[str, str] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Row]:
        """Return tasks, newest first."""
        return self._items(
            "/tasks",
            state=list(states),
            role=list(roles),
            agent=agent,
            text=text,
            label=[f"{key}={value}" for key, value in (labels or {}).items()],
            limit=limit,
            before=before,
        )

    def task(self, task_id: str) -> Row:
        """Return a task with its runs."""
        reply: Row = self.request("GET", f"/tasks/{quote(task_id, safe='')}")
        return reply

    def result(self, task_id: str) -> Row | None:
        """Return what a task left, with its diff; None when it left nothing."""
        try:
            reply: Row = self.request("GET", f"/tasks/{quote(task_id, safe='')}/result")
        except NotFound:
            return None
        return reply

    def wait(self, task_id: str) -> Row:
        """Return the task when it has ended."""
        while True:
            task: Row = self.request("GET", f"/tasks/{quote(task_id, safe='')}/wait", params={"timeout_s": 60})
            if task["finished_at"] is not None and task["state"] in FINAL:
                return task

    def cancel(self, ids: Sequence[str]) -> list[Row]:
        """Cancel tasks."""
        return self._change("cancel", ids)

    def retry(self, ids: Sequence[str]) -> list[Row]:
        """Queue tasks again."""
        return self._change("retry", ids)

    def prioritize(self, ids: Sequence[str], priority: int) -> list[Row]:
        """Change priorities."""
        return self._change("priority", ids, priority=priority)

    def _change(self, word: str, ids: Sequence[str], **body: Any) -> list[Row]:
        whole = [self.task(task_id)["id"] for task_id in ids]
        items: list[Row] = self.request("POST", f"/tasks:{word}", json={"ids": whole, **body})["items"]
        return items

    # Events

    def task_events(self, task_id: str, *, follow: bool) -> Iterator[Row]:
        """Return a task's events; with `follow` until it has ended."""
        if follow:
            return self._stream(f"/tasks/{quote(task_id, safe='')}/events", {})
        return self._pages(task=task_id)

    def agent_events(self, agent: str, *, follow: bool) -> Iterator[Row]:
        """Return an agent's events; with `follow` until it stops."""
        if follow:
            return self._stream(f"/agents/{quote(agent, safe='')}/logs", {"follow": "true"})
        return self._pages(agent=agent)

    def _pages(self, **params: Any) -> Iterator[Row]:
        after: int | None = 0
        while after is not None:
            page = self.request("GET", "/events", params={**params, "after": after or None, "limit": 1000})
            yield from page["items"]
            after = page["next"]

    def _stream(self, path: str, params: Row) -> Iterator[Row]:
        """Follow a stream of events until its end; come back with the last id after a cut."""
        last, deadline = "", time.monotonic() + PATIENCE_S
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            try:
                with self._http.stream("GET", f"/api{path}", params=params, headers=headers, timeout=60.0) as reply:
                    if reply.status_code >= 400:
                        reply.read()
                        raise _error_of(reply)
                    for kind, id, data in parse_sse(reply.iter_lines()):
                        deadline = time.monotonic() + PATIENCE_S
                        if kind == "end":
                            return
                        if kind == "error":
                            raise from_dict(data)
                        if id:
                            last = id
                            yield data
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"The stream of {self.url} broke: {error!r}.", part="gateway") from error
            time.sleep(0.5)

    # Data

    def sql(self, query: str, limit: int) -> Row:
        """Run one SELECT."""
        reply: Row = self.request("POST", "/sql", json={"query": query, "max_rows": limit})
        return reply

    def search(self, words: str, **filters: Any) -> list[Row]:
        """Search all transcripts."""
        return self._items("/search", q=words, **filters)

    def approvals(self, *, waiting: bool) -> list[Row]:
        """Return tool calls that wait for a person."""
        return self._items("/approvals", all=None if waiting else "true")

    def decide(self, approval: str, *, allow: bool, scope: str, message: str) -> Row:
        """Allow or deny a tool call."""
        body = {"allow": allow, "scope": scope, "message": message, "by": "cli"}
        reply: Row = self.request("POST", f"/approvals/{quote(approval, safe='')}", json=body)
        return reply

    def backup(self, folder: str) -> Row:
        """Make a backup on the store's machine."""
        reply: Row = self.request("POST", "/backup", json={"folder": folder})
        return reply

    def export(self, folder: str) -> Row:
        """Write all tables as Parquet on the store's machine."""
        reply: Row = self.request("POST", "/export", json={"folder": folder})
        return reply


FINAL = frozenset({"succeeded", "failed", "cancelled", "dead"})


def parse_sse(lines: Iterator[str]) -> Iterator[tuple[str, str, Row]]:
    """Return the messages of a stream: (event, id, data)."""
    event, id, data = "message", "", ""
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                event = value
            elif name == "id":
                id = value
            elif name == "data":
                data += value
        else:
            if data:
                yield event, id, json.loads(data)
            event, id, data = "message", "", ""


def _error_of(reply: httpx.Response) -> FleetError:
    try:
        data = reply.json()
        assert isinstance(data, dict)
        if "error" in data:
            return from_dict(data)
    except (ValueError, AssertionError):
        pass
    # Not the gateway's own words: Serve's proxy, before it knows the route or while the replica starts.
    cls = Unavailable if reply.status_code in (404, 500, 502, 503, 504) else FleetError
    return cls(f"The fleet answered {reply.status_code}: {reply.text[:200]}", part="gateway")
