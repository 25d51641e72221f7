"""The queue of observations, with the time passed in."""

from __future__ import annotations

import pytest

from robowire.errors import Overloaded
from robowire.serving.policy.batch_queue import BatchQueue


def queue(*, max_batch_size: int = 2, max_wait_s: float = 0.0, max_waiting: int = 10) -> BatchQueue[str]:
    return BatchQueue(max_batch_size=max_batch_size, max_wait_s=max_wait_s, max_waiting=max_waiting)


def test_a_batch_is_never_larger_than_allowed() -> None:
    waiting = queue(max_batch_size=2)
    waiting.put([("kind", "a"), ("kind", "b"), ("kind", "c")], now=0.0)
    assert [waiting.take(), waiting.take(), waiting.take()] == [["a", "b"], ["c"], []]


def test_items_of_different_kinds_never_share_a_batch_and_keep_their_order() -> None:
    waiting = queue(max_batch_size=3)
    waiting.put([("x", "x1"), ("y", "y1"), ("x", "x2"), ("y", "y2")], now=0.0)
    assert [waiting.take(), waiting.take()] == [["x1", "x2"], ["y1", "y2"]]


def test_an_empty_queue_is_never_due() -> None:
    assert queue().due_in(5.0) is None


def test_without_a_wait_a_batch_is_due_at_once() -> None:
    waiting = queue()
    waiting.put([("kind", "a")], now=1.0)
    assert waiting.due_in(1.0) == 0.0


def test_a_batch_waits_for_others_until_its_first_item_waited_long_enough() -> None:
    waiting = queue(max_wait_s=0.5)
    waiting.put([("kind", "a")], now=1.0)
    assert [waiting.due_in(now) for now in (1.0, 1.25, 1.5, 9.0)] == [0.5, 0.25, 0.0, 0.0]


def test_a_full_batch_does_not_wait() -> None:
    waiting = queue(max_wait_s=0.5)
    waiting.put([("kind", "a"), ("kind", "b")], now=1.0)
    assert waiting.due_in(1.0) == 0.0


def test_items_that_do_not_fit_are_refused_as_a_whole() -> None:
    waiting = queue(max_waiting=2)
    waiting.put([("kind", "a")], now=0.0)
    message = r"^1 observations wait already and 2 more came, 2 may: try again later$"
    with pytest.raises(Overloaded, match=message):
        waiting.put([("kind", "b"), ("kind", "c")], now=0.0)
    assert len(waiting) == 1


def test_each_client_has_a_fair_share_of_a_batch() -> None:
    waiting = queue(max_batch_size=4, max_waiting=300)
    waiting.put([("kind", f"a{i}") for i in range(250)], now=0.0, client="a")
    waiting.put([("kind", "b0")], now=1.0, client="b")
    waiting.put([("kind", "c0"), ("kind", "c1")], now=2.0, client="c")
    assert waiting.take() == ["a0", "b0", "c0", "a1"]
    # What was served goes behind the others.
    assert waiting.take() == ["c1", "a2", "a3", "a4"]
    assert len(waiting) == 253 - 8


def test_a_client_that_was_just_served_does_not_come_first() -> None:
    waiting = queue(max_batch_size=1)
    waiting.put([("kind", "a0"), ("kind", "a1"), ("kind", "a2")], now=0.0, client="a")
    waiting.put([("kind", "b0")], now=1.0, client="b")
    assert [waiting.take() for _ in range(5)] == [["a0"], ["b0"], ["a1"], ["a2"], []]
