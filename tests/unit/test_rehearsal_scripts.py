"""The rehearsal model decides from what comes back: a small Claude Code, written as dictionaries, asks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fleet.rehearsal import model
from fleet.rehearsal.demo import FILES
from fleet.rehearsal.scripts import directives
from fleet.rehearsal.scripts.steps import Fault, Say, Use
from fleet.rehearsal.server import FAULTS, parse_faults

MOVED = "You were moved to another process, maybe on another machine. Check."
CUT = "[Tool call interrupted: the session ended before this call's result was recorded]"
REMINDER = {"type": "text", "text": "<system-reminder>\nSomething.\n</system-reminder>"}


class Talk:
    """A conversation as Claude Code keeps it."""

    def __init__(self, prompt: str, *tools: str, system: str = "") -> None:
        self.tools = tools or ("Bash", "Read", "Write", "Edit")
        self.system = system
        self.messages: list[dict[str, Any]] = [
            {"role": "user", "content": [REMINDER, {"type": "text", "text": prompt}]},
            {"role": "system", "content": "# Environment"},
        ]

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": "m",
            "system": [{"type": "text", "text": self.system}],
            "messages": self.messages,
            "tools": [{"name": name} for name in self.tools],
        }

    def next(self) -> dict[str, Any]:
        """Ask, and keep the answer; return its tool call, or its text as {"text": …}."""
        talk, step = model.decide(self.body)
        content = model.content_of(talk, step, self.body)
        self.messages.append({"role": "assistant", "content": content})
        self.said = model.conversation.text_of(content)
        used = [block for block in content if block["type"] == "tool_use"]
        return used[0] if used else {"name": "", "input": {}, "text": self.said}

    def back(self, text: str, *, error: bool = False) -> None:
        """Answer the last call."""
        call = self.messages[-1]["content"][-1]
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": text, "is_error": error}
        self.messages.append({"role": "user", "content": [result, REMINDER]})

    def say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": [{"type": "text", "text": text}]})

    def cut(self) -> None:
        """The process of the last call was killed; the conversation goes on elsewhere."""
        self.back(CUT, error=True)
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": "No response requested."}]})
        self.say(MOVED)

    def run(self, tools: Callable[[str, dict[str, Any]], tuple[str, bool]], limit: int = 20) -> str:
        """Go on until the final text."""
        for _ in range(limit):
            call = self.next()
            if not call["name"]:
                return str(call["text"])
            text, error = tools(call["name"], call["input"])
            self.back(text, error=error)
        raise AssertionError("no end")


def commands(talk: Talk) -> list[str]:
    return [
        block["input"].get("command", block["input"].get("file_path"))
        for message in talk.messages
        if message["role"] == "assistant"
        for block in message["content"]
        if block["type"] == "tool_use"
    ]


def test_directives_are_done_one_a_turn_each_after_the_result_before() -> None:
    talk = Talk("Please:\nrun: ls\nread: a.txt\nwrite: b.txt\n<<<\none\ntwo\n>>>\nsay: That was all.")
    assert talk.next()["input"]["command"] == "ls"
    talk.back("a.txt")
    assert talk.next()["input"] == {"file_path": "a.txt"}
    talk.back("     1\thello")
    assert talk.next()["input"] == {"file_path": "b.txt", "content": "one\ntwo\n"}
    talk.back("written")
    text = talk.next()["text"]
    assert text.startswith("That was all.")
    assert "run ls: a.txt" in text
    assert "hello" in text
    assert "write b.txt: done" in text


def test_the_same_request_gets_the_same_answer() -> None:
    talk = Talk("run: ls")
    first = model.content_of(*model.decide(talk.body), talk.body)
    assert model.content_of(*model.decide(talk.body), talk.body) == first


def test_an_error_is_reported_and_ends_only_what_must_succeed() -> None:
    talk = Talk("run: false\nrun: echo a")
    assert "failed: Exit code 1" in talk.run(lambda tool, given: ("Exit code 1", given["command"] == "false"))
    strict = Talk("must: run: false\nrun: echo a")
    assert strict.run(lambda tool, given: ("Exit code 1", True)) == "run failed, so I stop here: Exit code 1"
    assert commands(strict) == ["false"]


def test_an_edit_reads_first() -> None:
    talk = Talk("edit: a.py | x = 1 | x = 2")
    assert talk.next()["name"] == "Read"
    talk.back("1\tx = 1")
    assert talk.next()["input"] == {"file_path": "a.py", "old_string": "x = 1", "new_string": "x = 2"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "The user sent a new message while you were working:\nMind the gap\n\nThis is how"
        " Claude Code surfaces messages"},
        {"role": "user", "content": [{"type": "text", "text": "Mind the gap"}]},
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>\nThe user sent a new message while you"
        " were working:\nMind the gap\n\nIMPORTANT: address it.</system-reminder>"}]},
    ],
)  # fmt: skip
def test_what_is_said_in_mid_turn_is_acknowledged_once(message: dict[str, Any]) -> None:
    talk = Talk("run: a\nrun: b\nrun: c")
    talk.next()
    talk.back("")
    talk.messages.append(message)
    assert talk.next()["input"]["command"] == "b"
    assert talk.said.strip() == "You said: Mind the gap"
    talk.back("")
    assert talk.next()["input"]["command"] == "c"
    assert talk.said == ""


def test_a_message_after_the_answer_is_a_new_order() -> None:
    talk = Talk("run: a")
    talk.run(lambda tool, given: ("", False))
    talk.say("run: b")
    assert talk.next()["input"]["command"] == "b"


def test_an_interrupted_call_is_looked_into_before_it_is_made_again() -> None:
    for there, after in ((True, "echo b > b.txt"), (False, "echo a > a.txt")):
        talk = Talk("run: echo a > a.txt\nrun: echo b > b.txt")
        talk.next()
        talk.cut()
        assert talk.next()["input"]["command"] == "test -s a.txt && echo present || echo absent"
        talk.back("present" if there else "absent")
        if there:
            # The next one may have been made too: the journal may lag.
            assert talk.next()["input"]["command"].startswith("test -s b.txt")
            talk.back("absent")
        assert talk.next()["input"]["command"] == after


def test_a_file_that_is_there_is_not_written_again_though_the_call_is_not_in_the_transcript() -> None:
    talk = Talk("run: ls\nwrite: a.txt\n<<<\nx\n>>>\nsay: end")
    talk.next()
    talk.back("")
    talk.say(MOVED)
    assert talk.next()["input"]["command"].startswith("test -s a.txt")
    talk.back("present")
    assert talk.next()["text"].startswith("end")
    # Cut off again, before the answer was kept: the check of before still stands.
    talk.messages.pop()
    talk.say(MOVED)
    assert "write a.txt: done" in talk.next()["text"]


def test_a_second_move_is_a_second_look() -> None:
    talk = Talk("run: echo a > a.txt")
    talk.next()
    talk.cut()
    talk.next()
    talk.back("absent")
    talk.next()
    talk.cut()
    assert talk.next()["input"]["command"].startswith("test -s a.txt")
    talk.back("present")
    assert "done before I was cut off" in talk.next()["text"]


def test_an_interrupted_conversation_that_is_told_something_else_has_a_new_order() -> None:
    talk = Talk("run: sleep 99")
    talk.next()
    talk.back("[Request interrupted by user for tool use]", error=True)
    talk.say("[Request interrupted by user for tool use]")
    talk.say("run: echo new")
    assert talk.next()["input"]["command"] == "echo new"


def test_an_answer_that_was_cut_is_given_again() -> None:
    talk = Talk("say: All of it.")
    talk.next()
    talk.say("Output token limit hit. Resume directly.")
    assert talk.next()["text"] == "All of it."


def test_faults_come_before_the_step_they_stand_before_and_as_often_as_they_say() -> None:
    orders = directives.parse("run: a\nfault: 429 retry-after=2 times=2\nrun: b\nfault: cut")
    given: dict[str, int] = {}
    assert directives.fault_due(orders, Use(0, "Bash", {}), "s", given) is None
    assert directives.fault_due(orders, Use(2, "Bash", {}), "s", given) == Fault("429", 2.0)
    assert directives.fault_due(orders, Use(2, "Bash", {}), "other", given) == Fault("429", 2.0)
    assert directives.fault_due(orders, Use(2, "Bash", {}), "s", given) == Fault("429", 2.0)
    assert directives.fault_due(orders, Use(2, "Bash", {}), "s", given) is None
    assert directives.fault_due(orders, Say(""), "s", given) == Fault("cut")


def test_chances_of_faults_are_read() -> None:
    assert parse_faults("") == ({}, 0)
    assert parse_faults("429:0.1, cut:0.5,seed=7") == ({"429": 0.1, "cut": 0.5}, 7)
    with pytest.raises(ValueError, match="expected FAULT:CHANCE") as raised:
        parse_faults("418:1")
    assert all(fault in str(raised.value) for fault in FAULTS)


def test_paces_belong_to_the_step_that_follows() -> None:
    talk = Talk("sleep: 0.5\nthink: 3\nrun: a\nemit: 4 100\nsay: end")
    _, step = model.decide(talk.body)
    assert (step.pace.delay_s, step.pace.thinking_words, step.pace.pieces) == (0.5, 3, 0)
    talk.next()
    talk.back("")
    _, step = model.decide(talk.body)
    assert (step.pace.delay_s, step.pace.pieces, step.pace.pieces_per_s) == (0.0, 4, 100.0)
    content = model.content_of(model.decide(talk.body)[0], step, talk.body)
    assert [block["text"] for block in content] == ["1 2 3 4 ", "end\nrun a: "]


def test_usage_goes_with_the_sizes() -> None:
    small, large = Talk("say: a"), Talk("say: " + "a" * 4000)
    few, many = (model.usage_of(talk.body, [{"type": "text", "text": "x"}]) for talk in (small, large))
    assert 0 < few["output_tokens"] < 100
    assert sum(many.values()) > sum(few.values()) + 900


class Files:
    """Tools over a dictionary; the tests of the demo's repository are judged by its text."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.committed = False

    def __call__(self, tool: str, given: dict[str, Any]) -> tuple[str, bool]:
        path = given.get("file_path", "")
        if tool == "Bash":
            return self.bash(given["command"])
        if tool == "Write":
            self.files[path] = given["content"]
            return "written", False
        if path not in self.files:
            return "File does not exist.", True
        if tool == "Read":
            lines = self.files[path].splitlines()
            return "\n".join(f"{number}\t{line}" for number, line in enumerate(lines, start=1)), False
        assert self.files[path].count(given["old_string"]) == 1
        self.files[path] = self.files[path].replace(given["old_string"], given["new_string"])
        return "changed", False

    def bash(self, command: str) -> tuple[str, bool]:
        if command.startswith("git add"):
            self.committed = True
            return "abc1234 Mend", False
        if "unittest" not in command:
            return "fatal: not a git repository", True
        if "1 + discount" in self.files.get("orders/totals.py", ""):
            return "FAIL: test_a_discount_is_taken_off (tests.test_totals.Totals)\nRan 2 tests in 0s\nFAILED", True
        return "Ran 2 tests in 0s\n\nOK", False


DEVELOP = "A test fails. Find out why and mend orders/totals.py. Then add a function with_tax(amount, rate) to it."


def test_the_developer_mends_what_it_read_and_commits() -> None:
    files, talk = Files(), Talk(DEVELOP)
    text = talk.run(files)
    assert "1 - discount" in files.files["orders/totals.py"]
    assert "def with_tax" in files.files["orders/totals.py"]
    assert files.committed
    assert "2 run, all passed" in text
    assert "there already" in Talk(DEVELOP).run(files)


def test_the_developer_finds_the_line_where_it_is_and_says_when_tests_still_fail() -> None:
    files = Files()
    files.files["orders/totals.py"] = "def total(a, discount):\n    x = 1\n    return a * (1 + discount)\n"
    files.bash = lambda command: ("FAIL: test_b (tests.test_totals.T)\nRan 2 tests in 0s", True)  # type: ignore
    text = Talk(DEVELOP).run(files)
    assert "return a * (1 - discount)" in files.files["orders/totals.py"]
    assert "not done" in text
    assert not files.committed


def test_the_developer_says_which_file_is_missing() -> None:
    files = Files()
    del files.files["orders/totals.py"]
    assert "I could not read orders/totals.py" in Talk(DEVELOP).run(files)


def test_an_edit_that_was_cut_off_is_not_made_twice() -> None:
    for made in (True, False):
        files, talk = Files(), Talk(DEVELOP)
        while (call := talk.next())["name"] != "Edit":
            talk.back(*[files(call["name"], call["input"])[0]])
        if made:
            files("Edit", call["input"])
        talk.cut()
        text = talk.run(files)
        assert "all passed" in text
        assert files.files["orders/totals.py"].count("1 - discount") == 1


def test_the_reviewer_says_why_it_cannot_review() -> None:
    assert "not a git repository" in Talk("Review the last commit.", system="You are a code reviewer").run(Files())


def test_the_reviewer_finds_the_mistake_in_what_it_read() -> None:
    files = Files()
    show = "abc1234 Add\n--- a/orders/totals.py\n+++ b/orders/totals.py\n+def total(items):\n+    pass\n-old"
    files.bash = lambda command: ("abc1234 Add" if "log" in command else show, False)  # type: ignore
    text = Talk("Review the last commit: orders/totals.py").run(files)
    assert "1 file(s) (orders/totals.py): 2 lines added, 1 removed" in text
    assert "orders/totals.py:7: a mistake: a discount is taken off, not added." in text
    assert "changes wanted" in text


def test_the_tester_writes_tests_of_the_functions_there_are() -> None:
    files, talk = Files(), Talk("Write more tests for the edge cases of orders/totals.py and run all tests.")
    text = talk.run(files)
    written = files.files["tests/test_totals_edges.py"]
    assert "from orders.totals import total\n" in written
    assert "with_tax" not in written
    assert "2 run, 1 failed" in text
    compile(written, "edges", "exec")


def test_a_plain_prompt_is_answered_with_what_was_seen() -> None:
    files, talk = Files(), Talk("What is here?")
    files.bash = lambda command: ("README.md\norders", False)  # type: ignore
    text = talk.run(files)
    assert "What is here?" in text
    assert "# orders" in text
    assert "no tool" in Talk("What is here?", "Read").run(files)


def test_an_output_schema_is_filled() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "why": {"type": "string"}}}
    talk = Talk("say: fine")
    body = {**talk.body, "tools": [{"name": "StructuredOutput", "input_schema": schema}]}
    content = model.content_of(*model.decide(body), body)
    assert content[0]["input"] == {"ok": True, "why": "fine"}
