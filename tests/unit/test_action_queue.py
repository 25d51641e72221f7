from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.client.action_queue import (
    AGGREGATE_FUNCTIONS,
    ActionQueue,
    Merge,
    average,
    latest_only,
    load_aggregate_function,
    weighted_average,
)
from robowire.errors import SpecMismatch, UnknownName

# What LeRobot's users know these names to mean: (share of the old, share of the new).
SHARES = {
    "weighted_average": (0.3, 0.7),
    "latest_only": (0.0, 1.0),
    "average": (0.5, 0.5),
    "conservative": (0.7, 0.3),
}


def chunk(*values: float) -> np.ndarray:
    return np.array([[value, -value] for value in values], np.float32)


def left(queue: ActionQueue) -> list[float]:
    return [float(action[0]) for action in queue.peek()]


def take(queue: ActionQueue, n: int) -> list[float]:
    return [float(queue.pop().action[0]) for _ in range(n)]


def test_the_names_are_lerobots() -> None:
    assert set(AGGREGATE_FUNCTIONS) == set(SHARES)


@pytest.mark.parametrize("name", SHARES)
@given(old=st.floats(-1e3, 1e3, width=32), new=st.floats(-1e3, 1e3, width=32))
def test_an_aggregate_function_is_its_formula(name: str, old: float, new: float) -> None:
    of_old, of_new = SHARES[name]
    merged = load_aggregate_function(name)(np.array([old]), np.array([new]))
    np.testing.assert_allclose(merged, [of_old * old + of_new * new], rtol=0, atol=1e-12)


def test_a_users_function_is_found_by_its_import_string() -> None:
    assert load_aggregate_function("numpy:maximum") is np.maximum


def test_a_misspelt_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        load_aggregate_function("weighted_avg")
    assert str(raised.value) == (
        "no aggregate_fn is called 'weighted_avg'. Did you mean 'weighted_average'? "
        "Known: average, conservative, latest_only, weighted_average"
    )


def test_actions_are_taken_in_their_order() -> None:
    queue = ActionQueue()
    queue.merge(0, chunk(5, 6, 7), observed_at=0)
    assert (take(queue, 3), queue.next_timestep) == ([5, 6, 7], 3)


def test_an_action_not_later_than_the_last_executed_one_is_dropped() -> None:
    queue = ActionQueue()
    queue.merge(0, chunk(0, 1, 2), observed_at=0)
    take(queue, 3)
    assert queue.merge(1, chunk(10, 11, 12, 13), observed_at=1) == Merge(dropped=2, aggregated=0, appended=2)
    assert left(queue) == [12, 13]


def test_a_chunk_that_is_all_past_changes_nothing() -> None:
    queue = ActionQueue()
    queue.merge(0, chunk(0, 1, 2), observed_at=0)
    take(queue, 2)
    assert queue.merge(0, chunk(10, 11), observed_at=1) == Merge(dropped=2, aggregated=0, appended=0)
    assert left(queue) == [2]


def test_an_overlap_is_aggregated() -> None:
    queue = ActionQueue(average)
    queue.merge(0, chunk(0, 1, 2), observed_at=0)
    assert queue.merge(1, chunk(11, 12, 13), observed_at=1) == Merge(dropped=0, aggregated=2, appended=1)
    assert left(queue) == [0, 6, 7, 13]


def test_what_lies_beyond_a_new_chunk_is_kept() -> None:
    queue = ActionQueue(latest_only)
    queue.merge(0, chunk(0, 1, 2, 3), observed_at=0)
    queue.merge(1, chunk(11), observed_at=1)
    assert left(queue) == [0, 11, 2, 3]


def test_an_action_tells_of_the_newest_observation_in_it_and_of_how_many_chunks() -> None:
    queue = ActionQueue(weighted_average)
    queue.merge(0, chunk(0, 1), observed_at=3)
    queue.merge(1, chunk(1, 2), observed_at=8)
    taken = [queue.pop() for _ in range(3)]
    assert [(action.observed_at, action.chunks) for action in taken] == [(3, 1), (8, 2), (8, 1)]


def test_aggregation_keeps_the_dtype_of_the_wire() -> None:
    queue = ActionQueue(lambda old, new: old.astype(np.float64) + new)
    queue.merge(0, chunk(1), observed_at=0)
    queue.merge(0, chunk(2), observed_at=0)
    assert queue.pop().action.dtype == np.float32


def test_the_chunk_that_came_is_left_as_it_was() -> None:
    queue = ActionQueue()
    old, new = chunk(1, 2), chunk(3, 4)
    queue.merge(0, old, observed_at=0)
    queue.merge(0, new, observed_at=0)
    np.testing.assert_array_equal([old, new], [chunk(1, 2), chunk(3, 4)])


def test_clearing_begins_an_episode() -> None:
    queue = ActionQueue()
    queue.merge(0, chunk(1, 2), observed_at=0)
    queue.pop()
    queue.clear()
    assert (len(queue), queue.next_timestep) == (0, 0)


def test_a_chunk_that_would_leave_a_gap_is_refused() -> None:
    queue = ActionQueue()
    queue.merge(0, chunk(1, 2), observed_at=0)
    with pytest.raises(ValueError, match=r"^the chunk begins at timestep 3, and the queue ends before 2$"):
        queue.merge(3, chunk(1), observed_at=0)


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the chunk has shape \(4, 2, 3\), expected \(n, action_dim\)$"):
        ActionQueue().merge(0, np.zeros((4, 2, 3)), observed_at=0)


def test_another_policys_actions_are_refused() -> None:
    queue = ActionQueue()
    queue.merge(0, chunk(1), observed_at=0)
    with pytest.raises(SpecMismatch) as raised:
        queue.merge(0, np.zeros((1, 3), np.float32), observed_at=0)
    assert str(raised.value) == (
        "the chunk's actions have 3 numbers, those in the queue 2: is another policy served now?"
    )


@pytest.mark.parametrize("broken", [lambda old, new: old[:1], lambda old, new: old.sum()])
def test_an_aggregate_function_that_returns_another_shape_changes_nothing(
    broken: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    queue = ActionQueue(broken)
    queue.merge(0, chunk(1), observed_at=0)
    with pytest.raises(SpecMismatch, match=r"^the aggregate function returned shape \(1?,?\) for actions"):
        queue.merge(0, chunk(2, 3), observed_at=0)
    assert left(queue) == [1]


@given(st.data())
def test_the_queue_is_the_formula_on_a_table_of_timesteps(data: st.DataObject) -> None:
    """Compare with a dict of timestep to action, for any chunks and any number of actions taken between."""
    name = data.draw(st.sampled_from(sorted(SHARES)))
    of_old, of_new = SHARES[name]
    queue, table, executed = ActionQueue(load_aggregate_function(name)), dict[int, float](), list[float]()
    for number in range(data.draw(st.integers(1, 6))):
        first = data.draw(st.integers(max(queue.next_timestep - 5, 0), queue.next_timestep + len(queue)))
        values = [100.0 * number + row for row in range(data.draw(st.integers(1, 8)))]
        queue.merge(first, np.array(values)[:, np.newaxis], observed_at=number)
        for timestep, new in enumerate(values, first):
            if timestep >= len(executed):
                table[timestep] = of_old * table[timestep] + of_new * new if timestep in table else new
        for _ in range(data.draw(st.integers(0, len(queue)))):
            expected = table.pop(len(executed))
            executed.append(queue.pop().action.item())
            assert executed[-1] == pytest.approx(expected)
        assert queue.next_timestep == len(executed)
        assert [action.item() for action in queue.peek()] == pytest.approx(
            [table[timestep] for timestep in sorted(table)]
        )
        assert sorted(table) == list(range(len(executed), len(executed) + len(queue)))
