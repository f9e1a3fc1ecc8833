from __future__ import annotations

from importlib.metadata import version

import pytest

from fleet.cli import command as cli
from fleet.cli.follow import describe
from fleet.cli.output import line_of, money, short, tokens
from fleet.cli.tasks import check_succeeded, labels_of, read_specs, short_workspace
from fleet.errors import ERROR_TABLE, FleetError, InvalidInput, TaskFailed


def event(kind: str, **payload: object) -> dict[str, object]:
    return {"at": "2026-01-31T12:00:01.000Z", "agent_id": "qa_tester-1", "kind": kind, "type": "", "payload": payload}


def lines(kind: str, **payload: object) -> list[str]:
    return [text.plain for text in describe(event(kind, **payload))]


def test_a_tool_call_is_one_line() -> None:
    block = {"type": "tool_use", "name": "Bash", "input": {"command": "pytest -q\nsecond line"}}
    said = lines("frame", type="assistant", message={"content": [block]})
    assert said == ["12:00:01 qa_tester-1 → Bash: pytest -q"]


def test_a_tools_answer_is_its_first_line() -> None:
    block = {"type": "tool_result", "content": [{"type": "text", "text": "\n3 passed\nmore"}]}
    assert lines("frame", type="user", message={"content": [block]}) == ["12:00:01 qa_tester-1 ← 3 passed"]


def test_the_end_of_a_run_says_turns_and_cost() -> None:
    said = lines("frame", type="result", subtype="success", num_turns=3, total_cost_usd=0.0123)
    assert said == ["12:00:01 qa_tester-1 ✓ success, 3 turns, $0.0123"]


def test_frames_without_news_are_silent() -> None:
    assert lines("frame", type="system", subtype="init") == []
    assert lines("frame", type="stream_event") == []
    assert lines("frame", type="assistant", message={"content": [None, {"type": "thinking"}]}) == []


def test_a_gap_is_visible() -> None:
    assert "7 events" in lines("gap", count=7)[0]


def test_markup_in_what_an_agent_says_is_not_interpreted() -> None:
    said = lines("frame", type="assistant", message={"content": [{"type": "text", "text": "[bold]x[/bold] [/]"}]})
    assert said == ["12:00:01 qa_tester-1 [bold]x[/bold] [/]"]


def test_numbers_are_short() -> None:
    assert [short(number) for number in (0, 999, 1000, 2_500_000)] == ["0", "999", "1.0k", "2.5M"]
    assert money(None) == "$0.0000"
    assert tokens({"input_tokens": 900, "cache_read_tokens": 200, "output_tokens": 5}) == "1.1k/5"
    assert line_of("\n  first\nsecond") == "first"
    assert len(line_of("x" * 500, 100)) == 100


def test_labels_are_pairs() -> None:
    assert labels_of(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    for wrong in ("a", "=b"):
        with pytest.raises(InvalidInput, match="KEY=VALUE"):
            labels_of([wrong])


def test_a_workspace_is_taken_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert short_workspace("sub")["path"] == f"{tmp_path}/sub"
    assert short_workspace("worktree:sub@main") == {"kind": "worktree", "path": f"{tmp_path}/sub", "ref": "main"}
    assert short_workspace("scratch")["path"] is None
    assert short_workspace("git:https://host/repository")["path"] == "https://host/repository"


def test_tasks_of_a_file_are_json_a_list_or_lines(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "tasks"
    for text, count in (
        ('{"role": "a"}', 1),
        ('[{"role": "a"}, {"role": "b"}]', 2),
        ('{"role": "a"}\n\n{"b": 1}\n', 2),
    ):
        file.write_text(text)
        assert len(read_specs(file)) == count
    for text, said in (("[]", "objects"), ("[1]", "objects"), ('{"role": "a"}\nx\n', "tasks:2")):
        file.write_text(text)
        with pytest.raises(InvalidInput, match=said):
            read_specs(file)


def test_a_task_that_failed_gives_its_reason_and_remedy() -> None:
    bad = {"id": "t-1", "state": "failed", "reason": "turn_limit", "sentence": "All turns used.", "remedy": "Raise."}
    with pytest.raises(TaskFailed) as caught:
        check_succeeded([{"id": "t-0", "state": "succeeded"}, bad])
    assert caught.value.fields["remedy"] == "Raise."
    assert "All turns used." in caught.value.message


@pytest.mark.parametrize("error", ERROR_TABLE, ids=lambda cls: cls.__name__)
def test_every_error_has_its_exit_code_and_is_said_on_stderr(
    error: type[FleetError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        made = error.__new__(error)
        FleetError.__init__(made, "[what] went wrong")
        raise made

    monkeypatch.setattr(cli, "app", fail)
    assert cli.run(["tasks"]) == ERROR_TABLE[error][1]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: [what] went wrong\n"


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert cli.run([]) == 130


def test_a_wrong_command_line_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tasks", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    assert "submit" in capsys.readouterr().out


def test_version_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fleet {version('fleet')}\n"
