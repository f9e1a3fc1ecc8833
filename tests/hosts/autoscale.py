"""Scenario: a burst of tasks lets a role grow, Ray's autoscaler adds nodes (fake ones), and all shrink back.

All nodes are raylets on the sandbox's loopback. Ray's own shortcut for this (`fake_multinode`) is broken in 2.60.
At the end a role that no node has the memory for shows the floor: its agent is refused, with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from fleet import Fleet
from fleet.cluster.head import plan_head
from fleet.cluster.processes import become_subreaper, descendants, kill_until_none
from fleet.cluster.ray_env import FIXED, ensure_token
from fleet.rehearsal.standin import install
from tests.hosts.fleet_of_hosts import ROLE, say, steps
from tests.hosts.lab import wait_for

HEAD_ID = "f" * 51 + "00000"
TASKS = 40
HUNGRY = "code_reviewer"
SETTINGS = """
port = 0
dashboard_port = 0
roots = ["{folder}"]
rehearsal = true
claude_path = "{claude}"
node_floor_mb = 128

[roles.code_reviewer]
agents = 0
memory_mb = {whole_mb}
[roles.qa_tester]
agents = 0
[roles.api_developer]
tools = ["Bash"]
cpus = 0.5
memory_mb = 256
min_agents = 1
max_agents = 6
target_wait_s = 2
target_queue_per_agent = 2
"""


def start_ray(folder: Path) -> tuple[subprocess.Popen[bytes], str, dict[str, str]]:
    """Start a head with one CPU whose autoscaler may add two nodes of one CPU."""
    worker = {"resources": {"CPU": 1, "memory": 1_500_000_000, "object_store_memory": 80_000_000}, "node_config": {}}
    config = folder / "autoscale.json"
    head = plan_head(str(folder / "r"), 0)
    # More memory than there is, so that what is really free decides and not what is reserved.
    memory = f"--memory={2 * psutil.virtual_memory().total}"
    head = replace(head, extra=("--num-cpus=1", memory, f"--autoscaling-config={config}"))
    config.write_text(
        json.dumps(
            {
                "cluster_name": "fake",
                "max_workers": 2,
                "idle_timeout_minutes": 0.1,
                "upscaling_speed": 1.0,
                "provider": {
                    "type": "external",
                    "module": "tests.hosts.fake_nodes.FakeNodes",
                    "launch_multiple": True,
                    "head_node_id": HEAD_ID,
                    "gcs_address": head.address,
                },
                "available_node_types": {
                    "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
                    "worker": {**worker, "min_workers": 0, "max_workers": 2},
                },
                "head_node_type": "ray.head.default",
                "auth": {},
                "docker": {},
                "file_mounts": {},
                "cluster_synced_files": [],
                "file_mounts_sync_continuously": False,
                "rsync_exclude": [],
                "rsync_filter": [],
                "setup_commands": [],
                "initialization_commands": [],
                "head_setup_commands": [],
                "worker_setup_commands": [],
                "head_start_ray_commands": [],
                "worker_start_ray_commands": [],
            }
        )
    )
    ensure_token(folder / "ray_token")
    env = {name: os.environ[name] for name in ("PATH", "LANG", "HOME", "PYTHONPATH") if name in os.environ} | FIXED
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray_token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
    }
    own = {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    own["RAY_NODE_TYPE_NAME"] = "ray.head.default"
    with (folder / "ray.log").open("ab") as log:
        command = [sys.executable, "-m", "ray.scripts.scripts", *head.arguments()]
        process = subprocess.Popen(command, env=env | own, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return process, head.address, env


def main(folder: Path) -> None:
    """The scenario."""
    # The sandbox has a network of its own, in which not even loopback is up.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    whole_mb = psutil.virtual_memory().total // 2**20
    settings = SETTINGS.format(folder=folder, claude=install(folder / "claude"), whole_mb=whole_mb)
    (folder / "fleet.toml").write_text(settings)
    (folder / "shared").mkdir()
    become_subreaper()
    ray, address, env = start_ray(folder)
    fleet = [sys.executable, "-c", "from fleet.cli import main; main()", "--home", str(folder / "home")]
    fleet += ["--config", str(folder / "fleet.toml")]
    try:
        wait_for("Ray's head has joined itself", lambda: ray.poll() is not None or raylet_of(ray), 60)
        assert ray.poll() is None, (folder / "ray.log").read_text()[-3000:]
        begin = time.monotonic()
        command = [*fleet, "up", "--address", address, "-d", "--json"]
        up = subprocess.run(command, env=env, capture_output=True, text=True)
        assert up.returncode == 0, up.stdout + up.stderr
        say(f"up after {time.monotonic() - begin:.1f} s")
        with Fleet.connect(json.loads(up.stdout)["url"], (folder / "home" / "token").read_text().strip()) as connected:
            play(connected, folder / "shared", lambda: subprocess.check_output([*fleet, "status"], env=env, text=True))
    finally:
        subprocess.run([*fleet, "down"], env=env, capture_output=True, check=False)
        ray.terminate()
        ray.wait(30)
        kill_until_none(descendants)
    print("SCENARIO OK")


def raylet_of(ray: subprocess.Popen[bytes]) -> bool:
    """Return whether a raylet runs below a head's process."""
    return any("raylet" in child.name() for child in descendants(ray.pid))


def scaler(fleet: Fleet) -> str:
    """Return what the role's scaler says."""
    return next(role["scaler"] for role in fleet.roles() if role["role"]["name"] == ROLE)


def play(fleet: Fleet, shared: Path, status: Callable[[], str]) -> None:
    """Grow under a burst and shrink after it."""
    seen: list[tuple[int, int]] = []
    refused: set[str] = set()

    def look() -> tuple[int, int]:
        """Return how many agents work or could, and how many nodes there are; note what is new."""
        agents, nodes = fleet.agents(), fleet.nodes()
        now = sum(agent.state in ("idle", "busy") for agent in agents), len(nodes)
        refused.update(agent.why for agent in agents if "refused" in agent.why)
        held = Counter(agent.node for agent in agents if agent.node)
        assert all(0.5 * held[node.id] <= node.cpus for node in nodes), (held, nodes)
        if not seen or seen[-1] != now:
            seen.append(now)
            say(f"{now[0]} agents on {now[1]} nodes; wanted: {scaler(fleet) or 'as it is'}")
        return now

    wait_for("one agent", lambda: look() == (1, 1), 120)
    begin = time.monotonic()
    handles = fleet.map(steps(shared, TASKS, 2.0), role=ROLE)
    wait_for("six agents on three nodes", lambda: look() == (6, 3), 180)
    say(f"grown after {time.monotonic() - begin:.1f} s; refused before: {sorted(refused)}")
    assert refused, "one node cannot have had room for all"
    said = status()
    say(f"fleet status: {said}")
    assert "grows from" in said, said
    for handle in fleet.as_completed(handles, timeout=240):
        assert handle.state == "succeeded", handle
    say(f"{TASKS} tasks after {time.monotonic() - begin:.1f} s")
    begin = time.monotonic()
    wait_for("one agent on one node", lambda: look() == (1, 1), 240)
    say(f"shrunk {time.monotonic() - begin:.1f} s later")

    fleet.scale(HUNGRY, 1)
    wait_for("a refusal for want of memory", lambda: "GiB free, needs" in why_not(fleet), 60)
    say(f"{HUNGRY}: {why_not(fleet)}")


def why_not(fleet: Fleet) -> str:
    """Return why the agent that needs all of the machine's memory is not started; fail if it is."""
    (agent,) = fleet.agents(role=HUNGRY)
    assert agent.state == "starting" and agent.node is None, agent
    return agent.why


if __name__ == "__main__":
    main(Path(sys.argv[1]))
