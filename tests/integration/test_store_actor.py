"""The store as a Ray actor: killed, it comes back with everything, on the same node and under the same name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, os, signal, sys, time
from pathlib import Path
import ray
from fleet.cluster.handles import StoreHandle
from fleet.config import FleetConfig
from fleet.errors import StaleEpoch, Unavailable
from fleet.lifecycle import TaskState
from fleet.models import Batch, Event, EventKind, Task
from fleet.store.launch import launch_store


async def main(home):
    config = FleetConfig(home=home)
    actor = launch_store(config)
    assert launch_store(config)._actor_id == actor._actor_id, "one store"
    store = StoreHandle()
    epoch = (await store.open_epoch("one")).epoch
    task = Task(id="t-1", role="r", prompt="p", state=TaskState.QUEUED, created_at=1.0, updated_at=1.0)
    await store.commit(epoch, Batch(tasks=(task,)))
    assert (await store.open_epoch("two")).tasks == (task,)
    try:
        await store.commit(epoch, Batch(tasks=(task,)))
        raise AssertionError("expected StaleEpoch")
    except StaleEpoch as error:
        assert error.fields == {"epoch": 1, "current": 2}
    events = [Event(run_id="r", task_id="t-1", agent_id="a", seq=n, at=1.0, kind=EventKind.STATE) for n in range(5)]
    assert await store.append_events(events) == 4
    first = (await store.info())["pid"]
    [start] = await store.follow(None)
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while True:
        try:
            pid = (await store.info())["pid"]
            if pid != first:
                break
        except Unavailable:
            pass
        assert time.monotonic() < deadline, "the store did not come back"
        await asyncio.sleep(0.2)
    assert await store.task("t-1") == task
    assert await store.append_events(events) == 4
    assert len(await store.events(run_id="r")) == 5
    gap, *_ = await store.follow(start.position)
    assert gap.item == {"gap": True}
    assert (await store.open_epoch("three")).epoch == 3
    ray.kill(actor)
    print("came back")


ray.init(
    address="local",
    num_cpus=1,
    include_dashboard=False,
    _temp_dir=sys.argv[2],
    _node_ip_address="127.0.0.1",
    log_to_driver=False,
)
try:
    asyncio.run(main(Path(sys.argv[1])))
finally:
    ray.shutdown()
"""


def test_a_killed_store_comes_back_with_everything(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    temp = Path(f"/tmp/fl{os.getpid()}-st")  # Short: Ray's sockets lie under it.
    try:
        done = _run(script, tmp_path / "home", temp)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    assert "came back" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


def _run(script: Path, home: Path, temp: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    return subprocess.run(
        [sys.executable, str(script), str(home), str(temp)],
        env=environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
    )
