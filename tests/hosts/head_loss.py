"""Scenario: the head's Ray is killed under load; agents on the workers live on and finish what they run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.hosts.fleet_of_hosts import ROLE, Cluster, finish, say, steps
from tests.hosts.lab import Lab, wait_for

TASKS = 24


def main(folder: Path) -> None:
    """The scenario."""
    lab = Lab(folder, 3)
    # The head is back after some ten seconds; a busy machine may take a minute.
    cluster = Cluster(lab, lease_s=120.0)
    cluster.up()
    try:
        play(lab, cluster)
    except BaseException:
        cluster.explain()
        raise
    cluster.down()
    print("SCENARIO OK")


def play(lab: Lab, cluster: Cluster) -> None:
    """Kill the head's GCS and raylet while every agent works."""
    fleet, head = cluster.fleet, lab.hosts[0]
    cluster.spread(2)
    before = cluster.nodes()
    fleet.map(steps(cluster.shared, TASKS, 4.0), role=ROLE)
    wait_for("all agents work", lambda: sum(agent.state == "busy" for agent in fleet.agents()) == 6, 60)
    workers = {agent.id: agent.pid for agent in fleet.agents() if agent.node != before[head.name]}
    running = {agent.run_id for agent in fleet.agents() if agent.id in workers}
    epoch = fleet.status()["epoch"]
    begin = time.monotonic()
    head.run("kill -9 $(ps -C gcs_server -o pid=) $(ps -C raylet -o pid=)")
    say(f"killed the head's GCS and raylet; on the workers: {workers}")
    wait_for("another router", lambda: fleet.status()["epoch"] > epoch, 240)
    say(f"the fleet answers again after {time.monotonic() - begin:.1f} s")
    finish(cluster, TASKS, 300)
    after = {agent.id: agent.pid for agent in fleet.agents()}
    kept = [agent for agent, pid in workers.items() if after.get(agent) == pid]
    say(f"{len(kept)} of {len(workers)} agents on workers kept their process")
    good = fleet.sql("select id from run where state = 'succeeded'").rows
    finished = running & {run for (run,) in good}
    say(f"{len(finished)} of {len(running)} runs on workers finished in spite of the head's loss")
    assert len(kept) == len(workers) and finished == running, (workers, after, running - finished)
    wait_for("the same nodes", lambda: cluster.nodes().keys() == before.keys(), 60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
