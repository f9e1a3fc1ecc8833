"""Keeps submitting jobs through the REST API, whatever happens to the fleet, and notes what was acknowledged."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.chaos.jobs import Job, Ledger, make
from tests.integration.support import Home

UNFINISHED = "select count(*) as n from task where state not in ('succeeded', 'failed', 'cancelled', 'dead')"
CALL_S = 20.0


class Away(Exception):
    """The fleet does not answer now, or asks to come again."""


class Rest:
    """The REST API over urllib: nothing of the product's own client."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = CALL_S) -> Any:
        """Return the JSON of an answer. Raises Away; an answer of 4xx is an AssertionError."""
        try:
            url = json.loads((self.home.home / "run.json").read_text())["url"]
            token = (self.home.home / "token").read_text().strip()
            request = urllib.request.Request(
                url + path,
                method=method,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            # 404 also comes from Serve's proxy as long as it does not know the route.
            if error.code >= 500 or error.code in (408, 425, 429) or (error.code == 404 and '"error"' not in text):
                raise Away(f"{error.code} {text}") from None
            raise AssertionError(f"{method} {path}: {error.code} {text}") from None
        except (OSError, ValueError, KeyError) as error:
            raise Away(f"{type(error).__name__}: {error}") from None

    def rows(self, query: str, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Return the rows of a SELECT."""
        answer = self.call("POST", "/api/sql", {"query": query, "max_rows": 200_000}, timeout_s)
        return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


class Driver(threading.Thread):
    """Submits jobs until it is told to stop, so many unfinished at a time.

    Attributes:
        outages: how often and how long the fleet did not answer, in seconds.
    """

    def __init__(self, rest: Rest, ledger: Ledger, folder: Path, seed: int, unfinished: int) -> None:
        super().__init__(name="driver", daemon=True)
        self.rest = rest
        self.ledger = ledger
        self.folder = folder
        self.unfinished = unfinished
        self.chance = random.Random(f"driver {seed}")
        self.enough = threading.Event()
        self.outages: list[float] = []
        self.error: BaseException | None = None
        self.number = 0

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                if not self._room():
                    self.enough.wait(0.3)
                    continue
                self.number += 1
                self._submit(make(self.number, self.chance))
        except BaseException as error:
            self.error = error

    def _room(self) -> bool:
        try:
            return bool(self.rest.rows(UNFINISHED, CALL_S)[0]["n"] < self.unfinished)
        except Away:
            return False

    def _submit(self, job: Job) -> None:
        """Submit until it is acknowledged: a lost answer is asked for again under the same key."""
        if job.after is not None and job.after not in self.ledger.ids:
            job = Job(**{**vars(job), "after": None})
        body = job.spec(self.folder, self.ledger.ids)
        twice = self.chance.random() < 0.1
        if (answer := self._insist("POST", "/api/tasks", body)) is None:
            return
        self.ledger.accepted(job, answer["id"])
        if twice and (again := self._insist("POST", "/api/tasks", body)) is not None:
            self.ledger.accepted(job, again["id"])
        if job.cancelled:
            self.enough.wait(self.chance.uniform(0, 2))
            try:
                self.rest.call("POST", f"/api/tasks/{answer['id']}/cancel", {})
                self.ledger.cancelled.add(job.key)
            except Away:
                # Perhaps it came through: both ends are good then.
                self.ledger.cancelled.add(job.key)
            except AssertionError as error:
                if " 409 " not in str(error):
                    raise

    def _insist(self, method: str, path: str, body: Any) -> Any:
        """Call until there is an answer; None when it is enough."""
        away_since: float | None = None
        while True:
            try:
                answer = self.rest.call(method, path, body)
            except Away:
                away_since = away_since or time.monotonic()
                if self.enough.is_set() and time.monotonic() - away_since > 60:
                    return None
                time.sleep(0.3)
                continue
            if away_since is not None:
                self.outages.append(time.monotonic() - away_since)
            return answer
