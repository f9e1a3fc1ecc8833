"""How much memory and CPU agents take in rehearsal: `python -m tests.bench.agent_size`; the README's table.

Memory is PSS: what is shared between processes is counted once. The agents run the real Claude Code with real tools.
"""

from __future__ import annotations

import time

import psutil

from tests.integration.support import Home, temporary_home, until

SETTINGS = """
[roles.code_reviewer]
agents = 0
[roles.qa_tester]
agents = 0
[roles.api_developer]
agents = 1
cpus = 0.1
"""
COUNTS = (1, 3, 5)
WATCHED_S = 20.0
PROMPT = "\n".join(f"sleep: 3\nrun: echo {number}; sleep 1" for number in range(12))


def everything(home: Home) -> list[psutil.Process]:
    """Return the fleet's keeper and all below it."""
    keeper = psutil.Process(home.record()["pid"])
    return [keeper, *keeper.children(recursive=True)]


def sizes(home: Home) -> tuple[float, float, float]:
    """Return the memory of the fleet itself, of its agents' actors and of what they run, in MiB."""
    parts = {"fleet": 0.0, "actors": 0.0, "claude": 0.0}
    for process in everything(home):
        try:
            pss = process.memory_full_info().pss / 2**20
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        part = "actors" if "FleetAgent" in words else "claude" if _below_agent(process) else "fleet"
        parts[part] += pss
    return parts["fleet"], parts["actors"], parts["claude"]


def _below_agent(process: psutil.Process) -> bool:
    try:
        return any("FleetAgent" in " ".join(parent.cmdline()) for parent in process.parents())
    except psutil.Error:
        return False


def cpu_s(home: Home) -> float:
    """Return the processor time that the fleet's living processes have used, with that of their ended children."""
    total = 0.0
    for process in everything(home):
        try:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            continue
    return total


def main() -> None:
    """Measure and print."""
    with temporary_home(SETTINGS) as home:
        home.up()
        with home.connect() as fleet:
            until(lambda: [a for a in fleet.agents() if a.state == "idle"], "an agent is there")
            begin, used = time.monotonic(), cpu_s(home)
            time.sleep(WATCHED_S)
            idle = (cpu_s(home) - used) / (time.monotonic() - begin)
            ours, actors, _ = sizes(home)
            print(f"idle, 1 agent: fleet {ours:.0f} MiB, actor {actors:.0f} MiB, {idle:.2f} CPUs", flush=True)
            for count in COUNTS:
                fleet.scale("api_developer", count)
                until(lambda: sum(a.state == "idle" for a in fleet.agents()) == count, f"{count} agents")  # noqa: B023
                handles = fleet.map([PROMPT] * count, role="api_developer")
                until(lambda: sum(c["rss_mb"] > 0 for c in activities(fleet)) == count, "all run Claude Code")  # noqa: B023
                begin, used, peak = time.monotonic(), cpu_s(home), 0.0
                while time.monotonic() - begin < WATCHED_S:
                    peak = max([peak, *(c["rss_mb"] for c in activities(fleet))])
                    time.sleep(1.0)
                cpus = (cpu_s(home) - used) / (time.monotonic() - begin)
                ours, actors, claude = sizes(home)
                print(
                    f"{count} busy: fleet {ours:.0f} MiB, per agent: actor {actors / count:.0f} MiB, Claude Code"
                    f" {claude / count:.0f} MiB (peak of a tree's RSS {peak:.0f}); {cpus:.2f} CPUs",
                    flush=True,
                )
                for handle in fleet.as_completed(handles, timeout=200):
                    assert handle.state == "succeeded", handle


def activities(fleet: object) -> list[dict[str, float]]:
    """Return what the agents do now."""
    return [card["activity"] for card in fleet.cards() if card.get("activity")]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
