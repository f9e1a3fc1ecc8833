"""A real Prometheus scrapes a running fleet: every query of the dashboard has data, every alert rule evaluates."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet.cluster.ports import free_ports
from fleet.observability.definitions import DEFINITIONS, Kind
from fleet.observability.files import DISCOVERY_NAME, dashboard, lay_out
from tests.integration.support import Home, until

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed (apt-get install prometheus)")

MAY_BE_EMPTY = frozenset({"Put off by rate limits"})


@contextmanager
def prometheus(folder: Path, ray_temp_dir: Path) -> Iterator[httpx.Client]:
    """Run Prometheus with the files that a fleet lays out, but scraping every second."""
    lay_out(folder, ray_temp_dir)
    config = folder / "metrics" / "prometheus" / "prometheus.yml"
    config.write_text(config.read_text().replace("10s", "1s"))
    (port,) = free_ports(1)
    assert PROMETHEUS
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            until(lambda: _ready(client, process), "Prometheus answers")
            yield client
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus ended"
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """Return the result of a query of the dashboard, with its variables put in."""
    query = query.replace("$role", ".*").replace("$__rate_interval", "5m")
    reply = client.get("/api/v1/query", params={"query": query}).json()
    assert reply["status"] == "success", (query, reply)
    found: list[dict[str, Any]] = reply["data"]["result"]
    return found


def numbers(result: list[dict[str, Any]]) -> list[float]:
    return [value for one in result if not math.isnan(value := float(one["value"][1]))]


@pytest.mark.timeout(600)
def test_every_query_of_the_dashboard_has_data(fleet: Home, tmp_path: Path) -> None:
    record = fleet.record()
    discovery = Path(record["temp_dir"]) / DISCOVERY_NAME
    until(discovery.exists, "Ray lists its metrics endpoints")
    with prometheus(tmp_path, Path(record["temp_dir"])) as client, fleet.connect() as api:
        # 1. The gauges are there, so counters of what comes now begin under Prometheus's eyes.
        until(lambda: numbers(ask(client, "ray_fleet_tasks_in_state")), "the fleet's gauges are scraped")
        roles = [role["role"]["name"] for role in api.roles()]
        tasks = [task for role in roles for task in api.map(["Say what is here."] * 2, role=role)]
        for task in api.as_completed(tasks, timeout=240):
            assert task.state == "succeeded", task
        # 2. Ray exports every few seconds, and a rate needs two samples.
        ended = 'sum(ray_fleet_tasks_total{state="succeeded"})'
        until(lambda: sum(numbers(ask(client, ended))) >= len(tasks), "the tasks are counted")
        queries = [
            (panel["title"], target["expr"])
            for panel in json.loads(dashboard())["panels"]
            for target in panel.get("targets", ())
        ]
        assert len(queries) > 20

        def without() -> list[str]:
            return [title for title, query in queries if not numbers(ask(client, query)) and title not in MAY_BE_EMPTY]

        until(lambda: not without(), "every query of the dashboard has data")
        # 3. And the figures are those of the store.
        by_state = {one["metric"]["state"]: float(one["value"][1]) for one in ask(client, "ray_fleet_tasks_in_state")}
        assert by_state["succeeded"] >= len(tasks)
        cost = api.sql("SELECT sum(cost_usd) AS usd, sum(output_tokens) AS tokens FROM costs").dicts()[0]
        tokens = sum(numbers(ask(client, 'ray_fleet_tokens_total{kind="output"}')))
        assert 0 < tokens <= cost["tokens"]
        # 4. What never happened has no series; all the rest has one.
        scraped = set(client.get("/api/v1/label/__name__/values").json()["data"])
        missing = [d.name for d in DEFINITIONS.values() if d.kind is not Kind.COUNTER and not set(d.exported) & scraped]
        assert not missing
        # 5. The alert rules load and evaluate.
        rules = [rule for group in client.get("/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
        assert len(rules) >= 10
        until(
            lambda: all(
                rule["health"] == "ok"
                for group in client.get("/api/v1/rules").json()["data"]["groups"]
                for rule in group["rules"]
            ),
            "every alert rule was evaluated",
        )
        silent = next(rule for rule in rules if rule["name"] == "FleetSilent")
        assert silent["state"] == "inactive"
