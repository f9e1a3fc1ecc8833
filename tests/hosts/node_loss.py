"""Scenario: 60 tasks on three hosts; one loses its power, one its network for 30 s, one is drained."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from tests.hosts.fleet_of_hosts import ROLE, Cluster, finish, say, steps
from tests.hosts.lab import Lab, wait_for

TASKS = 60
CUT_S = 30.0


def main(folder: Path) -> None:
    """The scenario."""
    lab = Lab(folder, 3)
    cluster = Cluster(lab)
    cluster.up()
    try:
        play(lab, cluster)
    except BaseException:
        cluster.explain()
        raise
    cluster.down()
    print("SCENARIO OK")


def play(lab: Lab, cluster: Cluster) -> None:
    """Break things while the tasks run."""
    fleet, (head, cut, dead) = cluster.fleet, lab.hosts
    cluster.spread(2)
    before = cluster.nodes()
    begin = time.monotonic()
    fleet.map(steps(cluster.shared, TASKS, 1.2), role=ROLE)
    wait_for("some tasks done", lambda: cluster.done() >= 6)

    say(f"{dead.name} loses its power, {cluster.done()} done")
    dead.kill()
    say(f"{cut.name} loses its network")
    cut.cut()
    mend = threading.Timer(CUT_S, cut.mend)
    mend.start()
    wait_for(f"{dead.name} is gone", lambda: dead.name not in cluster.nodes(), 90)
    say(f"{dead.name} gone; it boots and joins again")
    dead.start()
    cluster.join(dead)
    mend.join()
    say(f"{cut.name} has its network again, {cluster.done()} done")
    # Its agents have nowhere to go but to the node that came back, and to the other when it is heard again.
    say(f"drain {head.name}; agents: {cluster.idle_on()}, {cluster.done()} done")
    head.run(f"fleet drain {head.name}")
    wait_for("the drained node has no agent", lambda: cluster.idle_on()[head.name] == 0, 120)
    wait_for("agents on the node that came back", lambda: cluster.idle_on().get(dead.name), 120)
    say(f"{head.name} drained; agents: {cluster.idle_on()}, {cluster.done()} done")

    finish(cluster, TASKS, 300)
    say(f"{TASKS} tasks in {time.monotonic() - begin:.0f} s")
    after = cluster.nodes()
    assert after.keys() == before.keys(), (before, after)
    assert after[dead.name] != before[dead.name]
    for row in fleet.sql("select what, task_id, run_id, agent_id, detail from refusal"):
        say(f"refused: {row}")
    for row in fleet.sql("select reason, why, count(*) as n from transition where reason <> '' group by all"):
        say(f"reason: {row}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
