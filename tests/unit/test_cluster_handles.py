from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from fleet.cluster.handles import AgentHandle, StoreHandle
from fleet.errors import AgentGone, NotFound, Unavailable


class Broken:
    """An actor whose every call fails in the same way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        async def fail() -> None:
            raise self.error

        return fail()


def store(error: BaseException) -> StoreHandle:
    handle = StoreHandle()
    handle._actor = Broken(error)
    return handle


async def test_an_error_of_ours_is_itself_again() -> None:
    cause = NotFound("There is no task t-1.", what="task", id="t-1")
    # What Ray raises is an instance of both its own class and ours.
    mixed = RayTaskError("task", "the traceback", cause).as_instanceof_cause()
    assert isinstance(mixed, NotFound)
    with pytest.raises(NotFound) as caught:
        await store(mixed).task("t-1")
    assert type(caught.value) is NotFound
    assert caught.value.fields == {"what": "task", "id": "t-1"}


async def test_an_error_that_is_not_ours_stays_what_it_is() -> None:
    mixed = RayTaskError("task", "the traceback", ValueError("odd")).as_instanceof_cause()
    with pytest.raises(ValueError, match="the traceback"):
        await store(mixed).task("t-1")


async def test_a_store_that_restarts_is_unavailable_and_looked_up_again() -> None:
    handle = store(ActorUnavailableError("restarting", b"\0" * 16))
    with pytest.raises(Unavailable) as caught:
        await handle.counts()
    assert caught.value.fields["part"] == "store"
    assert caught.value.fields["retry_after_s"] > 0
    assert handle._actor is None


async def test_a_dead_agent_is_gone_and_one_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(AgentGone):
        await AgentHandle("qa_tester-1", Broken(ActorDiedError())).hello(1)
    with pytest.raises(Unavailable):
        await AgentHandle("qa_tester-1", Broken(ActorUnavailableError("slow", b"\0" * 16))).hello(1)
