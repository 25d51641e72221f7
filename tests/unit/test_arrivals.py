"""Which clients a batch waits for, with the time passed in."""

from __future__ import annotations

import pytest

from robowire.serving.policy.arrivals import Arrivals


def in_lock_step(clients: int, *, gap_s: float = 0.002, share: float = 0.5) -> Arrivals:
    """Return what is known at time 1.0: a batch of all clients took 20 ms + 1 ms a row and was answered."""
    arrivals = Arrivals(share)
    for rows in (1, 2):  # two sizes tell the fixed part of a batch from that of its rows
        arrivals.inferred(rows, 0.020 + 0.001 * rows)
    for answered_at in (1.0 - gap_s, 1.0):
        for client in range(clients):
            arrivals.arrived(client, answered_at)
            arrivals.answered(client, answered_at)
    return arrivals


def wait_until(arrivals: Arrivals, now: float, waiting: int = 1, places: int = 15) -> float:
    """Return when a batch begins without those who are still missing, nobody arriving meanwhile."""
    arrivals.wait_for(now, waiting, places)
    while wait_s := arrivals.wait_s(now):
        now += wait_s
    return now


def test_a_client_that_is_alone_never_waits() -> None:
    arrivals = in_lock_step(1)
    arrivals.arrived(0, 1.002)
    assert not arrivals.wait_for(1.002, 1, 15)
    assert arrivals.wait_s(1.002) == 0
    assert not arrivals.awaited


def test_those_that_come_back_soon_are_waited_for_until_all_are_there() -> None:
    arrivals = in_lock_step(3)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001, 1, 15)
    arrivals.arrived(1, 1.002)
    assert arrivals.awaited
    assert arrivals.wait_s(1.002) > 0
    arrivals.arrived(2, 1.003)
    assert not arrivals.awaited
    assert arrivals.wait_s(1.003) == 0


def test_one_that_is_late_is_given_up_when_the_wait_has_cost_as_much_as_it_saves() -> None:
    arrivals = in_lock_step(16)
    for client in range(15):
        arrivals.arrived(client, 1.002)
    # Expected after 2 ms and half a millisecond; one of 16 saves a sixteenth of 20 ms.
    assert wait_until(arrivals, 1.002, waiting=15) == pytest.approx(1.0025 + 0.020 / 16)


def test_where_most_are_late_they_are_waited_for_longer() -> None:
    arrivals = in_lock_step(16)
    for client in range(8):
        arrivals.arrived(client, 1.001)
    assert wait_until(arrivals, 1.002, waiting=8) == pytest.approx(1.0025 + 8 * 0.020 / 16)


def test_all_that_are_late_are_waited_for_once() -> None:
    arrivals = in_lock_step(16)  # as where the whole machine stood still for a moment
    arrivals.arrived(0, 1.008)
    assert wait_until(arrivals, 1.008) == pytest.approx(1.008 + 0.011)  # half of 22 ms
    arrivals.answered(0, 1.040)
    arrivals.arrived(0, 1.042)
    assert wait_until(arrivals, 1.042) == 1.042


def test_one_slow_moment_does_not_keep_a_client_out_of_the_next_batches() -> None:
    arrivals = in_lock_step(2)
    for answered_at, gap_s in ((1.1, 0.002), (1.2, 0.050)):
        arrivals.answered(1, answered_at)
        arrivals.arrived(1, answered_at + gap_s)
    for client in (0, 1):
        arrivals.answered(client, 1.3)
    arrivals.arrived(0, 1.301)
    assert arrivals.wait_for(1.301, 1, 15)


def test_a_slow_robot_among_fast_clients_is_not_waited_for() -> None:
    arrivals = in_lock_step(2)
    arrivals.arrived("robot", 0.5)
    arrivals.answered("robot", 0.52)
    arrivals.arrived("robot", 0.99)  # it asks twice a second
    arrivals.answered("robot", 1.0)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001, 1, 15)
    assert list(arrivals._awaited) == [1]


def test_fast_clients_do_not_wait_for_a_slow_one_longer_than_it_saves() -> None:
    arrivals = in_lock_step(4)
    for at in (0.600, 0.800):
        arrivals.arrived("robot", at)
        arrivals.answered("robot", at + 0.092)  # so it is expected at 1.0005
    arrivals.arrived("robot", 1.000)
    arrivals.answered("robot", 0.900)
    for client in range(4):
        arrivals.arrived(client, 0.994)
    assert not arrivals.wait_for(0.994, 4, 12)  # 6.5 ms for each of five, to save 20 ms


def test_the_wait_is_at_most_its_share_of_the_latest_inference() -> None:
    arrivals = in_lock_step(2, gap_s=0.012)
    arrivals.arrived(0, 1.0)
    assert not arrivals.wait_for(1.0, 1, 15)  # it is expected after 12.5 ms, and half of 22 ms are 11


def test_it_does_not_wait_where_larger_batches_are_no_faster() -> None:
    arrivals = in_lock_step(2)
    for rows in (1, 2, 4, 8) * 50:
        arrivals.inferred(rows, 0.010 * rows)
    arrivals.arrived(0, 1.001)
    assert wait_until(arrivals, 1.001) == pytest.approx(1.001, abs=1e-4)


def test_what_is_known_of_batches_is_kept_while_all_are_full() -> None:
    arrivals = in_lock_step(16)
    for _ in range(1000):
        arrivals.inferred(16, 0.036)
    for client in range(15):
        arrivals.arrived(client, 1.001)
    assert wait_until(arrivals, 1.002, waiting=15) < 1.0025 + 0.021 / 16


def test_nobody_is_waited_for_who_has_no_place_in_the_batch() -> None:
    arrivals = in_lock_step(8)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001, 1, 3)
    assert len(arrivals._awaited) == 3
    assert not arrivals.wait_for(1.001, 4, 0)


def test_a_client_that_has_left_delays_one_batch_and_no_more() -> None:
    arrivals = in_lock_step(2)
    arrivals.arrived(0, 1.001)
    assert wait_until(arrivals, 1.001) > 1.001
    arrivals.stop_waiting()
    arrivals.answered(0, 1.03)
    arrivals.arrived(0, 1.032)
    assert wait_until(arrivals, 1.032) == 1.032
    assert not arrivals.awaited


def test_without_a_share_nobody_is_waited_for() -> None:
    arrivals = in_lock_step(3, share=0.0)
    arrivals.arrived(0, 1.001)
    assert not arrivals.wait_for(1.001, 1, 15)


def test_the_cost_of_a_batch_is_unknown_while_all_have_one_size() -> None:
    arrivals = Arrivals()
    for client in (0, 1):
        arrivals.arrived(client, 0.0)
        arrivals.answered(client, 0.0)
        arrivals.arrived(client, 0.001)
        arrivals.answered(client, 0.001)
    arrivals.inferred(1, 0.010)
    arrivals.arrived(0, 0.0015)
    assert wait_until(arrivals, 0.0015) > 0.0015  # it is tried: that measures a batch of two


def test_a_client_that_is_forgotten_is_not_waited_for_and_leaves_nothing() -> None:
    arrivals = in_lock_step(3)
    arrivals.arrived(0, 1.001)
    arrivals.wait_for(1.001, 1, 15)
    arrivals.forget(1)
    arrivals.forget(2)
    assert not arrivals.awaited
    arrivals.forget(0)
    arrivals.forget("never seen")
    assert arrivals._clients == {}
