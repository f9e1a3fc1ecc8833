"""The table of open tasks: packed or not, a task comes back as it was put in."""

from __future__ import annotations

import pickle
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from fleet.lifecycle import FINAL_TASK_STATES, TaskState
from fleet.models import Limits, Task, Usage, Workspace, new_id
from fleet.reasons import Reason
from fleet.router.task_table import TaskTable

NOW = 1_800_000_000.0


def task(**fields: object) -> Task:
    values = {"id": "t-1", "role": "dev", "prompt": "Work.", "state": TaskState.QUEUED, "created_at": NOW}
    return Task(**{**values, "updated_at": NOW, **fields})  # type: ignore[arg-type]


@given(
    st.fixed_dictionaries(
        {"state": st.sampled_from(sorted(set(TaskState) - FINAL_TASK_STATES))},
        optional={
            "priority": st.integers(0, 9),
            "workspace": st.sampled_from([None, Workspace(), Workspace.parse("worktree:repo@main")]),
            "limits": st.builds(Limits, retries=st.none() | st.integers(0, 5)),
            "depends_on": st.lists(st.text(max_size=3), max_size=3).map(tuple),
            "not_before": st.none() | st.floats(0, 2e9),
            "idempotency_key": st.none() | st.text(max_size=5),
            "labels": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
            "output_schema": st.none() | st.just({"type": "object"}),
            "reason": st.none() | st.sampled_from(list(Reason)),
            "why": st.text(max_size=10),
            "losses": st.integers(0, 10),
            "usage": st.builds(Usage, output_tokens=st.integers(0, 5)),
            "cost_usd": st.floats(0, 5),
            "session_id": st.none() | st.text(max_size=5),
        },
    )
)
def test_a_task_comes_back_as_it_was_put_in(fields) -> None:
    table = TaskTable()
    given_ = task(**fields)
    table["t-1"] = given_
    found = table["t-1"]
    assert found == given_ and type(found) is Task
    assert found.model_dump() == given_.model_dump()
    assert found.model_dump_json() == given_.model_dump_json()
    assert pickle.loads(pickle.dumps(found)) == given_
    changed = found.model_copy(update={"why": "changed"})
    assert (changed.why, table["t-1"].why) == ("changed", given_.why)


def test_it_is_a_dictionary() -> None:
    table = TaskTable()
    rows = {f"t-{number}": task(id=f"t-{number}", state=state) for number, state in enumerate(["queued", "running"])}
    table.update(rows)
    assert table == rows and len(table) == 2 and list(table) == list(rows)
    assert "t-0" in table and "t-9" not in table and table.get("t-9") is None
    assert {"t-0", "t-9"} - table.keys() == {"t-9"}
    assert table.pop("t-0") == rows["t-0"] and table.pop("t-0", None) is None
    assert dict(table.items()) == {"t-1": rows["t-1"]}


def test_what_one_reader_does_to_its_labels_another_does_not_see() -> None:
    table = TaskTable()
    table["t-1"] = task()
    table["t-1"].labels["x"] = "y"
    assert table["t-1"].labels == {}


def test_a_task_that_waits_takes_less_than_a_kilobyte() -> None:
    count = 5000
    workspaces = [Workspace.parse("worktree:repository") for _ in range(count)]
    table = TaskTable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            task_id = new_id("t")
            at = NOW + number
            table[task_id] = Task(
                id=task_id,
                role="qa_tester",
                prompt=f"Write the tests that module number {number} still lacks, and run them all.",
                workspace=workspaces[number],
                state=TaskState.QUEUED,
                created_at=at,
                queued_at=at,
                updated_at=at,
            )
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert each < 750, f"{each:.0f} bytes a task, and its queue takes 250"
