"""Replies over a real socket, cut into parts; one as long as the last is received in one call."""

from __future__ import annotations

import array
import fcntl
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from robowire.errors import ConnectionLost, FrameTooLarge, RequestTimeout
from robowire.transport.connection import Connection

LENGTHS = [48, 48, 48, 20, 48, 0, 48, 48, 100, 48, 1, 1]
REQUEST = b"\0\0\0\x01?"


class CountingSocket(socket.socket):
    """Counts the calls that receive."""

    calls = 0

    def recv_into(self, *args: Any) -> int:
        self.calls += 1
        return super().recv_into(*args)

    def recvmsg_into(self, *args: Any) -> Any:
        self.calls += 1
        return super().recvmsg_into(*args)


def frame(length: int, number: int = 0) -> bytes:
    return length.to_bytes(4, "big") + bytes([number]) * length


class Peer:
    """The server's end of a connection: answers a request with parts, each once the last was received."""

    def __init__(self, replies: Sequence[Sequence[bytes]]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = CountingSocket(socket.AF_INET)
            sock.connect(listener.getsockname())
            self.sock, _ = listener.accept()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ours = sock
        self.connection = Connection(sock)
        self._thread = threading.Thread(target=self._answer, args=(replies,))
        self._thread.start()

    def exchange(self, timeout_s: float = 10) -> bytes:
        return bytes(self.connection.exchange([REQUEST], timeout_s=timeout_s))

    def close(self) -> None:
        self.connection.close()
        self._thread.join()
        self.sock.close()

    def _answer(self, replies: Sequence[Sequence[bytes]]) -> None:
        for parts in replies:
            if self.sock.recv(len(REQUEST), socket.MSG_WAITALL) != REQUEST:
                return
            for part in parts:
                while unread(self.ours):
                    time.sleep(0)
                self.sock.sendall(part)
        self.sock.shutdown(socket.SHUT_WR)


def unread(sock: socket.socket) -> int:
    """Return the bytes that the kernel has for a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(*replies: Sequence[bytes]) -> Peer:
        peers.append(Peer(replies))
        return peers[-1]

    yield make
    for each in peers:
        each.close()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 24, 47, 51, 52, 200])
def test_replies_of_any_length_are_read_however_they_are_cut(peer: Callable[..., Peer], size: int) -> None:
    frames = [frame(length, number) for number, length in enumerate(LENGTHS)]
    ours = peer(*([data[at : at + size] for at in range(0, len(data), size)] for data in frames))
    for data in frames:
        assert ours.exchange() == data[4:]
    assert ours.connection.bytes_received == sum(map(len, frames))


def test_a_reply_as_long_as_the_last_one_takes_one_call(peer: Callable[..., Peer]) -> None:
    ours = peer(*[[frame(48)]] * 5)
    ours.exchange()
    before = ours.ours.calls
    for _ in range(4):
        ours.exchange()
    assert ours.ours.calls == before + 4


def test_what_comes_with_a_shorter_reply_is_read_later(peer: Callable[..., Peer]) -> None:
    # Two frames and the beginning of a third where one of 48 bytes was expected.
    ours = peer([frame(48, 1)], [frame(5, 2) + frame(6, 3) + frame(30, 4)[:20]], [frame(30, 4)[20:]], [])
    assert [ours.exchange() for _ in range(2)] == [b"\1" * 48, b"\2" * 5]
    assert ours.connection.wait(0)
    assert not ours.connection.ended()
    assert [ours.exchange() for _ in range(2)] == [b"\3" * 6, b"\4" * 30]


def test_memory_of_a_reply_is_its_callers(peer: Callable[..., Peer]) -> None:
    ours = peer(*([frame(48, number)] for number in range(4)))
    replies = [ours.connection.exchange([REQUEST], timeout_s=10) for _ in range(4)]
    assert [bytes(reply) for reply in replies] == [bytes([number]) * 48 for number in range(4)]


@pytest.mark.parametrize("kept", [0, 2, 4, 30])
def test_a_stream_that_ends_within_a_reply_is_lost(peer: Callable[..., Peer], kept: int) -> None:
    ours = peer([frame(48)], [frame(48)[:kept]])
    ours.exchange()
    with pytest.raises(ConnectionLost):
        ours.exchange()
    assert ours.ours.fileno() == -1


def test_a_longer_reply_is_limited(peer: Callable[..., Peer]) -> None:
    ours = peer([frame(48)], [b"\x40\0\0\0" + bytes(48)])
    ours.exchange()
    with pytest.raises(FrameTooLarge):
        ours.exchange()
    assert ours.ours.fileno() == -1


@pytest.mark.parametrize("parts", [[], [frame(48)[:3]], [frame(48)[:20]]])
def test_a_reply_that_is_not_complete_in_time_ends_the_wait(
    peer: Callable[..., Peer], parts: list[bytes]
) -> None:
    ours = peer([frame(48)], parts, [], [])
    ours.exchange()
    begun = time.monotonic()
    # The peer waits for another request, and keeps the stream open.
    with pytest.raises(RequestTimeout, match="did not finish a frame" if parts else "sent nothing for 0.2 s"):
        ours.exchange(timeout_s=0.2)
    assert time.monotonic() - begun < 2


def test_a_wait_for_a_reply_is_ended_by_another_thread(peer: Callable[..., Peer]) -> None:
    ours = peer([frame(48)], [], [])
    ours.exchange()
    timer = threading.Timer(0.1, ours.connection.stop_reading)
    timer.start()
    with pytest.raises(ConnectionLost):
        ours.exchange()
    timer.join()
