from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fleet
from fleet.client import calls
from fleet.client._base import Call, Patience, Target, failure, find_target, is_loopback, read_answer, read_error
from fleet.errors import ERROR_TABLE, FleetError, InvalidInput, NotFound, Unauthorized, Unavailable
from fleet.lifecycle import TaskState
from fleet.models import Limits, Task, Workspace
from fleet.reasons import RULES, Reason


class TestPublicNames:
    def test_they_are_a_sorted_list_and_all_there(self) -> None:
        assert fleet.__all__ == sorted(set(fleet.__all__))
        assert 15 <= len(fleet.__all__) <= 25
        for name in fleet.__all__:
            assert getattr(fleet, name).__name__ == name
        assert set(fleet.__all__) <= set(dir(fleet))

    def test_another_name_is_an_ordinary_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            fleet.nothing  # noqa: B018

    def test_both_clients_have_the_same_methods(self) -> None:
        for one, other in ((fleet.Fleet, fleet.AsyncFleet), (fleet.TaskHandle, fleet.AsyncTaskHandle)):
            names = {name for name in vars(one) if not name.startswith("_")}
            assert names == {name for name in vars(other) if not name.startswith("_")}


class TestFinding:
    def write(self, home: Path, url: str = "http://127.0.0.1:8800", token: str | None = "t") -> dict[str, str]:
        home.mkdir(exist_ok=True)
        (home / "run.json").write_text(json.dumps({"url": url + "/", "pid": 1}))
        if token is not None:
            (home / "token").write_text(token + "\n")
        return {"FLEET_HOME": str(home)}

    def test_the_record_of_the_home_is_the_last_resort(self, tmp_path: Path) -> None:
        env = self.write(tmp_path)
        found = find_target(environ=env)
        assert (found.url, found.token) == ("http://127.0.0.1:8800", "t")
        assert found.source.endswith("run.json")

    def test_variables_win_over_the_record_and_arguments_over_variables(self, tmp_path: Path) -> None:
        env = {**self.write(tmp_path), "FLEET_URL": "http://a:1/", "FLEET_TOKEN": "b"}
        assert find_target(environ=env) == Target("http://a:1", "b", "FLEET_URL")
        assert find_target("http://c:1", "d", environ=env) == Target("http://c:1", "d", "arguments")

    def test_without_a_fleet_it_says_how_to_start_one(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"fleet up.*FLEET_URL and FLEET_TOKEN"):
            find_target(environ={"FLEET_HOME": str(tmp_path)})
        (tmp_path / "run.json").write_text("{broken")
        with pytest.raises(NotFound):
            find_target(environ={"FLEET_HOME": str(tmp_path)})

    def test_without_a_token_it_says_where_one_is(self, tmp_path: Path) -> None:
        with pytest.raises(Unauthorized, match="FLEET_TOKEN is not set"):
            find_target(environ=self.write(tmp_path, token=None))

    def test_the_token_is_not_shown(self) -> None:
        assert "secret" not in repr(Target("http://a", "secret"))

    @pytest.mark.parametrize(
        ("url", "local"),
        [("http://127.0.0.1:1", True), ("http://localhost", True), ("http://[::1]:1", True), ("https://a.b", False)],
    )
    def test_no_proxy_is_asked_for_loopback(self, url: str, local: bool) -> None:
        assert is_loopback(url) is local


class TestPatience:
    def test_delays_grow_up_to_a_bound_and_end_with_the_patience(self) -> None:
        patience = Patience(20.0, chance=lambda: 0.5)
        delays = []
        while (delay := patience.after_failure(True, True)) is not None:
            delays.append(delay)
        assert delays[:5] == [0.2, 0.4, 0.8, 1.6, 3.2]
        assert max(delays) <= 5.0
        assert 10 <= sum(delays) <= 20

    def test_retry_after_is_kept_to(self) -> None:
        assert Patience(60.0).after_answer(True, 429, "7") == 7.0
        assert Patience(60.0).after_answer(True, 503, "x") is not None
        assert Patience(5.0).after_answer(True, 429, "7") is None

    @pytest.mark.parametrize(
        ("safe", "status", "again"),
        [
            (True, 429, True),
            (False, 429, True),
            (True, 503, True),
            (False, 503, False),
            (True, 502, True),
            (True, 500, False),
            (True, 404, False),
            (True, 507, False),
            (True, 200, False),
        ],
    )
    def test_only_what_may_be_repeated_is(self, safe: bool, status: int, again: bool) -> None:
        assert (Patience(60.0).after_answer(safe, status, None) is not None) is again

    def test_a_call_that_is_not_safe_is_repeated_only_when_it_cannot_have_arrived(self) -> None:
        assert Patience(60.0).after_failure(False, arrived=False) is not None
        assert Patience(60.0).after_failure(False, arrived=True) is None
        assert Patience(60.0).after_failure(True, arrived=True) is not None


class TestAnswers:
    @pytest.mark.parametrize("kind", [kind for kind in ERROR_TABLE if kind.code != "illegal_transition"])
    def test_every_error_comes_back_as_itself(self, kind: type[FleetError]) -> None:
        error = kind("what to do", field="x")
        got = read_error(400, json.dumps(error.to_dict()).encode())
        assert type(got) is kind
        assert (got.message, got.fields) == ("what to do", {"field": "x"})

    def test_an_answer_that_is_not_ours_is_told_by_its_status(self) -> None:
        assert isinstance(read_error(503, b"<html>"), Unavailable)
        error = read_error(418, b"teapot")
        assert error.fields == {"status": 418} and "teapot" in error.message

    def test_a_status_a_call_expects_is_an_answer(self) -> None:
        call: Call[Any] = Call("GET", "/", lambda data: data, also=frozenset({503}))
        assert read_answer(call, 503, b'{"status": "degraded"}') == {"status": "degraded"}
        assert Patience(60.0).after_answer(True, 503, None, call.also) is None

    @pytest.mark.parametrize("reason", list(Reason))
    def test_a_failed_task_raises_with_its_remedy(self, reason: Reason) -> None:
        error = failure(_task(state=TaskState.FAILED, reason=reason, detail="it broke"))
        assert error is not None
        assert error.fields["remedy"] == RULES[reason].remedy
        assert error.fields["reason"] == reason.value
        assert "it broke" in error.message and RULES[reason].remedy in error.message

    def test_a_task_that_succeeded_raises_nothing(self) -> None:
        assert failure(_task(state=TaskState.SUCCEEDED)) is None


class TestSpecs:
    def test_limits_may_be_given_by_their_names(self) -> None:
        spec = calls.make_spec("qa_tester", "x", {"max_turns": 3, "limits": Limits(retries=1), "priority": 9})
        assert spec.limits == Limits(max_turns=3, retries=1)
        assert spec.priority == 9

    def test_paths_are_those_of_the_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

        def workspace(given: Any) -> str:
            return str(calls.make_spec("qa_tester", "x", {"workspace": given}).workspace)

        assert workspace(".") == f"directory:{tmp_path}"
        assert workspace(Path("a")) == f"directory:{tmp_path}/a"
        assert workspace("worktree:a@main") == f"worktree:{tmp_path}/a@main"
        assert workspace("/abs") == "directory:/abs"
        assert workspace("scratch") == "scratch"
        assert workspace("git:https://a/b.git@v1") == "git:https://a/b.git@v1"
        assert workspace(Workspace()) == "scratch"

    def test_every_task_gets_a_key_of_its_own(self) -> None:
        specs = calls.make_specs("qa_tester", ["a", "b"], {})
        assert len({spec.idempotency_key for spec in specs}) == 2
        specs = calls.make_specs("qa_tester", ["a", "b"], {"idempotency_key": "k"})
        assert [spec.idempotency_key for spec in specs] == ["k-0", "k-1"]

    def test_an_unknown_option_is_named_with_those_there_are(self) -> None:
        with pytest.raises(InvalidInput, match=r"prio: no such option; there are .*priority"):
            calls.make_spec("qa_tester", "x", {"prio": 1})

    def test_ids_are_quoted_into_paths(self) -> None:
        assert calls.task("../x?y").path == "/api/tasks/..%2Fx%3Fy"


def _task(**fields: Any) -> Task:
    return Task(**{"id": "t-1", "role": "qa_tester", "prompt": "x", "created_at": 1.0, "updated_at": 1.0, **fields})
