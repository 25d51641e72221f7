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


def test_a_client_that_is_alone_never_waits() -> None:
    arrivals = in_lock_step(1)
    arrivals.arrived(0, 1.002)
    assert arrivals.wait_for(1.002) == 1.002
    assert not arrivals.awaited


def test_those_that_come_back_soon_are_waited_for_until_all_are_there() -> None:
    arrivals = in_lock_step(3)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001) == pytest.approx(1.0 + 0.002 * 1.25 + 0.0005)
    arrivals.arrived(1, 1.002)
    assert arrivals.awaited
    arrivals.arrived(2, 1.003)
    assert not arrivals.awaited


def test_a_slow_robot_among_fast_clients_is_not_waited_for() -> None:
    arrivals = in_lock_step(2)
    arrivals.arrived("robot", 0.5)
    arrivals.answered("robot", 0.52)
    arrivals.arrived("robot", 0.99)  # it asks twice a second
    arrivals.answered("robot", 1.0)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001) < 1.004  # for client 1 alone


def test_the_wait_is_at_most_its_share_of_the_latest_inference() -> None:
    arrivals = in_lock_step(2, gap_s=0.009)
    arrivals.arrived(0, 1.0)
    assert arrivals.wait_for(1.0) == 1.0  # it is expected after 11.75 ms, and half of 22 ms are 11


def test_it_does_not_wait_where_larger_batches_are_no_faster() -> None:
    arrivals = in_lock_step(2)
    for rows in (1, 2, 4, 8) * 5:
        arrivals.inferred(rows, 0.010 * rows)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001) == pytest.approx(1.001)


def test_a_client_that_has_left_delays_one_batch_and_no_more() -> None:
    arrivals = in_lock_step(2)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001) > 1.001
    arrivals.stop_waiting()
    arrivals.answered(0, 1.03)
    arrivals.arrived(0, 1.032)
    assert arrivals.wait_for(1.032) == 1.032
    assert not arrivals.awaited


def test_without_a_share_nobody_is_waited_for() -> None:
    arrivals = in_lock_step(3, share=0.0)
    arrivals.arrived(0, 1.001)
    assert arrivals.wait_for(1.001) == 1.001


def test_the_cost_of_a_batch_is_unknown_while_all_have_one_size() -> None:
    arrivals = Arrivals()
    for client in (0, 1):
        arrivals.arrived(client, 0.0)
        arrivals.answered(client, 0.0)
        arrivals.arrived(client, 0.001)
        arrivals.answered(client, 0.001)
    arrivals.inferred(1, 0.010)
    arrivals.arrived(0, 0.0015)
    assert arrivals.wait_for(0.0015) > 0.0015  # it is tried: that measures a batch of two


def test_a_client_that_is_forgotten_is_not_waited_for_and_leaves_nothing() -> None:
    arrivals = in_lock_step(3)
    arrivals.arrived(0, 1.001)
    arrivals.wait_for(1.001)
    arrivals.forget(1)
    arrivals.forget(2)
    assert not arrivals.awaited
    arrivals.forget(0)
    arrivals.forget("never seen")
    assert arrivals._clients == {}
