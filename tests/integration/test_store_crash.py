"""The store's process is killed, its disk is full, its instance is lost: nothing acknowledged goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from fleet.errors import Unavailable
from fleet.store.actor import StoreActor
from tests.chaos.store_crash import rounds


def test_five_kills_at_random_points_lose_nothing(tmp_path: Path) -> None:
    report = rounds(tmp_path, 5, seed=int.from_bytes(os.urandom(4), "big"), longest_s=1.0)
    assert report["tasks"] > 0


FULL_DISK = """
import asyncio, os, subprocess, sys, time
from fleet.errors import StorageFull
from fleet.models import Event, EventKind
from fleet.store.actor import StoreActor

folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=True)


def event(seq):
    payload = {"x": os.urandom(20_000).hex()}
    return Event(run_id="r", task_id="t", agent_id="a", seq=seq, at=0.0, kind=EventKind.STATE, payload=payload)


async def main():
    store = StoreActor(folder + "/fleet.duckdb")
    durable = -1
    full = 0
    for seq in range(1000):
        try:
            durable = await store.append_events([event(seq)])
        except StorageFull:
            full += 1
            if full == 5:
                break
    assert full == 5, "the disk was never full"
    assert len(await store.events(limit=5000)) == durable + 1, "what is there can be read"
    subprocess.run(["mount", "-o", "remount,size=80m", folder], check=True)
    for seq in range(durable + 1, durable + 20):
        assert await store.append_events([event(seq)]) == seq, "the store goes on by itself"
    await store.close()
    again = StoreActor(folder + "/fleet.duckdb")
    assert [e.seq for e in await again.events(limit=5000)] == list(range(durable + 20))
    await again.close()
    print("went on")


asyncio.run(main())
"""


def test_a_full_disk_is_said_and_the_store_goes_on_when_there_is_space(tmp_path: Path) -> None:
    unshare = [shutil.which("unshare") or "unshare", "--mount"] + (
        [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    )
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount namespaces here")
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [*unshare, sys.executable, str(script), str(tmp_path / "disk")], capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "went on\n", done.stderr


async def test_a_lost_instance_ends_the_process(tmp_path: Path) -> None:
    deaths: list[str] = []
    store = StoreActor(str(tmp_path / "fleet.duckdb"), die=deaths.append)

    def lost() -> None:
        raise duckdb.FatalException("invalidated")

    with pytest.raises(Unavailable):
        await store._read(lost)
    assert deaths == ["invalidated"]
    await store.close()
