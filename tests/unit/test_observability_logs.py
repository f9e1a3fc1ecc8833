"""Log lines: one format whichever way a logger is called."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.observability import logs


@pytest.fixture
def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    logger = logging.getLogger("fleet")
    before = (list(logger.handlers), logger.level, logger.propagate)
    logs.configure("router", "INFO", tmp_path)
    yield tmp_path / "fleet-router.log"
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ids_in_the_message_become_fields(lines: Path) -> None:
    logging.getLogger("fleet.router").info("run lost task=%s run=%s epoch=%d", "t-1", "r-2", 7)
    (line,) = read(lines)
    assert line["action"] == "run lost"
    assert (line["task"], line["run"], line["part"], line["level"]) == ("t-1", "r-2", "router", "INFO")
    assert line["message"] == "run lost task=t-1 run=r-2 epoch=7"
    assert "agent" not in line and "epoch" not in line
    assert str(line["at"]).endswith("Z")


def test_extra_and_the_helper_give_the_same_fields(lines: Path) -> None:
    logger = logging.getLogger("fleet.agent")
    logger.info("run started", extra={"task": "t-1", "agent": "qa-1"})
    logs.log(logger, logging.INFO, "run started", task="t-1", agent="qa-1", run=None)
    first, second = read(lines)
    for name in ("action", "task", "agent", "level", "logger"):
        assert first[name] == second[name]
    assert "run" not in second


def test_an_error_keeps_its_traceback_in_one_line(lines: Path) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("fleet.store").exception("commit failed")
    (line,) = read(lines)
    assert line["level"] == "ERROR"
    assert str(line["error"]).rstrip().endswith("ValueError: two\nlines")


def test_levels_go_by_setting_and_other_loggers_are_left_alone(lines: Path) -> None:
    logging.getLogger("fleet.router").debug("not shown")
    logging.getLogger("other").warning("not ours")
    assert read(lines) == []


def test_configured_twice_each_line_comes_once(lines: Path, tmp_path: Path) -> None:
    logs.configure("router", "WARNING", tmp_path)
    logging.getLogger("fleet.router").warning("once")
    logging.getLogger("fleet.router").info("never")
    assert [line["action"] for line in read(lines)] == ["once"]


def test_a_huge_message_is_cut(lines: Path) -> None:
    logging.getLogger("fleet.router").warning("long %s", "x" * 100_000)
    (line,) = read(lines)
    assert len(str(line["message"])) == logs.LINE_LIMIT


def test_a_folder_that_cannot_be_written_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fleet")
    before = (list(logger.handlers), logger.level, logger.propagate)
    try:
        logs.configure("router", "INFO", tmp_path / "missing")
        logging.getLogger("fleet.router").warning("still said")
        assert "still said" in capsys.readouterr().err
    finally:
        logger.handlers[:], logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
