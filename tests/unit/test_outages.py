"""Waiting for a policy server that is away, on a clock that only waiting moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from robowire.errors import (
    ConnectFailed,
    ConnectionLost,
    Overloaded,
    RequestTimeout,
    RobowireError,
    ShuttingDown,
)
from robowire.rollout.outages import Outages

GONE = ConnectFailed("nothing listens on there:5000")


class Stopping(threading.Event):
    """Moves the clock where it would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


def waiting(patience_s: float) -> tuple[Outages, Stopping]:
    stopping = Stopping()
    return Outages(patience_s, stopping, clock=lambda: stopping.now), stopping


def failing(*errors: RobowireError) -> Callable[[], str]:
    """Return a question that fails so often, and is answered then."""
    left = list(errors)

    def question() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return question


@pytest.mark.parametrize("error", [GONE, ConnectionLost("cut"), Overloaded("full"), ShuttingDown("bye")])
def test_a_server_that_is_away_is_asked_again(error: RobowireError) -> None:
    outages, _ = waiting(60)
    assert (outages.ask(failing(error, error)), outages.survived) == ("answer", 1)


def test_a_cut_connection_costs_no_waiting() -> None:
    outages, stopping = waiting(60)
    outages.ask(failing(ConnectionLost("cut")))
    assert stopping.now == 0


def test_patience_ends_with_the_last_error() -> None:
    outages, stopping = waiting(2)
    with pytest.raises(ConnectFailed, match=r"^nothing listens on there:5000$"):
        outages.ask(failing(*[GONE] * 100))
    assert (stopping.now, outages.survived) == (2, 0)


def test_without_patience_the_first_error_counts() -> None:
    outages, _ = waiting(0)
    with pytest.raises(ConnectFailed):
        outages.ask(failing(GONE))


def test_a_late_reply_is_no_outage() -> None:
    outages, _ = waiting(60)
    with pytest.raises(RequestTimeout):
        outages.ask(failing(RequestTimeout("no reply within 30 s")))


def test_nobody_waits_once_the_evaluation_stops() -> None:
    outages, stopping = waiting(60)
    stopping.set()
    with pytest.raises(ConnectFailed):
        outages.ask(failing(*[GONE] * 100))
    assert stopping.now == 0


def test_the_log_says_that_it_waits_and_when_that_ends(caplog: pytest.LogCaptureFixture) -> None:
    outages, _ = waiting(60)
    with caplog.at_level(logging.WARNING):
        outages.ask(failing(GONE, GONE, GONE))
    assert [record.getMessage() for record in caplog.records] == [
        "waiting up to 60 s for the policy server: nothing listens on there:5000",
        "the policy server is back after 0.5 s",
    ]
