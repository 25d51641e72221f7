"""A connection over a socket that is played by the test: no network, no waiting, the clock is passed in."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from robowire.errors import ConnectionLost, FrameTooLarge, RequestTimeout, TruncatedFrame
from robowire.transport.connection import Connection
from robowire.wire.framing import TextLine


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class PlayedSocket:
    """Plays a list of events: bytes that arrive, an error to raise, or a call to make first."""

    family = socket.AF_INET

    def __init__(self, *script: bytes | OSError | Callable[[], None], takes: Sequence[int] = ()) -> None:
        self.script = list(script)
        self.takes = list(takes)
        self.sent = b""
        self.timeouts: list[float | None] = []
        self.options: list[tuple[int, int, int]] = []
        self.closed = False

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 5000

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)  # type: ignore[arg-type]

    def settimeout(self, seconds: float | None) -> None:
        self.timeouts.append(seconds)

    def recv_into(self, buffer: memoryview) -> int:
        while self.script:
            event = self.script.pop(0)
            if isinstance(event, OSError):
                raise event
            if isinstance(event, bytes):
                n = min(len(event), len(buffer))
                buffer[:n] = event[:n]
                if event[n:]:
                    self.script.insert(0, event[n:])
                return n
            event()
        return 0

    def sendmsg(self, buffers: Sequence[memoryview]) -> int:
        data = b"".join(buffers)
        taken = min(len(data), self.takes.pop(0)) if self.takes else len(data)
        if taken < 0:
            raise socket.timeout
        self.sent += data[:taken]
        return taken

    def close(self) -> None:
        self.closed = True


def connection(sock: Any, clock: Clock | None = None, **options: Any) -> Connection:
    return Connection(sock, clock=clock or Clock(), **options)


def test_small_frames_do_not_wait_for_nagle() -> None:
    sock = PlayedSocket()
    connection(sock)
    assert sock.options == [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


def test_a_payload_arrives_in_any_number_of_pieces() -> None:
    sock = PlayedSocket(b"\0", b"\0\0\x05", b"he", b"llo")
    assert connection(sock).receive(wait_s=5, finish_s=5) == b"hello"


def test_a_line_arrives_where_text_is_allowed() -> None:
    line = connection(PlayedSocket(b"INFO\r\n"), text=True).receive(wait_s=5, finish_s=5)
    assert (type(line), line) == (TextLine, "INFO")


def test_the_end_of_the_stream_between_frames_is_none() -> None:
    assert connection(PlayedSocket()).receive(wait_s=5, finish_s=5) is None


def test_the_end_of_the_stream_inside_a_frame_closes() -> None:
    sock = PlayedSocket(b"\0\0\0\x05he")
    with pytest.raises(TruncatedFrame, match=r"^stream ended after 2 of 5 payload bytes$"):
        connection(sock).receive(wait_s=5, finish_s=5)
    assert sock.closed


def test_a_frame_past_the_limit_closes() -> None:
    sock = PlayedSocket(b"\0\0\0\x05")
    with pytest.raises(FrameTooLarge):
        connection(sock, max_payload=4).receive(wait_s=5, finish_s=5)
    assert sock.closed


def test_a_peer_that_says_nothing_runs_out_of_time() -> None:
    sock = PlayedSocket(socket.timeout())
    with pytest.raises(RequestTimeout) as raised:
        connection(sock).receive(wait_s=3, finish_s=5)
    assert str(raised.value) == "192.0.2.1:5000 sent nothing for 3 s; the connection was closed"
    assert sock.closed


def test_a_peer_that_sends_a_byte_a_minute_runs_out_of_time() -> None:
    clock = Clock()

    def four_seconds() -> None:
        clock.now += 4

    sock = PlayedSocket(b"\0", four_seconds, b"\0", four_seconds, b"\0", socket.timeout())
    with pytest.raises(RequestTimeout) as raised:
        connection(sock, clock).receive(wait_s=None, finish_s=10)
    assert str(raised.value) == "192.0.2.1:5000 did not finish a frame within 10 s; the connection was closed"
    assert sock.timeouts == [None, 10, 6, 2]


def test_a_connection_that_breaks_closes() -> None:
    sock = PlayedSocket(ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(ConnectionLost) as raised:
        connection(sock).receive(wait_s=3, finish_s=5)
    assert str(raised.value) == "connection with 192.0.2.1:5000 was lost: Connection reset by peer"
    assert sock.closed


@pytest.mark.parametrize("takes", [[], [1, 1, 1, 1], [3, 4], [7], [0, 2]])
def test_what_the_kernel_did_not_take_is_sent_again(takes: list[int]) -> None:
    sock = PlayedSocket(takes=takes)
    connection(sock).send([b"abc", b"", memoryview(b"defg")], timeout_s=5)
    assert sock.sent == b"abcdefg"


def test_more_buffers_than_the_kernel_takes_at_once_are_sent() -> None:
    sock = PlayedSocket()
    connection(sock).send([b"x"] * 3000, timeout_s=5)
    assert len(sock.sent) == 3000


def test_a_peer_that_does_not_read_runs_out_of_time() -> None:
    sock = PlayedSocket(takes=[2, -1])
    with pytest.raises(RequestTimeout) as raised:
        connection(sock).send([b"abc"], timeout_s=5)
    assert str(raised.value) == "192.0.2.1:5000 did not read our bytes within 5 s; the connection was closed"
    assert sock.closed


def test_an_exchange_returns_the_reply() -> None:
    sock = PlayedSocket(b"\0\0\0\x02ok")
    assert connection(sock).exchange([b"\0\0\0\0"], timeout_s=5) == b"ok"


def test_an_exchange_that_ends_without_a_reply_closes() -> None:
    sock = PlayedSocket()
    with pytest.raises(ConnectionLost) as raised:
        connection(sock).exchange([b"\0\0\0\0"], timeout_s=5)
    assert str(raised.value) == "192.0.2.1:5000 closed the connection before it answered; see its log"
    assert sock.closed


def test_an_exchange_that_ends_inside_of_the_reply_closes() -> None:
    sock = PlayedSocket(b"\0\0\0\x02o")
    with pytest.raises(ConnectionLost) as raised:
        connection(sock).exchange([b"\0\0\0\0"], timeout_s=5)
    assert str(raised.value) == (
        "192.0.2.1:5000 was lost in the middle of its reply: stream ended after 1 of 2 payload bytes"
    )
    assert sock.closed


def test_an_interrupted_exchange_closes() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    sock = PlayedSocket(interrupt)
    with pytest.raises(KeyboardInterrupt):
        connection(sock).exchange([b"\0\0\0\0"], timeout_s=5)
    assert sock.closed


def test_bytes_are_counted() -> None:
    sock = PlayedSocket(b"\0\0\0\x02ok")
    ours = connection(sock)
    ours.exchange([b"\0\0\0\x01x"], timeout_s=5)
    assert (ours.bytes_sent, ours.bytes_received) == (5, 6)
