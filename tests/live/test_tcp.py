"""Connections by themselves, with a service that is neither a policy nor simulators."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from raw_client import RawClient, wait_until

from robowire.errors import ConfigurationError
from robowire.serving.runner import Runner
from robowire.serving.sessions import Peer, Session
from robowire.serving.tcp import TcpOptions, TcpServer
from robowire.testing import EchoService
from robowire.wire.codecs import CallCodec
from robowire.wire.pickle.writer import encode_frame


class Served(Runner[EchoService]):
    """An echo service on a free port."""

    def __init__(self, **options: Any) -> None:
        options = {"host": "127.0.0.1", "port": 0, "drain_s": 1.0, **options}
        given = TcpOptions(**options)
        service = EchoService(token=given.token)
        super().__init__(service, [TcpServer(service, given, CallCodec())], drain_s=given.drain_s)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as echo:
        yield echo


def test_a_bug_of_ours_is_a_typed_error_and_the_connection_goes_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(served.address) as client:
        assert client.ask({"method": "bug"}) == {
            "status": "error",
            "error_type": "internal_error",
            "message": "the server failed on this request; its log says why",
        }
        assert client.ask({"method": "say", "what": "well"}) == {"status": "ok", "what": "well"}
    assert caplog.messages == ["client #1 met a bug of this server"]
    assert caplog.records[0].exc_info is not None


def test_a_session_is_closed_when_its_client_leaves(served: Served) -> None:
    with RawClient(served.address) as client:
        client.ask({"method": "ping"})
    assert served.service.closed.wait(5)


def test_a_session_is_closed_when_its_client_sends_garbage(served: Served) -> None:
    with RawClient(served.address) as client:
        client.send_payload(b"garbage")
        assert client.receive()["error_type"] == "invalid_params"
        assert client.closed()
    assert served.service.closed.wait(5)


def test_a_session_that_cannot_be_made_costs_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(EchoService):
        def _make_session(self, number: int, peer: Peer, *, authenticated: bool) -> Session:
            raise ZeroDivisionError

    service = Broken()
    options = TcpOptions(host="127.0.0.1", port=0)
    with Runner(service, [TcpServer(service, options, CallCodec())], drain_s=1.0) as server:
        for _ in range(2):
            with RawClient(server.address) as client:
                client.send({"method": "ping"})
                assert client.closed()
        wait_until(lambda: len(caplog.messages) == 2)
    assert caplog.messages == ["a connection from 127.0.0.1 met a bug of this server"] * 2


def test_bytes_and_requests_are_counted(served: Served) -> None:
    with RawClient(served.address) as client:
        client.ask({"method": "say"})
        client.ask({"method": "say"})
        wait_until(lambda: served.metrics.snapshot()["requests"] == 2)
    received, sent = (
        sum(len(buffer) for buffer in encode_frame(value)) for value in ({"method": "say"}, {"status": "ok"})
    )
    stats = served.metrics.snapshot()
    assert (stats["bytes_received"], stats["bytes_sent"]) == (2 * received, 2 * sent)


def test_a_client_that_never_reads_does_not_hold_a_shutdown_up() -> None:
    echo = Served(drain_s=0.2)
    started = time.monotonic()
    with echo, RawClient(echo.address) as deaf:
        deaf.send({"method": "much"})
        wait_until(lambda: bool(echo.service.opened) and echo.service.opened[0].requests == 1)
        echo.shutdown()
    assert time.monotonic() - started < 2


def test_shutting_down_twice_does_nothing_more(served: Served) -> None:
    served.shutdown()
    served.shutdown()
    served.stop()


def test_a_server_told_to_stop_before_it_serves_does_not_begin() -> None:
    echo = Served()
    echo.stop()
    echo.serve_forever()


def test_a_connection_whose_thread_has_not_begun_makes_place_too() -> None:
    options = TcpOptions(host="127.0.0.1", port=0, max_connections=2, token="sesame")
    server = TcpServer(EchoService(token="sesame"), options, CallCodec())
    pairs = [socket.socketpair() for _ in range(3)]
    try:
        for ours, _ in pairs:  # as the accepting thread, before any thread of theirs
            assert server.verify_request(ours, ("127.0.0.1", 1))
        pairs[0][1].settimeout(5)
        assert pairs[0][1].recv(1) == b""
        pairs[1][1].setblocking(False)
        with pytest.raises(BlockingIOError):
            pairs[1][1].recv(1)
    finally:
        server.close()
        for pair in pairs:
            for sock in pair:
                sock.close()


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
        ({"token": ""}, "token is empty: leave it out, or give one"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TcpOptions(**options)  # type: ignore[arg-type]
    assert str(raised.value) == message
