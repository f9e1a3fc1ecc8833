"""Waiting with a bound, and ending tasks; both with Python 3.11's trap in mind.

There `asyncio.wait_for` swallows a cancellation that arrives in the same turn as the result it waits for, and whoever
cancelled waits for ever. `asyncio.timeout` does not, and `end` asks again.
"""

from __future__ import annotations

import asyncio


async def wait_event(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for an event; False when it did not come in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def end(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks until they are done; their exceptions stay in them."""
    left = {task for task in tasks if task is not None}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.5)
