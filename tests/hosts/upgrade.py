"""Scenario: `serve deploy` replaces router and gateway under load, twice; then Ray itself drains a node.

Nothing is lost or done twice, and no agent is started anew by an upgrade: none need be. The notice of Ray (its own
`ray drain-node`, as for a spot instance) moves what the node runs before its time is up.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import yaml

from fleet.errors import FleetError
from fleet.models import TaskSpec
from tests.hosts.fleet_of_hosts import ROLE, Cluster, check_steps, finish, say, steps
from tests.hosts.lab import Lab, wait_for

TASKS = 200
BATCH = 5
NOTICE_S = 30


def main(folder: Path) -> None:
    """The scenario."""
    lab = Lab(folder, 2)
    cluster = Cluster(lab)
    cluster.up()
    try:
        cluster.spread(3)
        upgrade(cluster)
        preempt(cluster)
    except BaseException:
        cluster.explain()
        raise
    cluster.down()
    print("SCENARIO OK")


class Load(threading.Thread):
    """Submits tasks all the time, each with its key; what fails is sent again, as a client of a busy service does."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.again, self.longest_s = cluster, 0, 0.0
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Submit all; a pause between batches lets the upgrades meet submits."""
        specs = [
            TaskSpec(role=ROLE, prompt=prompt, idempotency_key=f"load-{number}")
            for number, prompt in enumerate(steps(self.cluster.shared, TASKS, 0.6))
        ]
        try:
            for start in range(0, TASKS, BATCH):
                self.send(specs[start : start + BATCH])
                time.sleep(0.5)
        except BaseException as error:
            self.failed = error

    def send(self, specs: list[TaskSpec]) -> None:
        """Submit a batch, again until it is accepted."""
        begin = time.monotonic()
        while True:
            try:
                self.cluster.fleet.submit_many(specs)
                self.longest_s = max(self.longest_s, time.monotonic() - begin)
                return
            except (FleetError, OSError) as error:
                if time.monotonic() - begin > 90:
                    raise
                self.again += 1
                say(f"a submit is sent again: {type(error).__name__}")
                time.sleep(0.3)


class Reader(threading.Thread):
    """Lists tasks all the time: what needs no router is to be answered while it is replaced."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.longest_s, self.count, self.failed = cluster, 0.0, 0, 0
        self.over = threading.Event()

    def run(self) -> None:
        """Read until told."""
        while not self.over.wait(0.2):
            begin = time.monotonic()
            try:
                self.cluster.fleet.tasks(limit=1)
                self.count += 1
            except (FleetError, OSError):
                self.failed += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begin)


def upgrade(cluster: Cluster) -> None:
    """Deploy a changed version, then changed settings, while the load comes in."""
    fleet, head = cluster.fleet, cluster.head
    before = {agent.id: (agent.pid, agent.incarnation) for agent in fleet.agents()}
    file = head.home / ".fleet" / "serve.yaml"
    load, reader = Load(cluster), Reader(cluster)
    begin = time.monotonic()
    load.start()
    reader.start()
    wait_for("some tasks done", lambda: cluster.done() >= 20)
    content = yaml.safe_load(file.read_text())
    (app,) = content["applications"]
    app["runtime_env"]["env_vars"]["FLEET_REVISION"] += "-next"
    deploy(cluster, file, content, "another revision")
    wait_for("more tasks done", lambda: cluster.done() >= 90)
    app["args"]["settings"]["queue_limit"] = 5000
    deploy(cluster, file, content, "another setting")
    load.join(120)
    assert load.failed is None and not load.is_alive(), load.failed
    finish(cluster, TASKS, 300)
    reader.over.set()
    say(f"{TASKS} tasks in {time.monotonic() - begin:.0f} s")
    say(f"submits: sent again by the load {load.again}, the longest took {load.longest_s:.1f} s")
    say(f"lists of tasks: {reader.count}, failed {reader.failed}, the longest took {reader.longest_s:.1f} s")
    # One may be ordered in the moment in which its router ends, and never reach its agent: it is ordered again.
    lost = fleet.sql("select id from run where state <> 'succeeded'").rows
    begun = fleet.sql("select run_id from event where run_id in (select id from run where state <> 'succeeded')").rows
    say(f"runs that were ordered again because they had not reached their agent: {len(lost)}")
    assert not begun, f"runs that had begun were lost: {begun}"
    after = {agent.id: (agent.pid, agent.incarnation) for agent in fleet.agents()}
    assert after == before, (before, after)
    say(f"the {len(after)} agents are the same processes as before")


def deploy(cluster: Cluster, file: Path, content: dict[str, object], what: str) -> None:
    """Deploy a changed file, and the same one again, which changes nothing."""
    file.write_text(yaml.safe_dump(content))
    epoch, begin, done = cluster.fleet.status()["epoch"], time.monotonic(), cluster.done()
    command = f"RAY_AUTH_MODE=token serve deploy --address http://127.0.0.1:8265 {file}"
    cluster.head.run(command)
    wait_for("another router", lambda: cluster.fleet.status()["epoch"] > epoch, 90)
    say(f"{what}: another router after {time.monotonic() - begin:.1f} s")
    wait_for("the application runs", lambda: steady(cluster), 60)
    took = time.monotonic() - begin
    say(f"{what}: deployed after {took:.1f} s, {cluster.done() - done} tasks done meanwhile")
    cluster.head.run(command)
    assert steady(cluster) and cluster.fleet.status()["epoch"] == epoch + 1


def steady(cluster: Cluster) -> bool:
    """Return whether Serve says that nothing is being replaced."""
    said = cluster.head.run("RAY_AUTH_MODE=token serve status --address http://127.0.0.1:8265")
    return "RUNNING" in said and not any(word in said for word in ("DEPLOYING", "UPDATING", "UNHEALTHY"))


def preempt(cluster: Cluster) -> None:
    """Ray tells that the worker will be taken away: long runs are moved in time, nothing new is started there."""
    fleet, (head, worker) = cluster.fleet, cluster.lab.hosts
    (cluster.shared / "long").mkdir()
    node = cluster.nodes()[worker.name]
    handles = fleet.map(steps(cluster.shared / "long", 6, 12.0), role=ROLE)
    wait_for("all agents work", lambda: sum(agent.state == "busy" for agent in fleet.agents()) == 6, 60)
    begin = time.monotonic()
    head.run(
        f"RAY_AUTH_MODE=token ray drain-node --address {head.address}:6379 --node-id {node}"
        f" --reason DRAIN_NODE_REASON_PREEMPTION --reason-message taken --deadline-remaining-seconds {NOTICE_S}"
    )

    def left() -> int:
        return sum(agent.node == node and agent.state != "stopped" for agent in fleet.agents(all=True))

    wait_for("the node says that it drains", lambda: any(n.draining for n in fleet.nodes() if n.id == node), 20)
    wait_for("no agent is on the node", lambda: left() == 0, NOTICE_S)
    took = time.monotonic() - begin
    say(f"{worker.name}, which Ray takes after {NOTICE_S} s, is empty after {took:.1f} s; {cluster.idle_on()}")
    assert took < NOTICE_S
    wait_for("all long tasks ended", lambda: all(handle.refresh().state.final for handle in handles), 180)
    states = [handle.refresh().state for handle in handles]
    assert states == ["succeeded"] * 6, states
    check_steps(cluster.shared / "long", 6)
    ids = ", ".join(f"'{handle.id}'" for handle in handles)
    query = f"select reason, count(*) as n from run where state <> 'succeeded' and task_id in ({ids}) group by reason"
    moved = fleet.sql(query).rows
    say(f"runs that were moved: {moved}")
    assert moved == [("agent_stopped", 3)], moved


if __name__ == "__main__":
    main(Path(sys.argv[1]))
