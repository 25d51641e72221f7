"""Lifecycle of a service, second by second."""

from __future__ import annotations

import dataclasses
import re

import pytest

from robowire.errors import ConfigurationError
from robowire.fleet.lifecycle import Lifecycle, LifecycleOptions, Order, State

OPTIONS = LifecycleOptions(
    start_timeout_s=20,
    unhealthy_s=10,
    backoff_s=1,
    max_backoff_s=5,
    steady_s=60,
    max_service_mb=1000,
    recycle_wait_s=100,
)


def new() -> Lifecycle:
    return Lifecycle(OPTIONS, 0.0, drain_s=10)


def healthy(now: float = 0.0, *, sessions: int = 0) -> Lifecycle:
    service = new()
    service.started(now)
    service.answered(now, sessions=sessions, memory_mb=100)
    return service


def test_a_new_one_is_started_at_once() -> None:
    assert new().order(0.0) is Order.START


def test_one_that_was_started_is_healthy_when_it_answers() -> None:
    service = new()
    service.started(0.0)
    assert service.state is State.STARTING
    service.answered(1.0, sessions=0, memory_mb=100)
    assert (service.state, service.order(1.0)) == (State.HEALTHY, Order.WAIT)


def test_one_that_never_answers_is_killed() -> None:
    service = new()
    service.started(0.0)
    service.missed(1.0, "nothing listens")
    assert service.state is State.STARTING
    assert service.order(20.0) is Order.WAIT
    assert service.order(20.1) is Order.KILL
    service.ended(20.2, "was killed by SIGKILL")
    assert service.reason == "did not answer within 20 s of its start"


def test_one_that_does_not_answer_is_unhealthy_and_killed_if_it_lasts() -> None:
    service = healthy(now=5.0)
    service.missed(7.0, "sent nothing for 5 s")
    assert (service.state, service.reason) == (State.UNHEALTHY, "sent nothing for 5 s")
    assert service.order(15.0) is Order.WAIT
    assert service.order(15.1) is Order.KILL
    service.ended(15.2, "was killed by SIGKILL")
    assert (service.state, service.reason) == (State.BACKING_OFF, "did not answer for 10 s")


def test_one_that_answers_again_is_healthy_again() -> None:
    service = healthy()
    service.missed(7.0, "sent nothing for 5 s")
    service.answered(8.0, sessions=0, memory_mb=100)
    service.missed(15.0, "sent nothing for 5 s")
    assert service.order(17.9) is Order.WAIT
    assert service.order(18.1) is Order.KILL


def test_one_that_ends_is_started_again_after_a_pause() -> None:
    service = healthy()
    service.ended(3.0, "was killed by SIGSEGV")
    assert (service.state, service.reason) == (State.BACKING_OFF, "was killed by SIGSEGV")
    assert service.order(3.9) is Order.WAIT
    assert service.order(4.0) is Order.START
    assert service.restarts == 1


def test_the_pause_doubles_up_to_its_limit() -> None:
    service, now, pauses = healthy(), 0.0, []
    for _ in range(5):
        service.ended(now, "exited with code 1")
        begun = now
        while service.order(now) is Order.WAIT:
            now += 0.5
        pauses.append(now - begun)
        service.started(now)
    assert pauses == [1, 2, 4, 5, 5]


def test_after_a_healthy_time_the_pause_is_short_again() -> None:
    service = healthy()
    for now in (1.0, 10.0):
        service.ended(now, "exited with code 1")
        service.started(now + 5)
    service.answered(20.0, sessions=0, memory_mb=100)
    service.ended(80.0, "exited with code 1")
    assert service.order(80.9) is Order.WAIT
    assert service.order(81.0) is Order.START


def test_one_that_failed_a_thousand_times_is_still_started_again() -> None:
    service = new()
    for _ in range(2000):
        service.started(0.0)
        service.ended(0.0, "exited with code 1")
    assert service.order(5.0) is Order.START


def test_one_that_grew_too_large_waits_for_its_sessions_and_is_replaced_at_once() -> None:
    service = healthy(sessions=1)
    service.answered(70.0, sessions=1, memory_mb=1200)
    assert (service.state, service.reason) == (State.DRAINING, "has 1200 MB, of 1000")
    assert service.order(71.0) is Order.WAIT
    service.answered(72.0, sessions=0, memory_mb=900)
    assert service.order(72.0) is Order.TERMINATE
    service.ended(73.0, "exited with code 0")
    assert (service.state, service.order(73.0)) == (State.BACKING_OFF, Order.START)
    assert (service.reason, service.restarts) == ("has 1200 MB, of 1000", 1)


def test_one_that_is_too_large_from_the_start_is_not_replaced_in_a_loop() -> None:
    service = new()
    for _ in range(3):
        service.started(0.0)
        service.answered(0.0, sessions=0, memory_mb=1200)
        service.ended(0.0, "exited with code 0")
    assert service.order(3.9) is Order.WAIT
    assert service.order(4.0) is Order.START


def test_sessions_are_waited_for_no_longer_than_was_said() -> None:
    service = healthy(sessions=1)
    service.answered(0.0, sessions=1, memory_mb=1200)
    for now in range(0, 105, 5):
        service.answered(float(now), sessions=1, memory_mb=1200)
        assert service.order(float(now)) is (Order.WAIT if now < 100 else Order.TERMINATE)


def test_one_that_drains_and_does_not_answer_is_not_waited_for() -> None:
    service = healthy(sessions=1)
    service.answered(0.0, sessions=1, memory_mb=1200)
    service.missed(5.0, "sent nothing for 5 s")
    assert service.order(10.0) is Order.WAIT
    assert service.order(10.1) is Order.TERMINATE


def test_it_is_terminated_once_and_then_killed() -> None:
    service = healthy()
    service.retire(1.0, wait=False)
    assert service.order(1.0) is Order.TERMINATE
    assert service.order(15.9) is Order.WAIT
    assert service.order(16.1) is Order.KILL  # drain_s and a moment


def test_one_that_is_removed_waits_for_its_sessions() -> None:
    service = healthy(sessions=1)
    service.retire(1.0, wait=True)
    assert (service.state, service.order(2.0)) == (State.DRAINING, Order.WAIT)
    service.answered(3.0, sessions=0, memory_mb=100)
    assert service.order(3.0) is Order.TERMINATE
    service.ended(4.0, "exited with code 0")
    assert (service.state, service.order(9.0)) == (State.STOPPED, Order.WAIT)


def test_one_that_waits_for_its_sessions_ends_at_once_when_the_fleet_does() -> None:
    service = healthy(sessions=1)
    service.retire(1.0, wait=True)
    assert service.order(2.0) is Order.WAIT
    service.retire(3.0, wait=False)
    assert service.order(3.0) is Order.TERMINATE


def test_one_that_is_removed_while_it_has_no_process_is_gone() -> None:
    service = healthy()
    service.ended(1.0, "exited with code 1")
    service.retire(1.5, wait=True)
    assert service.state is State.STOPPED


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backoff_s", 0, "backoff_s is 0, expected a number of seconds above 0"),
        ("unhealthy_s", float("nan"), "unhealthy_s is nan, expected a number of seconds above 0"),
        ("recycle_wait_s", -1, "recycle_wait_s is -1, expected 0 or more seconds"),
        ("max_service_mb", 0, "max_service_mb is 0, expected more than 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(OPTIONS, **{name: value})  # type: ignore[arg-type]


def test_one_that_is_too_large_stays_while_no_other_would_be_there() -> None:
    service = healthy()
    service.answered(1.0, sessions=1, memory_mb=1200, needed=True)
    assert service.state is State.HEALTHY
    service.answered(2.0, sessions=1, memory_mb=1200)
    assert service.state is State.DRAINING
