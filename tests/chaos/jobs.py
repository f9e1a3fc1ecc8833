"""The jobs of a chaos run: what is asked for, and the ledger of what was promised. Pure but for the ledger's file.

Each job appends lines to files of its own, one file a step, each line the id of the run that wrote it. So a file says
which run did what, and how often, whatever the fleet believes.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STEPS = 3
ROLES = ("quick", "quick", "quick", "real")
"""Three of four jobs go to the stand-in, one to the real Claude Code."""


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        key: also its idempotency key and the stem of its files.
        cancelled: the driver cancels it soon after it was accepted.
        after: the key of a job that must succeed first.
    """

    key: str
    role: str
    prompt: str
    priority: int
    cancelled: bool = False
    after: str | None = None

    def spec(self, folder: Path, ids: dict[str, str]) -> dict[str, Any]:
        """Return the body of its submit."""
        return {
            "role": self.role,
            "prompt": self.prompt,
            "priority": self.priority,
            "workspace": {"kind": "directory", "path": str(folder)},
            "idempotency_key": self.key,
            "depends_on": [ids[self.after]] if self.after else [],
            "labels": {"chaos": "yes"},
        }


def make(number: int, chance: random.Random) -> Job:
    """Return the job of this number; the same for the same random state."""
    key = f"j{number:05d}"
    role = chance.choice(ROLES)
    lines = []
    for step in range(1, STEPS + 1):
        pause = chance.choice((0, 0, 0.2, 0.5, 1.5))
        if role == "quick" and chance.random() < 0.15:
            lines.append(f"fault: {chance.choice(('429', '500', '529', 'cut'))}")
        if chance.random() < 0.3:
            lines.append(f"sleep: {chance.choice((0.2, 0.5, 1))}")
        command = f"echo $FLEET_RUN_ID >> {key}.{step}"
        if pause:
            command += f"; sleep {pause}"
        if chance.random() < 0.1:
            # It must not outlive the run.
            command += "; setsid nohup sleep 600 > /dev/null 2>&1 &"
        lines.append(f"run: {command}")
    lines.append(f"say: {key} is done.")
    after = f"j{number - 1:05d}" if number > 1 and chance.random() < 0.08 else None
    return Job(key, role, "\n".join(lines), chance.randint(0, 9), chance.random() < 0.05, after)


@dataclass
class Ledger:
    """What was acknowledged.

    Attributes:
        ids: key → id of the task that was acknowledged for it.
        faults: promises that were broken already while the driver watched.
    """

    file: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def accepted(self, job: Job, task_id: str) -> None:
        """Note an acknowledgement; a second one for the same key must name the same task."""
        known = self.ids.setdefault(job.key, task_id)
        self.jobs[job.key] = job
        if known != task_id:
            self.faults.append(f"{job.key} was acknowledged as {known} and then as {task_id}")
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"id": task_id, **asdict(job)}) + "\n")
