"""The queue of a role, and the sizes of the pool: order, ageing, growth."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.models import Role
from fleet.router.queue import AGEING_S, TaskQueue
from fleet.router.scaler import GROW_EVERY_S, SHRINK_AFTER_S, Demand, Scaler


def drain(queue: TaskQueue) -> list[str]:
    found = []
    while (head := queue.head()) is not None:
        found.append(head[1])
        queue.remove(head[1])
    return found


def test_higher_priority_goes_first_and_within_one_priority_who_came_first() -> None:
    queue = TaskQueue()
    for number, priority in enumerate([5, 9, 5, 0, 9]):
        queue.push(f"t{number}", priority, 100.0 + number)
    assert drain(queue) == ["t1", "t4", "t0", "t2", "t3"]


def test_those_that_came_at_the_same_moment_keep_their_order() -> None:
    queue = TaskQueue()
    for number in range(50):
        queue.push(f"t{number}", 5, 100.0)
    assert drain(queue) == [f"t{number}" for number in range(50)]


def test_a_task_of_the_lowest_priority_does_not_starve() -> None:
    queue = TaskQueue()
    queue.push("old", 0, 0.0)
    # Whatever comes later than nine steps of ageing comes after it, even with the highest priority.
    queue.push("just before", 9, 9 * AGEING_S - 1)
    queue.push("just after", 9, 9 * AGEING_S + 1)
    assert drain(queue) == ["just before", "old", "just after"]


def test_a_task_that_is_pushed_again_moves_and_is_there_once() -> None:
    queue = TaskQueue()
    queue.push("a", 5, 1.0)
    queue.push("b", 5, 2.0)
    queue.push("b", 6, 2.0)
    assert len(queue) == 2 and "b" in queue
    assert drain(queue) == ["b", "a"]
    assert len(queue) == 0 and queue.head() is None


def test_removing_what_is_not_there_changes_nothing() -> None:
    queue = TaskQueue()
    queue.push("a", 5, 1.0)
    queue.remove("b")
    assert drain(queue) == ["a"]


@given(st.lists(st.tuples(st.sampled_from("prd"), st.integers(0, 9), st.integers(0, 30)), max_size=200))
def test_the_queue_is_a_sorted_list_of_what_was_put_in_and_not_taken_out(steps) -> None:
    queue, model = TaskQueue(), {}
    for number, (step, priority, name) in enumerate(steps):
        task_id = f"t{name}"
        if step == "d" and (head := queue.head()) is not None:
            assert head[1] == min(model, key=lambda key: model[key])
            queue.remove(head[1])
            del model[head[1]]
        elif step == "r":
            queue.remove(task_id)
            model.pop(task_id, None)
        else:
            queue.push(task_id, priority, float(number))
            model[task_id] = (number - priority * AGEING_S, number)
        assert len(queue) == len(model)
        assert set(queue.ids()) == set(model)
    assert drain(queue) == sorted(model, key=lambda key: model[key])


def test_memory_of_tasks_that_left_by_another_way_is_given_back() -> None:
    queue = TaskQueue()
    for number in range(5000):
        queue.push(f"t{number}", 5, float(number))
        queue.remove(f"t{number}")
    queue.push("last", 5, 1.0)
    for priority in range(3000):
        queue.push("last", priority % 10, 1.0)
    assert len(queue._heap) < 200


def test_a_push_and_a_pop_take_microseconds_with_a_hundred_thousand_waiting() -> None:
    queue = TaskQueue()
    for number in range(100_000):
        queue.push(f"t{number}", number % 10, float(number))
    began = time.perf_counter()
    for number in range(1000):
        queue.push(f"x{number}", 9, -1e9 + number)
        head = queue.head()
        assert head is not None
        queue.remove(head[1])
    # Some 5 µs each; a linear queue would need 10 ms each.
    assert time.perf_counter() - began < 2.0


# The scaler.


def role(**fields: Any) -> Role:
    return Role(name="dev", prompt="Do it.", **fields)


GROWS = role(min_agents=1, max_agents=6, target_wait_s=30.0, target_queue_per_agent=4.0)


def demand(queued: int = 0, wait: float = 0.0, agents: int = 1, idle: int = 0) -> Demand:
    return Demand(queued=queued, oldest_wait_s=wait, agents=agents, idle=idle)


def test_a_long_queue_grows_the_role_by_doubling_up_to_its_bound() -> None:
    scaler, now, sizes = Scaler(), 1000.0, [1]
    for _ in range(10):
        now += GROW_EVERY_S
        sizes.append(scaler.want(GROWS, demand(queued=40, agents=sizes[-1]), now))
    assert sizes[:5] == [1, 2, 4, 6, 6] and max(sizes) == 6
    assert "grows from 4 to 6 of at most 6" in scaler.why


def test_an_old_task_grows_the_role_even_in_a_short_queue() -> None:
    assert Scaler().want(GROWS, demand(queued=1, wait=29.0), 1000.0) == 1
    assert Scaler().want(GROWS, demand(queued=1, wait=31.0), 1000.0) == 2


def test_it_grows_a_step_at_a_time() -> None:
    scaler = Scaler()
    assert scaler.want(GROWS, demand(queued=40), 1000.0) == 2
    assert scaler.want(GROWS, demand(queued=40, agents=2), 1000.0 + GROW_EVERY_S / 2) == 2


def test_a_role_without_agents_gets_one_for_its_first_task() -> None:
    none = role(min_agents=0, max_agents=2)
    assert Scaler().want(none, demand(agents=0), 1000.0) == 0
    assert Scaler().want(none, demand(queued=1, agents=0), 1000.0) == 1


def test_idle_agents_are_given_back_late_and_one_at_a_time() -> None:
    scaler, now = Scaler(), 1000.0
    assert scaler.want(GROWS, demand(agents=6, idle=5), now) == 6
    assert scaler.want(GROWS, demand(agents=6, idle=5), now + SHRINK_AFTER_S - 1) == 6
    assert scaler.want(GROWS, demand(agents=6, idle=5), now + SHRINK_AFTER_S) == 5
    assert "shrinks from 6 to 5" in scaler.why
    for step in range(1, 20):
        assert scaler.want(GROWS, demand(agents=5, idle=5), now + SHRINK_AFTER_S + 0.01 * step) == 5


def test_a_moment_of_work_starts_the_idle_time_anew() -> None:
    scaler, now = Scaler(), 1000.0
    scaler.want(GROWS, demand(agents=3, idle=3), now)
    scaler.want(GROWS, demand(agents=3, idle=0, queued=1), now + SHRINK_AFTER_S - 1)
    assert scaler.want(GROWS, demand(agents=3, idle=3), now + SHRINK_AFTER_S) == 3


@given(
    st.integers(0, 5),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100), st.integers(0, 20), st.floats(0.1, 60)), max_size=50),
)
def test_it_never_leaves_its_bounds(low, high, steps) -> None:
    bounded = role(min_agents=min(low, high), max_agents=high)
    scaler, now, size = Scaler(), 0.0, low
    for queued, wait, idle, passed in steps:
        now += passed
        size = scaler.want(bounded, demand(queued, wait, size, min(idle, size)), now)
        assert bounded.min_agents <= size <= high


@pytest.mark.parametrize("agents", [0, 7, 100])
def test_a_size_outside_its_bounds_is_put_right_at_once(agents: int) -> None:
    assert 1 <= Scaler().want(GROWS, demand(agents=agents), 1000.0) <= 6
