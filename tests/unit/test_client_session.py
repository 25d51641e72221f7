"""A client's session, and how long it waits for a server: no socket, and the clock is passed in."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from robowire.client.session import ClientSession, client_context
from robowire.errors import ConnectFailed, ConnectionLost, LocalProtocolError, RequestTimeout, TlsFailed


class Waiting:
    """A session on a clock that only its own pauses move, and an attempt that fails until ``up_at_s``."""

    def __init__(self, *, wait_s: float, up_at_s: float, error: type[Exception] = ConnectFailed) -> None:
        self.now = 0.0
        self.attempts = 0
        self._up_at_s = up_at_s
        self._error = error
        self.session = ClientSession(
            "robot",
            5000,
            connect_timeout_s=1,
            timeout_s=1,
            wait_s=wait_s,
            sleep=self._sleep,
            clock=lambda: self.now,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def attempt(self) -> str:
        self.attempts += 1
        if self.now < self._up_at_s:
            raise self._error("nothing listens on robot:5000")
        return "connected"


@pytest.mark.parametrize("error", [ConnectFailed, ConnectionLost, RequestTimeout])
def test_a_server_that_starts_in_time_is_waited_for(error: type[Exception]) -> None:
    waiting = Waiting(wait_s=30, up_at_s=12, error=error)
    assert waiting.session.wait_for_server(waiting.attempt) == "connected"
    assert 12 <= waiting.now < 13.1


def test_a_server_that_does_not_start_in_time_is_given_up() -> None:
    waiting = Waiting(wait_s=30, up_at_s=60)
    with pytest.raises(ConnectFailed, match=r"^nothing listens on robot:5000$"):
        waiting.session.wait_for_server(waiting.attempt)
    assert 28.9 < waiting.now <= 30


def test_without_wait_s_there_is_one_attempt() -> None:
    waiting = Waiting(wait_s=0, up_at_s=60)
    with pytest.raises(ConnectFailed):
        waiting.session.wait_for_server(waiting.attempt)
    assert waiting.attempts == 1


def test_only_the_first_connection_is_waited_for() -> None:
    waiting = Waiting(wait_s=30, up_at_s=0)
    waiting.session.wait_for_server(waiting.attempt)
    assert not waiting.session.waits
    waiting._up_at_s = 60
    with pytest.raises(ConnectFailed):
        waiting.session.wait_for_server(waiting.attempt)
    assert waiting.attempts == 2


@pytest.mark.parametrize(("repeats", "attempts"), [(2, 3), (0, 1)])
def test_a_hello_that_was_cut_off_is_repeated(repeats: int, attempts: int) -> None:
    waiting = Waiting(wait_s=0, up_at_s=60, error=ConnectionLost)
    with pytest.raises(ConnectionLost):
        waiting.session.wait_for_server(waiting.attempt, hello_repeats=repeats)
    assert waiting.attempts == attempts


def test_other_failures_are_not_waited_for() -> None:
    waiting = Waiting(wait_s=30, up_at_s=60, error=TlsFailed)
    with pytest.raises(TlsFailed):
        waiting.session.wait_for_server(waiting.attempt)
    assert waiting.attempts == 1


def test_waiting_is_logged_every_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Waiting(wait_s=60, up_at_s=16)
    with caplog.at_level(logging.WARNING):
        waiting.session.wait_for_server(waiting.attempt)
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting up to 60 s, {seconds} s so far: nothing listens on robot:5000" for seconds in (0, 6, 10, 16)
    ]


def test_an_exchange_needs_a_connection() -> None:
    session = ClientSession("::1", 5000, connect_timeout_s=1, timeout_s=1)
    with pytest.raises(LocalProtocolError, match=r"^not connected to \[::1\]:5000: call connect first$"):
        session.exchange([b""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait_s": -1}, "wait_s is -1, expected 0 or more seconds"),
        ({"timeout_s": 0}, "timeout_s is 0, expected a positive number of seconds"),
    ],
)
def test_times_that_can_not_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ClientSession("robot", 5000, **{"connect_timeout_s": 1, "timeout_s": 1, **options})


def test_tls_is_off_unless_something_asks_for_it() -> None:
    assert client_context() is None
    context = client_context(True)
    assert context is not None
    assert client_context(context) is context
    with pytest.raises(ValueError, match=r"^tls is a context, which has its own certificates: leave ca, "):
        client_context(context, "ca.pem")
