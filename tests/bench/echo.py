"""The echo agent of the bench: an executable that speaks as much of stream-json as each side needs, and at once.

It answers each user message with an assistant frame and a result, for as long as its stdin is open: so a side may keep
one process (the peers do) or start one for each task (fleet does). A message `emit: N RATE` writes N frames first, RATE
a second, each with the time at which it was written (`bench_at`). Standard library only, and as little of it as it can.
"""

# ruff: noqa: PTH123 - pathlib would cost more than all other imports

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def install(folder: Path) -> Path:
    """Write the executable into a folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "echo"
    with open(__file__, encoding="utf-8") as source:
        path.write_text(f"#!{sys.executable} -IS\n{source.read()}", encoding="utf-8")
    path.chmod(0o755)
    return path


def write(*frames: dict[str, Any]) -> None:
    """Write frames in one go."""
    os.write(1, "".join(json.dumps(frame) + "\n" for frame in frames).encode())


def assistant(number: int, text: str, session: str, **more: Any) -> dict[str, Any]:
    """Return an assistant frame."""
    usage = {"input_tokens": 10, "output_tokens": 5}
    message = {"id": f"m{number}", "role": "assistant", "model": "echo", "usage": usage}
    message["content"] = [{"type": "text", "text": text}]
    return {"type": "assistant", "message": message, "session_id": session, "parent_tool_use_id": None, **more}


def answer(frame: dict[str, Any], session: str, number: int) -> None:
    """Answer a user message."""
    heard_at = time.time()
    content = frame["message"]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    if text.startswith("emit: "):
        count, rate = (float(word) for word in text.split()[1:3])
        begin = time.monotonic()
        for step in range(int(count)):
            ahead = begin + step / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            write(assistant(number * 1_000_000 + step, f"step {step}", session, bench_at=time.time()))
    usage = {"input_tokens": 10, "output_tokens": 5}
    write(
        assistant(number, text, session),
        {
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "num_turns": 1,
            "result": text,
            "total_cost_usd": 0.0,
            "usage": usage,
            "user_message_uuids": [frame.get("uuid", "")],
            "session_id": session,
            "bench_heard_at": heard_at,
            "bench_at": time.time(),
        },
        {"type": "system", "subtype": "session_state_changed", "state": "idle", "session_id": session},
    )


def main() -> None:
    """Answer until stdin ends."""
    session = next((word.split("=", 1)[1] for word in sys.argv if word.startswith("--session-id=")), "echo")
    number = 0
    for line in sys.stdin.buffer:
        frame = json.loads(line)
        if frame.get("type") == "control_request":
            response = {"subtype": "success", "request_id": frame["request_id"], "response": {"commands": []}}
            write({"type": "control_response", "response": response})
        elif frame.get("type") == "user":
            number += 1
            answer(frame, session, number)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--version"]:
        print("echo")
    else:
        main()
