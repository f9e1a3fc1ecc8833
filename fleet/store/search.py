"""Search in all transcripts: newest first, stretch by stretch, until there are enough; no index, no extension."""

from __future__ import annotations

from typing import Any

from fleet.store import rows
from fleet.store.database import Database
from fleet.store.words import snippet, split_words

FIRST_STRETCH = 200_000
"""Event ids looked at first; each further stretch is ten times as long, so a rare word costs few more queries."""


def search(
    database: Database,
    words: str,
    *,
    tool: str | None,
    path: str | None,
    role: str | None,
    state: str | None,
    since: float | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return what `contracts.Store.search` promises. A message is found when it has every word, in any case.

    A text in double quotes is one word.
    """
    wanted = split_words(words)
    params: dict[str, Any] = {}
    where: list[str] = []
    for number, word in enumerate(wanted):
        params[f"w{number}"] = word
        where.append(f"contains(folded, $w{number})")
    if tool:
        params["tool"] = tool
        where.append("tool = $tool")
    if path:
        params["path"] = path.lower()
        where.append("path IS NOT NULL AND contains(lower(path), $path)")
    if role:
        params["role"] = role
        where.append("role = $role")
    if state:
        params["state"] = state
        where.append("task_id IN (SELECT id FROM task WHERE state = $state)")
    if since is not None:
        params["since"] = rows.stamp(since)
        where.append("time >= $since")
    if not wanted and not (tool or path):
        where.append("text <> ''")
    clause = "".join(f" AND {part}" for part in where)
    found: list[tuple[Any, ...]] = []
    high, stretch = database.next_event, FIRST_STRETCH
    while high > 0 and len(found) < limit:
        low = max(0, high - stretch)
        # First the ids alone: the scan then reads no column but those it looks into.
        ids = database.read(
            f"SELECT event_id FROM message WHERE event_id >= $low AND event_id < $high{clause} "
            "ORDER BY event_id DESC LIMIT $n",
            {**params, "low": low, "high": high, "n": limit - len(found)},
        )
        if ids:
            found += database.read(
                "SELECT task_id, run_id, event_id, time, role, kind, tool, path, text, agent_id FROM message "
                f"WHERE event_id >= $low AND event_id <= $high AND event_id IN (SELECT unnest($ids)){clause} "
                "ORDER BY event_id DESC LIMIT $n",
                {**params, "low": ids[-1][0], "high": ids[0][0], "ids": [row[0] for row in ids], "n": len(ids)},
            )
        high, stretch = low, stretch * 10
    states = dict(
        database.read(
            "SELECT id, state FROM task WHERE id IN (SELECT unnest($ids))", {"ids": sorted({row[0] for row in found})}
        )
        if found
        else ()
    )
    return [
        {
            "task_id": row[0],
            "run_id": row[1],
            "event_id": row[2],
            "at": rows.seconds_of(row[3]),
            "role": row[4],
            "state": states.get(row[0]),
            "kind": row[5],
            "tool": row[6],
            "path": row[7],
            "agent_id": row[9],
            "snippet": snippet(row[8], wanted),
        }
        for row in found
    ]
