"""The same work through command, Python, REST with curl and `serve run`. (The browser has tests of its own.)"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet import AsyncFleet, Fleet, TaskFailed, Timeout
from fleet.cluster import processes
from fleet.cluster.ports import free_ports
from tests.integration.support import SLOW_S, UP_S, Home, until

ROLES = ("code_reviewer", "api_developer", "qa_tester")
SERVE = (sys.executable, "-c", "from ray.serve.scripts import cli; cli()")
BACKLOG = [{"role": role, "prompt": f"Say hello as {role}."} for role in ROLES]


def test_command(fleet: Home) -> None:
    file = fleet.work / "backlog.json"
    file.write_text(json.dumps(BACKLOG))
    assert [task["state"] for task in fleet.json("submit", "--file", str(file), "--wait")] == ["succeeded"] * 3


def test_python(client: Fleet) -> None:
    handles = [client.submit(spec["role"], spec["prompt"]) for spec in BACKLOG]
    assert {handle.id for handle in client.as_completed(handles, timeout=SLOW_S)} == {handle.id for handle in handles}
    for handle in handles:
        assert handle.result.text
        kinds = [event.kind for event in handle.events()]
        assert "frame" in kinds
    ids = ", ".join(f"'{handle.id}'" for handle in handles)
    assert client.sql(f"select count(*) as n from task where id in ({ids})").dicts() == [{"n": 3}]


async def test_async_python(fleet: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_HOME", str(fleet.home))
    async with await AsyncFleet.connect() as client:
        handle = await client.submit("qa_tester", "Say hello.")
        await handle.wait(SLOW_S)
        assert [event async for event in handle.events()]


def curl(home: Home, method: str, path: str, body: Any = None, *more: str) -> tuple[int, Any]:
    """Ask with curl and return status and JSON."""
    record = home.record()
    token = (home.home / "token").read_text().strip()
    arguments = ["curl", "-sS", "-m", "150", "-X", method, "-w", "\n%{http_code}", *more]
    arguments += ["-H", f"Authorization: Bearer {token}", f"{record['url']}{path}"]
    if body is not None:
        arguments += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=SLOW_S, check=True)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(text) if text.startswith(("{", "[")) else text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_rest(fleet: Home) -> None:
    status, made = curl(fleet, "POST", "/api/tasks", BACKLOG)
    assert status == 201
    for task in made["items"]:

        def ended(id: str = task["id"]) -> Any:
            found = curl(fleet, "GET", f"/api/tasks/{id}/wait?timeout_s=60")[1]
            return found if found["state"] not in ("queued", "running") else None

        assert until(ended, "the task ends")["state"] == "succeeded"
        status, stream = curl(fleet, "GET", f"/api/tasks/{task['id']}/events")
        assert status == 200
        ids = [int(line[4:]) for line in stream.splitlines() if line.startswith("id: ")]
        assert ids == sorted(set(ids))
        # Taken up in the middle it brings the rest, and nothing twice.
        middle = ids[len(ids) // 2]
        _, rest = curl(fleet, "GET", f"/api/tasks/{task['id']}/events", None, "-H", f"Last-Event-ID: {middle}")
        assert [int(line[4:]) for line in rest.splitlines() if line.startswith("id: ")] == ids[ids.index(middle) + 1 :]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_rest_without_a_token_is_closed(fleet: Home) -> None:
    url = fleet.record()["url"]
    for path in ("/api/tasks", "/api/health", "/ui/", "/docs"):
        arguments = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", url + path]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout in ("401", "303", "307"), path


def test_errors_cross_http_as_what_they_are(client: Fleet) -> None:
    from fleet import InvalidInput, NotFound

    with pytest.raises(InvalidInput):
        client.submit("nobody", "Do it.")
    with pytest.raises(NotFound):
        client.task("t-none")
    handle = client.submit("qa_tester", "Say hello.", not_before=4e9)
    with pytest.raises(Timeout):
        handle.wait(0.2)
    handle.cancel()
    with pytest.raises(TaskFailed):
        _ = handle.result


def test_serve_run_on_a_ray_cluster_that_is_there(home: Home) -> None:
    """`serve run serve_app:app` gives the same fleet, and leaves nothing when it ends."""
    gcs, dashboard, port = free_ports(3)
    env = home.environ(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="disabled",
        RAY_ADDRESS=f"127.0.0.1:{gcs}",
        FLEET_REHEARSAL="1",
        FLEET_PORT=str(port),
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    temp = home.folder / "r"
    log = (home.folder / "ray.log").open("w")
    start = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={temp}"]
    start += ["--include-dashboard=true", f"--dashboard-port={dashboard}", "--min-worker-port=0", "--max-worker-port=0"]
    start += ["--object-store-memory=200000000", f"--ray-client-server-port={free_ports(1)[0]}"]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start],
        env={name: value for name, value in env.items() if name != "RAY_ADDRESS"},
        stdout=log,
        stderr=log,
        cwd=home.work,
        start_new_session=True,
    )
    serve = None
    try:
        until(lambda: "--block" in (home.folder / "ray.log").read_text() or head.poll() is not None, "Ray is up")
        assert head.poll() is None, (home.folder / "ray.log").read_text()
        # `serve run` itself has no option for the port.
        options = ["start", "--http-port", str(port), "--proxy-location", "HeadOnly"]
        subprocess.run([*SERVE, *options], env=env, stdout=log, stderr=log, cwd=home.work, timeout=UP_S, check=True)
        serve = subprocess.Popen(
            [*SERVE, "run", "serve_app:app"], env=env, stdout=log, stderr=log, cwd=home.work, start_new_session=True
        )

        def answers() -> bool:
            assert serve is not None and serve.poll() is None, (home.folder / "ray.log").read_text()[-5000:]
            done = home.fleet("--url", f"http://127.0.0.1:{port}", "status", code=None, FLEET_TOKEN=token(home))
            return done.returncode == 0

        until(answers, "the fleet answers", every_s=1.0)
        more = {"FLEET_TOKEN": token(home)}
        text = home.fleet(
            "--url",
            f"http://127.0.0.1:{port}",
            "submit",
            "--file",
            "-",
            "--wait",
            "--json",
            given=json.dumps(BACKLOG),
            **more,
        ).stdout
        assert [task["state"] for task in json.loads(text)] == ["succeeded"] * 3
    finally:
        for process in (serve, head):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        processes.kill_until_none(home.processes)
        log.close()


def token(home: Home) -> str:
    path = home.home / "token"
    return path.read_text().strip() if path.exists() else "none-yet"
