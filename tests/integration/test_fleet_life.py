"""A fleet starts, says so, refuses what is wrong, and ends without a trace."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil

from fleet.cluster import processes
from tests.integration.support import Home


def listening(home: Home) -> list[tuple[str, int, str]]:
    """Return where the fleet's processes listen: (address, port, command)."""
    pids = {process.pid: process for process in home.processes()}
    found = []
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids:
            name = " ".join(pids[connection.pid].cmdline())[:60]
            found.append((connection.laddr.ip, connection.laddr.port, name))
    return found


def test_every_port_is_on_loopback(fleet: Home) -> None:
    found = listening(fleet)
    assert len(found) > 5
    outside = [entry for entry in found if entry[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert outside == []


def test_secrets_are_in_private_files_and_nowhere_else(fleet: Home) -> None:
    for name in ("token", "ray_token", "run.json"):
        assert stat.S_IMODE((fleet.home / name).stat().st_mode) == 0o600
    tokens = [(fleet.home / name).read_text().strip() for name in ("token", "ray_token")]
    for process in fleet.processes():
        arguments = " ".join(process.cmdline())
        assert not any(token in arguments for token in tokens)
    for log in (fleet.home / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not any(token in text for token in tokens), log


def test_a_second_up_says_that_it_runs(fleet: Home) -> None:
    record = fleet.record()
    said = fleet.json("up", "-d", "--rehearsal")
    assert said == {"url": record["url"], "pid": record["pid"], "started": False}


def test_a_taken_port_is_named(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = home.fleet("up", "-d", "--rehearsal", "--port", str(port), code=10)
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


def test_without_credentials_it_says_what_to_set_and_how_to_rehearse(home: Home) -> None:
    done = home.fleet("up", "-d", code=9)
    for word in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "--rehearsal"):
        assert word in done.stderr


def test_without_claude_code_it_says_so(home: Home) -> None:
    done = home.fleet("up", "-d", "--rehearsal", code=9, FLEET_CLAUDE_PATH=str(home.work / "nothing"))
    assert "claude_path" in done.stderr


def test_a_home_that_cannot_be_written_is_named(home: Home) -> None:
    file = home.work / "file"
    file.write_text("")
    done = home.fleet("up", "-d", "--rehearsal", "--home", str(file / "home"), code=10)
    assert str(file / "home") in done.stderr
    assert "--home" in done.stderr


def test_down_without_a_fleet_is_no_error(home: Home) -> None:
    assert "No fleet is running" in home.fleet("down").stdout


def test_commands_without_a_fleet_say_how_to_start_one(home: Home) -> None:
    assert "fleet up" in home.fleet("tasks", code=3).stderr


def test_doctor_finds_nothing_wrong(fleet: Home) -> None:
    checks = {check["name"]: check for check in fleet.json("doctor", code=None)}
    bad = [check for check in checks.values() if check["state"] == "bad"]
    # Port and orphans of other fleets on the machine are theirs.
    assert [check for check in bad if check["name"] != "orphans"] == []
    assert checks["claude code"]["state"] == "good"
    assert checks["fleet"]["said"].endswith("rehearsal")


def test_the_address_logs_a_browser_in(fleet: Home) -> None:
    said = fleet.json("url")
    assert said["login_url"].startswith(said["url"] + "/login?token=")
    assert Path(fleet.home / "token").read_text().strip() in said["login_url"]


def test_a_process_that_nobody_reaps_counts_as_ended() -> None:
    """In a container whose first process reaps nobody, a keeper that ended stays as a zombie."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        assert processes.wait_ended(psutil.Process(child.pid), 30)
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    finally:
        child.wait()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not processes.wait_ended(psutil.Process(sleeper.pid), 0.2)
    finally:
        sleeper.kill()
        sleeper.wait()
