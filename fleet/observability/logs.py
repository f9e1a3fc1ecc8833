"""Log lines as JSON, one a line, on stderr and in a file: what `ray logs` and the Ray dashboard show.

Our own loggers are called with plain sentences that carry their ids, `log.info("run lost task=%s run=%s", …)`, or with
`extra={"task": …}`; both give the same fields:

    {"at": "2026-01-31T12:00:00.000Z", "level": "INFO", "part": "router", "logger": "fleet.router",
     "action": "run lost", "task": "t-…", "run": "r-…", "message": "run lost task=t-… run=r-…"}
"""

from __future__ import annotations

import json
import logging
import re
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from fleet.models import iso

IDS = ("task", "run", "agent", "node")
"""Fields of their own; every other `key=value` of a message stays in `message`."""

FILE_BYTES = 20_000_000
FILES_KEPT = 3
LINE_LIMIT = 8_000
"""Characters of a message or a traceback: a line must not carry a whole prompt or tool result."""

_PAIR = re.compile(r"(?:^|\s)(\w+)=(\S*)")


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record.

    Args:
        part: which part of the fleet this process is: `router`, `gateway`, `store`, `agent-qa_tester-1`.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        pairs = dict(_PAIR.findall(message))
        line: dict[str, Any] = {
            "at": iso(record.created),
            "level": record.levelname,
            "part": self.part,
            "logger": record.name,
            "action": getattr(record, "action", None) or action_of(message),
        }
        for name in IDS:
            value = getattr(record, name, None) or pairs.get(name)
            if value and value != "None":
                line[name] = str(value)
        line["message"] = message[:LINE_LIMIT]
        if record.exc_info:
            # The end of a traceback names the error.
            line["error"] = self.formatException(record.exc_info)[-LINE_LIMIT:]
        return json.dumps(line, ensure_ascii=False, default=str)


def action_of(message: str) -> str:
    """Return the words of a message before its first `key=value`: what happened."""
    found = _PAIR.search(message)
    return (message[: found.start()] if found else message.partition("\n")[0]).strip(" :")[:80]


def configure(part: str, level: str = "INFO", folder: Path | None = None) -> None:
    """Give the loggers of fleet their format; called once at the start of a process, again it replaces the first.

    Args:
        part: the name of the part; see `JsonFormatter`.
        level: DEBUG, INFO, WARNING or ERROR.
        folder: also write `fleet-PART.log` there, kept to 80 MB; a folder that cannot be written is left out.
    """
    logger = logging.getLogger("fleet")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folder is not None:
        try:
            handlers.append(
                RotatingFileHandler(
                    folder / f"fleet-{part}.log",
                    maxBytes=FILE_BYTES,
                    backupCount=FILES_KEPT,
                    encoding="utf-8",
                    errors="replace",
                    delay=False,
                )
            )
        except OSError as error:
            print(f"fleet: no log file in {folder}: {error}", file=sys.stderr)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(JsonFormatter(part))
        logger.addHandler(handler)
    logger.setLevel(level)
    # Ray and Serve put handlers of their own on the root: each line would come twice, once without its fields.
    logger.propagate = False


def log(logger: logging.Logger, level: int, action: str, text: str = "", **ids: Any) -> None:
    """Log an action with its ids: `log(logger, logging.INFO, "run lost", task=…, run=…)`."""
    if logger.isEnabledFor(level):
        pairs = " ".join(f"{name}={value}" for name, value in ids.items() if value is not None)
        logger.log(level, "%s", " ".join(filter(None, (action, pairs, text))), extra={"action": action})
