"""Connections by themselves, with a handler that is no policy and no simulator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from raw_client import RawClient, wait_until

from robowire.errors import ConfigurationError
from robowire.serving.metrics import Metrics
from robowire.serving.sessions import Session
from robowire.serving.tcp.frontend import TcpOptions, TcpServer
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode_frame


class Echo:
    """Answers with what it got; told ``"bug"`` it has one, told ``"much"`` it answers with megabytes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.closed = threading.Event()

    def payload(self, payload: bytearray) -> Sequence[Buffer]:
        value = loads(payload)
        if value == "bug":
            raise ZeroDivisionError
        return encode_frame(bytes(1 << 25) if value == "much" else value)

    def line(self, line: str) -> bytes:
        return f"{line}\n".encode()

    def close(self) -> None:
        self.closed.set()


class Served:
    """An echo server, and the handlers it made."""

    def __init__(self, options: TcpOptions) -> None:
        self.handlers: list[Echo] = []
        self.metrics = Metrics()
        self.server = TcpServer(options, self.open, self.metrics)

    def open(self, session: Session) -> Echo:
        self.handlers.append(Echo(session))
        return self.handlers[-1]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def served() -> Iterator[Served]:
    echo = Served(TcpOptions(host="127.0.0.1", port=0, drain_s=1.0))
    with echo.server:
        yield echo


def test_a_bug_of_ours_is_a_typed_error_and_the_connection_goes_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(served.server.address) as client:
        assert client.ask("bug") == {
            "status": "error",
            "error_type": "internal_error",
            "message": "the server failed on this request; its log says why",
        }
        assert client.ask("well") == "well"
    assert caplog.messages == ["client #1 met a bug of this server"]
    assert caplog.records[0].exc_info is not None


def test_a_handler_is_closed_when_its_client_leaves(served: Served) -> None:
    with RawClient(served.server.address) as client:
        client.ask(1)
    assert served.handlers[0].closed.wait(5)


def test_a_handler_is_closed_when_its_client_sends_garbage(served: Served) -> None:
    with RawClient(served.server.address) as client:
        client.send_payload(b"garbage")
        assert client.closed()
    assert served.handlers[0].closed.wait(5)


def test_a_handler_that_cannot_be_made_costs_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def broken(session: Session) -> Echo:
        raise ZeroDivisionError

    server = TcpServer(TcpOptions(host="127.0.0.1", port=0), broken, Metrics())
    with server:
        for _ in range(2):
            with RawClient(server.address) as client:
                assert client.closed()
    assert caplog.messages == ["client #1 met a bug of this server", "client #2 met a bug of this server"]


def test_bytes_and_requests_are_counted(served: Served) -> None:
    with RawClient(served.server.address) as client:
        client.ask("a")
        client.ask("a")
        wait_until(lambda: served.metrics.snapshot()["requests"] == 2)
    size = sum(len(buffer) for buffer in encode_frame("a"))
    stats = served.metrics.snapshot()
    assert (stats["bytes_received"], stats["bytes_sent"]) == (2 * size, 2 * size)


def test_a_client_that_never_reads_does_not_hold_a_shutdown_up() -> None:
    echo = Served(TcpOptions(host="127.0.0.1", port=0, drain_s=0.2))
    started = time.monotonic()
    with echo.server, RawClient(echo.server.address) as deaf:
        deaf.send("much")
        wait_until(lambda: bool(echo.handlers) and echo.handlers[0].session.requests == 1)
        echo.server.shutdown()
    assert time.monotonic() - started < 2


def test_shutting_down_twice_does_nothing_more(served: Served) -> None:
    served.server.shutdown()
    served.server.shutdown()
    served.server.stop()


def test_a_server_told_to_stop_before_it_serves_does_not_begin() -> None:
    echo = Served(TcpOptions(host="127.0.0.1", port=0))
    echo.server.stop()
    echo.server.serve_forever()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": -1}, "port is -1, expected 0 to 65535"),
        ({"max_payload": 1 << 31}, "max_payload is 2147483648, expected 1 to 1090519039 bytes"),
        ({"max_connections": 0}, "max_connections is 0, expected at least 1"),
        ({"session_timeout_s": 0.0}, "session_timeout_s is 0.0, expected a number of seconds above 0"),
        (
            {"frame_timeout_s": float("nan")},
            "frame_timeout_s is nan, expected a number of seconds above 0",
        ),
        ({"drain_s": -1.0}, "drain_s is -1.0, expected 0 or more seconds"),
        ({"auth_token": ""}, "auth_token is empty: leave it out, or give one"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TcpOptions(**options)  # type: ignore[arg-type]
    assert str(raised.value) == message
