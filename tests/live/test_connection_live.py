"""A connection over real sockets of the loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from robowire.errors import ConnectFailed
from robowire.transport.connection import Connection
from robowire.wire.pickle.writer import encode_frame


@contextmanager
def pair() -> Iterator[tuple[Connection, Connection]]:
    """Return both ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = Connection.connect("127.0.0.1", listener.getsockname()[1], timeout_s=5)
        theirs = Connection(listener.accept()[0])
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


def test_a_payload_larger_than_every_socket_buffer_arrives() -> None:
    payload = bytes(range(256)) * 40_000
    with pair() as (ours, theirs):
        sender = threading.Thread(target=ours.send, args=(encode_frame(payload),), kwargs={"timeout_s": 20})
        sender.start()
        received = theirs.receive(wait_s=20, finish_s=20)
        sender.join()
    assert received is not None
    assert payload in received


def test_stop_reading_ends_a_blocked_receive() -> None:
    with pair() as (ours, _):
        stopper = threading.Thread(target=ours.stop_reading)
        stopper.start()
        assert ours.receive(wait_s=20, finish_s=20) is None
        stopper.join()


def test_the_end_of_the_stream_shows_once_all_before_it_was_read() -> None:
    with pair() as (ours, theirs):
        assert (ours.wait(0), ours.ended()) == (False, False)
        theirs.send(encode_frame("RESET"), timeout_s=5)
        theirs.close()
        assert ours.wait(5)
        assert not ours.ended()
        assert ours.receive(wait_s=5, finish_s=5)
        assert ours.wait(5)
        assert ours.ended()


def test_stop_reading_after_the_end_is_no_error() -> None:
    with pair() as (ours, _):
        ours.close()
        ours.stop_reading()


def test_where_nothing_listens_nothing_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed) as raised:
        Connection.connect("127.0.0.1", port, timeout_s=5)
    assert str(raised.value) == f"nothing listens on 127.0.0.1:{port}: is the server running there?"


def test_a_pair_of_unix_sockets_carries_frames_too() -> None:
    one, other = (Connection(sock) for sock in socket.socketpair())
    one.send(encode_frame("RESET"), timeout_s=5)
    received = other.receive(wait_s=5, finish_s=5)
    one.close()
    other.close()
    assert received == b"\x80\x05\x8c\x05RESET\x94."
    assert other.peer == "the other process"
