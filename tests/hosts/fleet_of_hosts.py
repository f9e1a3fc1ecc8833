"""What the scenarios without `ray up` share: a fleet whose head is host 1 and whose workers are the others."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from fleet import Fleet
from fleet.rehearsal.standin import install
from tests.hosts.lab import Host, Lab, wait_for

ROLE = "api_developer"
SETTINGS = """
host = "{head}"
allowed_hosts = ["{head}"]
roots = ["{folder}"]
rehearsal = true
claude_path = "{claude}"
lease_s = {lease_s}
node_floor_mb = 128

[roles.code_reviewer]
agents = 0
[roles.qa_tester]
agents = 0
[roles.api_developer]
tools = ["Bash"]
cpus = 0.25
memory_mb = 256
{role}
"""


class Cluster:
    """A fleet on the hosts of a lab, in rehearsal with the stand-in executable.

    Attributes:
        shared: a folder that all hosts see, as a shared file system.
    """

    def __init__(self, lab: Lab, *, lease_s: float = 15.0, role: str = "agents = 0", cpus: int = 2) -> None:
        self.lab, self.cpus = lab, cpus
        self.head = lab.hosts[0]
        self.shared = lab.folder / "shared"
        self.shared.mkdir()
        settings = SETTINGS.format(
            head=self.head.address, folder=lab.folder, claude=install(lab.folder / "claude"), lease_s=lease_s, role=role
        )
        (lab.folder / "fleet.toml").write_text(settings)
        self.fleet: Fleet

    def up(self) -> None:
        """Start the head, then let the workers join."""
        begin = time.monotonic()
        command = f"fleet up --cluster --node-ip {self.head.address} -d --json --config {self.lab.folder}/fleet.toml"
        said = json.loads(self.head.run(command, timeout_s=240))
        token = (self.head.home / ".fleet" / "token").read_text().strip()
        self.fleet = Fleet.connect(said["url"], token)
        say(f"head up after {time.monotonic() - begin:.1f} s")
        for host in self.lab.hosts[1:]:
            self.join(host)
        wait_for("all nodes are known", lambda: len(self.nodes()) == len(self.lab.hosts))
        say(f"all hosts joined after {time.monotonic() - begin:.1f} s")

    def spread(self, each: int) -> None:
        """Start agents, so many on each node."""
        self.fleet.scale(ROLE, each * len(self.lab.hosts))
        wait_for(f"{each} agents on each node", lambda: set(self.idle_on().values()) == {each}, 180)
        say(f"agents: {self.idle_on()}")

    def join(self, host: Host) -> None:
        """Make a host a node."""
        token = host.home / ".ray" / "auth_token"
        token.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.head.home / ".ray" / "auth_token", token)
        host.run(f"fleet join {self.head.address}:6379 -d", timeout_s=240)

    def nodes(self) -> dict[str, str]:
        """Return the Ray id of each node by its name; a name that is there twice fails."""
        found = self.fleet.nodes()
        assert len({node.name for node in found}) == len(found), found
        return {node.name: node.id for node in found}

    def idle_on(self) -> dict[str, int]:
        """Return how many agents are ready on each node, by name."""
        names = {node_id: name for name, node_id in self.nodes().items()}
        counts = dict.fromkeys(names.values(), 0)
        for agent in self.fleet.agents():
            if agent.state in ("idle", "busy") and agent.node in names:
                counts[names[agent.node]] += 1
        return counts

    def done(self) -> int:
        """Return how many tasks have succeeded."""
        return int(self.fleet.sql("select count(*) as n from task where state = 'succeeded'").rows[0][0])

    def down(self) -> None:
        """End the fleet; nothing may be left on any host."""
        begin = time.monotonic()
        self.head.run("fleet down", timeout_s=120)
        for host in self.lab.hosts:
            wait_for(f"nothing left on {host.name}", lambda: not left(host), 60)  # noqa: B023
        say(f"nothing left on any host {time.monotonic() - begin:.1f} s after `fleet down` began")

    def explain(self) -> None:
        """Print what a failing scenario is looked into with."""
        for query in (
            "select state, reason, why, count(*) as n, min(id) from task group by all",
            "select state, reason, node, agent_id, count(*) as n from run group by all",
            "select id, state, node, incarnation, why from agent",
            "select * from refusal",
        ):
            for row in self.fleet.sql(query):
                print("  ", row, flush=True)
        print("  ", [(node.name, node.id[:6], node.draining) for node in self.fleet.nodes()], flush=True)


def say(text: str) -> None:
    """Print a line of the scenario's log with its time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def left(host: Host) -> list[str]:
    """Return, and print, what still runs on a host."""
    found = host.processes()
    if found:
        say(f"left on {host.name}: {[line[:100] for line in found]}")
    return found


def steps(shared: Path, count: int, seconds: float = 1.0) -> list[str]:
    """Return prompts of three steps each; each step appends a line to a file of its own."""
    pause = f"sleep: {seconds}"
    return [
        "\n".join(f"{pause}\nrun: echo task-{number:02d} >> {shared}/{number:02d}-{step}.txt" for step in range(3))
        for number in range(count)
    ]


def check_steps(shared: Path, count: int) -> None:
    """Check that each step of each task was done, and once."""
    wrong = {}
    for number in range(count):
        for step in range(3):
            file = shared / f"{number:02d}-{step}.txt"
            lines = file.read_text().split() if file.exists() else []
            if lines != [f"task-{number:02d}"]:
                wrong[file.name] = lines
    assert not wrong, f"steps not done once: {wrong}"


def finish(cluster: Cluster, count: int, timeout_s: float, ready: Callable[[], object] = lambda: True) -> None:
    """Wait until all tasks have succeeded and check that none did twice."""
    wait_for(f"{count} tasks succeeded", lambda: cluster.done() == count and ready(), timeout_s)
    rows = cluster.fleet.sql(
        "select task_id, count(*) filter (where state = 'succeeded') as good from run group by task_id"
    ).rows
    assert len(rows) == count and all(good == 1 for _, good in rows), rows
    check_steps(cluster.shared, count)
    lost = cluster.fleet.sql(
        "select state, reason, count(*) as n from run where state <> 'succeeded' group by all order by all"
    )
    for row in lost:
        say(f"runs that did not succeed: {row}")
