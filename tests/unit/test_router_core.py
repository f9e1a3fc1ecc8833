"""What the router's core decides, each sentence a test."""

from __future__ import annotations

import pytest

from fleet.errors import AgentGone, Busy, Conflict, InvalidInput, NotFound, UnknownRole
from fleet.lifecycle import AgentState, RunState, TaskState
from fleet.models import AgentReport, Approval, ApprovalState, Run, TaskSpec
from fleet.reasons import MAX_LOSSES, RULES, Reason, Retry
from fleet.router.effects import Acknowledge, CancelRun, DeliverDecision, Dispatch, LaunchAgent, RequestNodes
from fleet.router.queue import AGEING_S
from fleet.router.retry import LEASE_MARGIN_S, LOSS_DELAY_S
from tests.unit.core_world import START, World, make_node, make_role, outcome_of

SPEC = TaskSpec(role="dev", prompt="Work.")


def started(world: World) -> list[str]:
    """Return the tasks in the order they were given to agents."""
    return [order.task.id for order in world.orders()]


def drain_queue(world: World) -> list[str]:
    """Let every run succeed until the queue is empty; returns the order."""
    while world.core.runs:
        world.end(next(iter(world.core.runs.values())).task_id)
    return started(world)


# The queue.


def test_the_higher_priority_goes_first_and_equals_in_the_order_they_came() -> None:
    world = World(up=False)
    low, first, second, high = (
        world.submit(priority=2),
        world.submit(),
        world.submit(),
        world.submit(priority=9),
    )
    world.start_agents()
    assert drain_queue(world) == [high, first, second, low]


def test_tasks_of_one_batch_keep_their_order_also_over_a_restart() -> None:
    world = World(up=False)
    ids = world.submit_all(*[SPEC] * 50)
    world.restart()
    world.start_agents()
    world.up("dev-1")
    world.go()
    assert drain_queue(world) == ids


def test_a_task_that_waits_long_overtakes_a_newer_one_of_a_higher_priority() -> None:
    world = World(up=False)
    old = world.submit(priority=3)
    world.now += 2 * AGEING_S + 1
    new = world.submit(priority=5)
    world.start_agents()
    assert drain_queue(world) == [old, new]


def test_a_changed_priority_changes_the_place() -> None:
    world = World(up=False)
    first, second = world.submit(), world.submit()
    world.do(world.core.prioritize([second, second], 9, world.now))
    world.start_agents()
    assert drain_queue(world) == [second, first]
    with pytest.raises(InvalidInput):
        world.core.prioritize([], 10, world.now)


def test_a_full_queue_is_busy_and_keeps_nothing() -> None:
    world = World(queue_limit=2)
    world.submit_all(SPEC, SPEC)
    with pytest.raises(Busy) as caught:
        world.submit(idempotency_key="k")
    assert caught.value.fields["retry_after_s"] > 0
    assert "k" not in world.core.keys


def test_a_repeated_key_gives_the_first_task_even_when_the_queue_is_full() -> None:
    world = World(queue_limit=1)
    first = world.submit(idempotency_key="k")
    assert world.submit(idempotency_key="k") == first
    world.go()
    world.end(first)
    world.restart()
    assert world.submit(idempotency_key="k") == first
    assert len(world.rows.tasks) == 1


def test_a_key_whose_commit_failed_is_free_again() -> None:
    world = World()
    planned = world.core.plan_submit([TaskSpec(role="dev", prompt="x", idempotency_key="k")], {}, world.now)
    world.core.forget_keys(planned)
    assert world.submit(idempotency_key="k") in world.rows.tasks


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"role": "nobody"}, UnknownRole),
        ({"prompt": " "}, InvalidInput),
        ({"priority": 10}, InvalidInput),
        ({"depends_on": ("t-none",)}, InvalidInput),
        ({"continue_from": "t-none"}, InvalidInput),
        ({"agent": "dev-9"}, AgentGone),
    ],
)
def test_what_is_wrong_with_one_task_refuses_the_batch(wrong: dict[str, object], error: type[Exception]) -> None:
    world = World()
    with pytest.raises(error):
        world.submit_all(SPEC, SPEC.model_copy(update=wrong))
    assert not world.rows.tasks and not world.core.tasks


# Dependencies, times, pins, conversations.


def test_a_task_waits_for_those_it_depends_on() -> None:
    world = World(make_role(agents=3))
    one, two = world.submit(), world.submit()
    after = world.submit(depends_on=(one, two))
    world.go()
    assert world.task(after).state is TaskState.BLOCKED
    world.end(one)
    assert world.task(after).state is TaskState.BLOCKED and two in world.task(after).why
    world.end(two)
    assert world.task(after).state is TaskState.RUNNING


def test_a_chain_of_thousands_fails_when_its_first_link_does() -> None:
    world = World()
    ids = [world.submit()]
    for _ in range(3_000):
        ids.append(world.submit(depends_on=(ids[-1],)))
    world.go()
    world.end(ids[0], Reason.INVALID_REQUEST)
    assert world.task(ids[0]).state is TaskState.FAILED
    assert all(world.task(id).reason is Reason.DEPENDENCY_FAILED for id in ids[1:])
    assert not world.core.tasks


def test_a_task_that_depends_on_a_failed_one_fails_at_once() -> None:
    world = World()
    first = world.submit()
    world.go()
    world.end(first, Reason.BAD_WORKSPACE)
    assert world.task(world.submit(depends_on=(first,))).state is TaskState.FAILED


def test_a_dependency_that_failed_while_the_row_was_committed_still_counts() -> None:
    world = World()
    first = world.submit()
    world.go()
    planned = world.core.plan_submit([TaskSpec(role="dev", prompt="x", depends_on=(first,))], {}, world.now)
    world.end(first, Reason.BAD_WORKSPACE)
    world.do(world.core.accept(planned, world.now))  # type: ignore[arg-type]
    assert world.task(planned[0].id).state is TaskState.FAILED  # type: ignore[union-attr]


def test_a_dependency_that_failed_before_a_restart_still_counts() -> None:
    world = World()
    first = world.submit()
    world.go()
    planned = world.core.plan_submit([TaskSpec(role="dev", prompt="x", depends_on=(first,))], {}, world.now)
    world.end(first, Reason.BAD_WORKSPACE)
    late = planned[0]
    world.rows.tasks[late.id] = late  # type: ignore[union-attr,assignment]
    world.restart()
    assert world.task(late.id).reason is Reason.DEPENDENCY_FAILED  # type: ignore[union-attr]


def test_a_task_with_a_time_waits_for_it() -> None:
    world = World()
    later = world.submit(not_before=START + 60)
    world.go(59)
    assert world.task(later).state is TaskState.SCHEDULED
    assert world.core.next_due(world.now) == START + 60
    world.go(1)
    assert world.task(later).state is TaskState.RUNNING


def test_a_time_counts_after_the_dependencies() -> None:
    world = World()
    first = world.submit()
    after = world.submit(depends_on=(first,), not_before=START + 60)
    world.go()
    world.end(first)
    assert world.task(after).state is TaskState.SCHEDULED
    world.go(60)
    assert world.task(after).state is TaskState.RUNNING


def test_a_pinned_task_goes_to_its_agent_only() -> None:
    world = World(make_role(agents=2))
    world.submit(agent="dev-2")
    pinned = world.submit(agent="dev-2")
    world.go()
    assert world.task(pinned).state is TaskState.QUEUED
    assert world.core.queue_length("dev") == 1
    world.end(started(world)[0])
    assert world.run_of(pinned).agent_id == "dev-2"


def test_a_pinned_task_waits_its_turn_behind_a_higher_priority() -> None:
    world = World()
    world.submit()
    world.go()
    pinned = world.submit(agent="dev-1", priority=1)
    common = world.submit(priority=8)
    world.end(started(world)[0])
    assert started(world)[1:] == [common]
    world.end(common)
    assert started(world)[2:] == [pinned]


def test_a_task_pinned_to_an_agent_that_stops_goes_to_another() -> None:
    world = World(make_role(agents=2))
    busy = world.submit(agent="dev-2")
    world.go()
    pinned = world.submit(agent="dev-2")
    world.do(world.core.stop_agent("dev-2", True, world.now))
    world.end(busy)
    world.do(world.core.agent_stopped("dev-2", 1, world.now, 0.5))
    world.go()
    assert world.run_of(pinned).agent_id == "dev-1"


def test_a_pin_to_an_agent_of_another_role_is_refused() -> None:
    world = World(make_role(), make_role("qa"))
    with pytest.raises(InvalidInput, match="dev-1 is a dev"):
        world.submit("qa", agent="dev-1")


def test_a_continued_task_takes_over_the_conversation() -> None:
    world = World()
    first = world.submit()
    world.go()
    with pytest.raises(InvalidInput, match="running"):
        world.submit(continue_from=first)
    world.end(first)
    second = world.submit(continue_from=first)
    world.go()
    order = world.order_of(second)
    assert order.resume and order.run.session_id == f"s-{first}" and not order.moved


# How runs end.


def test_a_success_leaves_one_result_and_frees_the_agent() -> None:
    world = World()
    id = world.submit()
    world.go()
    world.end(id)
    assert world.task(id).state is TaskState.SUCCEEDED
    assert [result.run_id for result in world.rows.results[id]] == [world.run_of(id).id]
    assert world.agent("dev-1").state is AgentState.IDLE and world.agent("dev-1").runs == 1
    assert world.task(id).cost_usd == 0.5 and world.task(id).turns == 2


@pytest.mark.parametrize("reason", list(Reason))
def test_what_follows_goes_by_the_reason(reason: Reason) -> None:
    world = World(make_role(retries=2))
    id = world.submit()
    world.go()
    world.end(id, reason, retry_at=world.now + 100)
    task, rule = world.task(id), RULES[reason]
    if reason is Reason.CANCELLED:
        assert task.state is TaskState.CANCELLED
    elif rule.loss:
        assert task.losses == 1 and task.retries_used == 0
        assert task.state is (TaskState.RUNNING if reason is Reason.AGENT_STOPPED else TaskState.SCHEDULED)
    elif rule.retry is Retry.NEVER:
        assert task.state is TaskState.FAILED and rule.remedy in task.why
    else:
        assert task.state is TaskState.SCHEDULED and task.retries_used == 1
        delay = (task.not_before or 0) - world.now
        assert delay == (100.5 if rule.retry is Retry.AT_TIME else 5.0)


def test_retries_wait_twice_as_long_each_time_and_end_dead() -> None:
    world = World(make_role(retries=3))
    id = world.submit()
    delays = []
    world.go()
    for _ in range(3):
        world.end(id, Reason.API_ERROR)
        delays.append((world.task(id).not_before or 0) - world.now)
        world.go(delays[-1])
    world.end(id, Reason.API_ERROR)
    assert delays == [5.0, 10.0, 20.0]
    assert world.task(id).state is TaskState.DEAD and world.task(id).number_of_runs == 4
    assert world.task(id).cost_usd == 2.0


def test_a_task_may_have_no_retries_of_its_own() -> None:
    world = World()
    id = world.submit(limits={"retries": 0})
    world.go()
    world.end(id, Reason.SILENT)
    assert world.task(id).state is TaskState.DEAD


def test_losses_are_not_retries_but_bounded() -> None:
    world = World(make_role(retries=0))
    id = world.submit()
    world.go()
    for number in range(1, MAX_LOSSES + 2):
        world.end(id, Reason.AGENT_LOST, status=RunState.LOST)
        assert world.task(id).losses == number
        world.go(LOSS_DELAY_S)
    assert world.task(id).state is TaskState.DEAD and "loss" in world.task(id).why


def test_a_repeated_outcome_is_refused_recorded_and_acknowledged() -> None:
    world = World()
    id = world.submit()
    world.go()
    outcome = world.end(id)
    world.do(world.core.outcome(outcome, world.now, 0.5))
    assert len(world.rows.results[id]) == 1
    assert [refusal.run_id for refusal in world.rows.refusals] == [outcome.run_id]
    assert world.actions[-1] == Acknowledge("dev-1", outcome.run_id)
    assert world.agent("dev-1").runs == 1


def test_a_late_success_of_a_lost_run_is_refused() -> None:
    world = World()
    id = world.submit()
    world.go()
    late = outcome_of(world.run_of(id), world.now)
    world.lose("dev-1")
    world.up("dev-1")
    world.go(LOSS_DELAY_S)
    world.do(world.core.outcome(late, world.now, 0.5))
    assert id not in world.rows.results and len(world.rows.refusals) == 1
    assert world.run_of(id).number == 2 and world.run_of(id).state is RunState.RUNNING
    world.end(id)
    assert len(world.rows.results[id]) == 1


def test_an_outcome_is_acknowledged_with_the_next_run() -> None:
    world = World()
    first, second = world.submit(), world.submit()
    world.go()
    outcome = world.end(first)
    last = [action for action in world.actions if isinstance(action, Dispatch)][-1]
    assert last.order.task.id == second and last.acknowledge == outcome.run_id


def test_a_cut_off_run_goes_on_with_its_conversation_and_is_told() -> None:
    world = World(make_role(agents=2))
    id = world.submit()
    world.go()
    agent = world.run_of(id).agent_id
    session = world.run_of(id).session_id
    world.lose(agent)
    assert world.task(id).state is TaskState.SCHEDULED and world.task(id).losses == 1
    world.go(LOSS_DELAY_S)
    order = world.order_of(id)
    assert order.resume and order.moved and order.run.number == 2 and order.run.agent_id != agent
    assert order.run.session_id == session


def test_a_run_lost_with_its_node_waits_for_the_lease() -> None:
    world = World(lease_s=15.0)
    id = world.submit()
    world.go()
    world.lose("dev-1", node_lost=True)
    assert (world.task(id).not_before or 0) - world.now == 15.0 + LEASE_MARGIN_S


def test_a_cut_off_task_keeps_its_place_in_the_queue() -> None:
    world = World()
    first = world.submit()
    world.go()
    world.now += 1
    second = world.submit()
    world.lose("dev-1")
    world.go(LOSS_DELAY_S)
    world.up("dev-1")
    world.go()
    assert started(world) == [first, first] and world.task(second).state is TaskState.QUEUED


# Cancel and retry.


def test_what_waits_is_cancelled_at_once_in_every_state() -> None:
    world = World(up=False)
    queued, scheduled = world.submit(), world.submit(not_before=START + 60)
    blocked = world.submit(depends_on=(queued,))
    world.do(world.core.cancel([queued, scheduled, blocked, queued], "no", world.now))
    assert {world.task(id).state for id in (queued, scheduled, blocked)} == {TaskState.CANCELLED}
    world.start_agents()
    assert not world.orders()


def test_a_running_task_is_cancelled_when_its_agent_says_so() -> None:
    world = World()
    id = world.submit()
    world.go()
    world.do(world.core.cancel([id], "no", world.now))
    assert world.actions[-1] == CancelRun("dev-1", world.run_of(id).id, Reason.CANCELLED, "no")
    assert world.task(id).state is TaskState.RUNNING
    world.end(id, Reason.CLAUDE_ERROR)
    assert world.task(id).state is TaskState.CANCELLED


def test_a_cancelled_run_whose_agent_dies_is_not_run_again() -> None:
    world = World()
    id = world.submit()
    world.go()
    world.do(world.core.cancel([id], "no", world.now))
    world.lose("dev-1")
    assert world.task(id).state is TaskState.CANCELLED


def test_a_success_that_was_faster_than_the_cancel_counts() -> None:
    world = World()
    id = world.submit()
    world.go()
    world.do(world.core.cancel([id], "no", world.now))
    world.end(id)
    assert world.task(id).state is TaskState.SUCCEEDED


def test_a_dead_task_is_retried_with_all_its_retries() -> None:
    world = World(make_role(retries=0))
    id = world.submit()
    world.go()
    world.end(id, Reason.SILENT)
    world.do(world.core.retry([world.task(id), world.task(id)], world.now))
    world.go()
    assert world.task(id).state is TaskState.RUNNING and world.task(id).retries_used == 0
    assert world.order_of(id).resume and not world.order_of(id).moved
    with pytest.raises(Conflict, match="running"):
        world.core.retry([world.task(id)], world.now)
    world.end(id)
    with pytest.raises(Conflict, match="Continue it"):
        world.core.retry([world.task(id)], world.now)


# Agents.


def test_a_new_fleet_starts_the_agents_its_roles_want_few_at_once() -> None:
    world = World(make_role(agents=10), up=False)
    launches = [action for action in world.actions if isinstance(action, LaunchAgent)]
    assert [launch.agent.id for launch in launches] == ["dev-1", "dev-2", "dev-3", "dev-4"]
    world.start_agents()
    assert sum(agent.state is AgentState.IDLE for agent in world.core.agents.values()) == 10


def test_the_least_busy_node_gets_the_task() -> None:
    nodes = (make_node("n1"), make_node("n2"))
    world = World(make_role(agents=4), nodes=nodes)
    ids = world.submit_all(SPEC, SPEC)
    world.go()
    assert {world.run_of(id).node for id in ids} == {"id-n1", "id-n2"}
    assert "idle on n" in world.run_of(ids[0]).why


def test_a_lost_agent_is_started_again_under_its_name() -> None:
    world = World()
    world.lose("dev-1")
    launch = world.actions[-1]
    assert isinstance(launch, LaunchAgent) and launch.agent.incarnation == 2
    assert world.agent("dev-1").restarts == 1
    world.up("dev-1")
    assert world.agent("dev-1").state is AgentState.IDLE


def test_an_agent_that_dies_again_and_again_is_started_less_and_less_often() -> None:
    world = World()
    delays = []
    for _ in range(7):
        world.lose("dev-1")
        due = world.core.next_due(world.now)
        delays.append(0.0 if due is None else due - world.now)
        world.go(delays[-1])
        world.up("dev-1")
    assert delays == [0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 60.0]


def test_a_message_of_an_earlier_life_changes_nothing() -> None:
    world = World()
    world.lose("dev-1")
    world.do(world.core.agent_lost("dev-1", 1, world.now, 0.5))
    assert world.core.agents["dev-1"].incarnation == 2


def test_an_agent_that_comes_after_another_of_its_name_is_another_life() -> None:
    world = World()
    world.do(world.core.stop_agent("dev-1", False, world.now))
    world.do(world.core.agent_stopped("dev-1", 1, world.now, 0.5))
    world.do(world.core.spawn("dev", 1, world.now)[1])
    assert world.core.agents["dev-1"].incarnation == 2
    world.do(world.core.agent_stopped("dev-1", 1, world.now, 0.5))
    world.do(world.core.agent_lost("dev-1", 1, world.now, 0.5))
    assert world.core.agents["dev-1"].wanted and world.core.agents["dev-1"].incarnation == 2


def test_an_agent_that_does_not_start_is_tried_later_and_says_why() -> None:
    world = World(up=False)
    world.do(world.core.launch_failed("dev-1", 1, "no such file", world.now))
    assert not world.go()
    assert world.agent("dev-1").why == "no such file"
    launch = world.go(1.0)[-1]
    assert isinstance(launch, LaunchAgent) and launch.agent.incarnation == 2


def test_an_agent_that_fits_nowhere_is_wished_for_and_says_why() -> None:
    world = World(make_role(cpus=100), up=False)
    assert "needs 100" in world.agent("dev-1").why
    wish = next(action for action in world.actions if isinstance(action, RequestNodes))
    assert wish.bundles[0]["CPU"] == 100
    assert not world.go(0.5), "it asked again for nothing"
    world.nodes = (*world.nodes, make_node("big", cpus=128.0))
    world.do(world.core.set_nodes(world.nodes, world.now))
    new = world.go(1.0)
    assert [type(action) for action in new] == [LaunchAgent, RequestNodes] and new[1].bundles == ()


def test_a_drained_stop_waits_for_the_run_and_the_role_has_one_less() -> None:
    world = World(make_role(agents=2))
    id = world.submit(agent="dev-1")
    world.go()
    world.do(world.core.stop_agent("dev-1", True, world.now))
    world.go()
    assert not world.stops() and world.agent("dev-1").state is AgentState.DRAINING
    world.end(id)
    assert world.stops() == ["dev-1"]
    world.do(world.core.agent_stopped("dev-1", 1, world.now, 0.5))
    assert world.agent("dev-1").state is AgentState.STOPPED
    world.go()
    assert list(world.core.agents) == ["dev-2"] and world.rows.roles["dev"].agents == 1


def test_a_stop_now_moves_the_run_to_another_agent() -> None:
    world = World(make_role(agents=2))
    id = world.submit(agent="dev-1")
    world.go()
    world.do(world.core.stop_agent("dev-1", False, world.now))
    assert world.stops() == ["dev-1"]
    world.end(id, Reason.AGENT_STOPPED, status=RunState.LOST)
    world.do(world.core.agent_stopped("dev-1", 1, world.now, 0.5))
    world.go()
    assert world.run_of(id).agent_id == "dev-2" and world.task(id).losses == 1


def test_a_stopped_agent_that_said_nothing_of_its_run_gets_time_to_end_it() -> None:
    world = World(make_role(agents=2))
    id = world.submit(agent="dev-1")
    world.go()
    world.do(world.core.stop_agent("dev-1", False, world.now))
    world.do(world.core.agent_stopped("dev-1", 1, world.now, 0.5))
    world.go()
    assert world.task(id).state is TaskState.SCHEDULED


def test_scaling_down_takes_idle_agents_first() -> None:
    world = World(make_role(agents=3))
    id = world.submit(agent="dev-3")
    world.go()
    world.do(world.core.scale("dev", 1, world.now))
    world.go()
    assert sorted(world.stops()) == ["dev-1", "dev-2"]
    assert world.task(id).state is TaskState.RUNNING


def test_spawn_adds_agents_and_a_wrong_number_is_refused() -> None:
    world = World()
    ids, effects = world.core.spawn("dev", 2, world.now)
    world.do(effects)
    assert ids == ["dev-2", "dev-3"]
    for wrong in (0, 1001):
        with pytest.raises(InvalidInput):
            world.core.spawn("dev", wrong, world.now)
    with pytest.raises(UnknownRole):
        world.core.spawn("nobody", 1, world.now)
    with pytest.raises(AgentGone):
        world.core.stop_agent("dev-9", True, world.now)


def test_a_silent_agent_gets_nothing_until_it_is_heard_again() -> None:
    world = World()
    world.core.set_away({"dev-1"}, world.now)
    id = world.submit()
    world.go()
    assert world.task(id).state is TaskState.QUEUED
    world.core.set_away((), world.now)
    world.go()
    assert world.task(id).state is TaskState.RUNNING


def test_an_agent_cut_off_for_longer_than_its_lease_loses_its_run_and_is_free_when_it_returns() -> None:
    world = World()
    id = world.submit()
    world.go()
    late = outcome_of(world.run_of(id), world.now)
    world.do(world.core.agent_away("dev-1", world.now, 0.5))
    assert world.task(id).state is TaskState.SCHEDULED and world.agent("dev-1").state is AgentState.BUSY
    world.do(world.core.outcome(late, world.now, 0.5))
    assert world.agent("dev-1").state is AgentState.IDLE and len(world.rows.refusals) == 1


# Pauses.


def test_a_paused_fleet_and_a_paused_role_give_nothing() -> None:
    world = World(make_role(), make_role("qa"))
    world.do(world.core.pause("dev", True))
    dev, qa = world.submit("dev"), world.submit("qa")
    world.go()
    assert (world.task(dev).state, world.task(qa).state) == (TaskState.QUEUED, TaskState.RUNNING)
    assert world.core.why_waits("dev") == "dev is paused"
    world.do(world.core.pause(None, True))
    world.do(world.core.pause("dev", False))
    world.restart()
    world.up("dev-1")
    world.go()
    assert world.task(dev).state is TaskState.QUEUED and "paused" in world.core.why_waits("dev")
    world.do(world.core.pause(None, False))
    world.go()
    assert world.task(dev).state is TaskState.RUNNING


def test_a_queue_says_why_it_waits() -> None:
    world = World(make_role(agents=0))
    assert world.core.why_waits("dev") == ""
    world.submit()
    assert "has no agents" in world.core.why_waits("dev")
    assert world.core.waits_since("dev") == world.now


# A new router.


def test_after_a_restart_nothing_is_given_before_the_agent_was_heard() -> None:
    world = World()
    id = world.submit()
    world.restart()
    assert world.task(id).state is TaskState.QUEUED
    world.up("dev-1")
    world.go()
    assert world.task(id).state is TaskState.RUNNING and world.run_of(id).epoch == 2


def test_a_run_goes_on_under_a_new_router() -> None:
    world = World()
    id = world.submit()
    world.go()
    run = world.run_of(id)
    world.restart()
    world.up("dev-1", run.id)
    world.go()
    assert world.core.runs == {run.id: run} and world.agent("dev-1").state is AgentState.BUSY
    world.end(id)
    assert world.task(id).state is TaskState.SUCCEEDED


def test_a_dispatch_that_never_arrived_is_given_again() -> None:
    world = World()
    id = world.submit()
    world.go()
    world.restart()
    world.up("dev-1")
    world.go(LOSS_DELAY_S)
    assert world.run_of(id).number == 2 and len(world.core.runs) == 1


def test_a_run_given_while_the_agent_was_asked_is_not_taken_for_lost() -> None:
    world = World()
    id = world.submit()
    world.go()
    run = world.run_of(id)
    # 1: the agent is asked while it has no run; 2: it gets one; 3: its answer comes, without the run.
    answer = AgentReport(agent_id="dev-1", incarnation=1, node="id-n1", pid=1)
    world.do(world.core.agent_up(answer, world.now, asked=""))
    assert world.core.runs == {run.id: run} and world.agent("dev-1").state is AgentState.BUSY


def test_an_agent_that_has_a_run_of_the_past_is_told_to_end_it() -> None:
    world = World()
    world.up("dev-1", "r-old")
    assert world.actions[-1].run_id == "r-old" and isinstance(world.actions[-1], CancelRun)
    id = world.submit()
    world.go()
    assert world.task(id).state is TaskState.QUEUED
    # Its end is refused, and it is free.
    old = outcome_of(_old_run(), world.now)
    world.do(world.core.outcome(old, world.now, 0.5))
    world.go()
    assert world.task(id).state is TaskState.RUNNING


def _old_run() -> Run:
    return Run(
        id="r-old", task_id="t-old", number=1, role="dev", agent_id="dev-1", incarnation=1, epoch=1, started_at=START
    )


def test_an_agent_that_drained_before_a_restart_ends_its_run_and_stops() -> None:
    world = World(make_role(agents=2))
    id = world.submit(agent="dev-1")
    world.go()
    run = world.run_of(id)
    world.do(world.core.stop_agent("dev-1", True, world.now))
    world.restart()
    assert [agent.id for agent in world.core.unattached()] == ["dev-1", "dev-2"]
    world.up("dev-1", run.id)
    world.end(id)
    assert world.stops() == ["dev-1"] and world.task(id).state is TaskState.SUCCEEDED


def test_the_run_of_an_agent_nobody_knows_is_not_held_for_ever() -> None:
    world = World()
    id = world.submit()
    world.go()
    del world.rows.agents["dev-1"]
    world.restart()
    assert "dev-1" in [agent.id for agent in world.core.unattached()]
    world.lose("dev-1")
    assert world.task(id).state is TaskState.SCHEDULED


def test_schedules_and_counts_survive_a_restart() -> None:
    world = World(make_role(retries=3))
    id, later = world.submit(), world.submit(not_before=START + 600)
    world.go()
    world.end(id, Reason.API_ERROR)
    world.restart()
    world.up("dev-1")
    world.go(5.0)
    assert world.task(id).state is TaskState.RUNNING and world.task(id).retries_used == 1
    assert world.task(later).state is TaskState.SCHEDULED


# Scaling by itself.


def test_a_role_grows_with_its_queue_and_shrinks_when_idle() -> None:
    world = World(make_role(agents=1, min_agents=1, max_agents=4))
    ids = world.submit_all(*[SPEC] * 20)
    for _ in range(10):
        world.go(2.5)
        world.start_agents()
    assert len(world.core.agents) == 4
    for id in ids:
        if world.task(id).state is not TaskState.SUCCEEDED:
            world.end(id)
    for _ in range(60):
        world.go(2.5)
        for agent_id in list(world.core._stopping):
            world.do(world.core.agent_stopped(agent_id, 1, world.now, 0.5))
    assert len(world.core.agents) == 1
    assert "shrinks" in world.core._scalers["dev"].why


# Nodes.


def test_a_drained_node_ends_its_runs_and_its_agents_come_back_elsewhere() -> None:
    world = World(nodes=(make_node("n1"), make_node("n2")))
    id = world.submit()
    world.go()
    name = "n1" if world.agent("dev-1").node == "id-n1" else "n2"
    world.do(world.core.drain_node(name, None, False, world.now))
    world.go()
    assert world.task(id).state is TaskState.RUNNING and world.agent("dev-1").state is AgentState.DRAINING
    assert world.agent("dev-2").node != world.agent("dev-1").node
    world.end(id)
    assert world.stops() == ["dev-1"]
    with pytest.raises(NotFound):
        world.core.drain_node("n9", None, False, world.now)


def test_a_drain_with_a_deadline_moves_what_still_runs_then() -> None:
    world = World(nodes=(make_node("n1"), make_node("n2")))
    id = world.submit()
    world.go()
    name = "n1" if world.agent("dev-1").node == "id-n1" else "n2"
    world.do(world.core.drain_node(name, world.now + 60, False, world.now))
    world.now += 59
    world.do(world.core.set_nodes(world.nodes, world.now))
    assert not world.stops() and world.task(id).state is TaskState.RUNNING
    world.now += 2
    world.do(world.core.set_nodes(world.nodes, world.now))
    assert world.stops() == ["dev-1"]


def test_a_drain_survives_a_restart_and_can_be_taken_back() -> None:
    world = World(nodes=(make_node("n1"),))
    world.do(world.core.drain_node("n1", None, False, world.now))
    world.restart()
    assert world.core.nodes["id-n1"].draining
    world.do(world.core.drain_node("id-n1", None, True, world.now))
    assert not world.core.nodes["id-n1"].draining


# Approvals.


def asked(world: World, task_id: str, id: str = "a-1", hold_s: float = 600.0) -> Approval:
    """Let a task's run ask."""
    run = world.run_of(task_id)
    approval = Approval(
        id=id,
        task_id=task_id,
        run_id=run.id,
        agent_id=run.agent_id,
        role=run.role,
        tool="Bash",
        input={"command": "make"},
        created_at=world.now,
        expires_at=world.now + hold_s,
    )
    world.do(world.core.ask(approval, world.now))
    return approval


def decide(world: World, id: str, allow: bool = True, scope: str = "once") -> Approval:
    """Let a person decide."""
    decided, effects = world.core.decide(id, allow, scope, "", None, "me", world.now)
    world.do(effects)
    return decided


def test_a_decision_reaches_the_agent_once_and_only_once() -> None:
    world = World()
    id = world.submit()
    world.go()
    asked(world, id)
    decided = decide(world, "a-1")
    assert world.actions[-1] == DeliverDecision("dev-1", decided)
    assert world.rows.approvals["a-1"].state is ApprovalState.ALLOWED
    for wrong in ("a-1", "a-2"):
        with pytest.raises(NotFound):
            decide(world, wrong)


def test_an_agent_that_asks_again_hears_what_was_decided() -> None:
    world = World()
    id = world.submit()
    world.go()
    approval = asked(world, id)
    decided = decide(world, "a-1")
    world.do(world.core.ask(approval, world.now))
    assert world.actions[-1] == DeliverDecision("dev-1", decided)
    assert world.rows.approvals["a-1"].state is ApprovalState.ALLOWED


def test_a_decision_for_the_task_is_a_rule_of_its_next_runs_also_after_a_restart() -> None:
    world = World()
    id = world.submit()
    world.go()
    asked(world, id)
    decide(world, "a-1", scope="task")
    world.restart()
    world.up("dev-1", world.run_of(id).id)
    world.end(id, Reason.API_ERROR)
    world.go(5.0)
    assert world.order_of(id).rules == ("Bash(make)",)
    world.end(id)
    other = world.submit()
    world.go()
    assert world.order_of(other).rules == ()


def test_a_decision_for_the_role_is_a_rule_of_all_its_tasks() -> None:
    world = World()
    id = world.submit()
    world.go()
    asked(world, id)
    decide(world, "a-1", scope="role")
    world.end(id)
    world.restart()
    world.up("dev-1")
    other = world.submit()
    world.go()
    assert world.order_of(other).rules == ("Bash(make)",)


def test_a_question_ends_with_its_run() -> None:
    world = World()
    id = world.submit()
    world.go()
    asked(world, id)
    run = world.run_of(id)
    world.end(id)
    assert world.rows.approvals["a-1"].state is ApprovalState.WITHDRAWN
    with pytest.raises(Conflict, match="not current"):
        world.core.ask(world.rows.approvals["a-1"].model_copy(update={"run_id": run.id}), world.now)


def parked(world: World) -> str:
    """Return a task that is parked at its question."""
    id = world.submit()
    world.go()
    asked(world, id)
    world.end(id, status=RunState.PARKED, approval_id="a-1")
    assert world.task(id).state is TaskState.BLOCKED
    return id


def test_a_parked_task_frees_its_agent_and_goes_on_with_the_decision() -> None:
    world = World()
    id = parked(world)
    assert world.agent("dev-1").state is AgentState.IDLE
    decide(world, "a-1")
    world.go()
    order = world.order_of(id)
    assert order.resume and "allowed" in (order.message or "") and order.rules == ("Bash(make)",)


def test_a_parked_task_stays_parked_over_a_restart() -> None:
    world = World()
    id = parked(world)
    world.restart()
    world.up("dev-1")
    world.go()
    assert world.task(id).state is TaskState.BLOCKED
    decide(world, "a-1", allow=False)
    world.restart()
    world.up("dev-1")
    world.go()
    assert "denied" in (world.order_of(id).message or "")


def test_a_decision_made_while_the_run_was_being_parked_is_not_lost() -> None:
    world = World()
    id = world.submit()
    world.go()
    asked(world, id)
    decide(world, "a-1")
    world.end(id, status=RunState.PARKED, approval_id="a-1")
    assert world.task(id).state is TaskState.RUNNING
    assert "allowed" in (world.order_of(id).message or "")


def test_a_parked_task_that_nobody_answers_goes_on_with_the_roles_default() -> None:
    world = World()
    id = parked(world)
    assert world.core.next_due(world.now) == START + 600
    world.go(600)
    assert world.rows.approvals["a-1"].decided_by == "timeout"
    assert "denied" in (world.order_of(id).message or "")


def test_a_parked_task_can_be_cancelled() -> None:
    world = World()
    id = parked(world)
    world.do(world.core.cancel([id], "no", world.now))
    assert world.task(id).state is TaskState.CANCELLED
    assert world.rows.approvals["a-1"].state is ApprovalState.WITHDRAWN
    assert not world.core.approvals and not world.core._parked


def test_a_decision_that_the_agent_may_not_have_heard_is_told_again_after_a_restart() -> None:
    world = World()
    id = world.submit()
    world.go()
    asked(world, id)
    decide(world, "a-1")
    world.restart()
    world.up("dev-1", world.run_of(id).id)
    assert [a.approval.id for a in world.actions if isinstance(a, DeliverDecision)] == ["a-1", "a-1"]
