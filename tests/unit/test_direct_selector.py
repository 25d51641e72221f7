"""Sockets that are lent are served before the loop goes on; its own sockets and timers are as ever."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from robowire.frontends.direct_selector import DirectSelector

pytestmark = pytest.mark.skipif(not DirectSelector.available, reason="this system has no epoll")


class Echo:
    """Send back what comes, a byte at a time."""

    def __init__(self, sock: socket.socket, *, schedules: bool = False) -> None:
        self.sock, self.schedules, self.seen = sock, schedules, b""

    def go_on(self) -> bool:
        self.seen += (came := self.sock.recv(1))
        self.sock.send(came)
        return not self.schedules


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(5)
        yield ours, theirs


def test_what_is_lent_is_served_until_the_time_is_up(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with closing(DirectSelector()) as selector:
        echo = Echo(ours)
        selector.lend(ours.fileno(), echo)
        theirs.send(b"several")
        assert selector.select(0.01) == []
        assert (echo.seen, theirs.recv(100)) == (b"several", b"several")
        theirs.send(b"x")
        assert selector.select(0) == []
        assert echo.seen == b"severalx"
        selector.take_back(ours.fileno())
        theirs.send(b"y")
        assert selector.select(0) == []
        assert echo.seen == b"severalx"


def test_the_loop_goes_on_when_something_was_scheduled(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with closing(DirectSelector()) as selector:
        echo = Echo(ours, schedules=True)
        selector.lend(ours.fileno(), echo)
        theirs.send(b"several")
        assert selector.select(None) == []
        assert echo.seen == b"s"


def test_a_socket_that_always_has_something_keeps_no_other_waiting(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair

    class Endless(Echo):
        def go_on(self) -> bool:
            theirs.send(self.sock.recv(1))
            return True

    other, its_peer = socket.socketpair()
    with closing(DirectSelector()) as selector, other, its_peer:
        selector.register(other, selectors.EVENT_READ, "data")
        selector.lend(ours.fileno(), Endless(ours))
        theirs.send(b"x")
        assert selector.select(0.02) == []
        its_peer.send(b"x")
        ((key, events),) = selector.select(None)
        assert (key.fileobj, key.data, events) == (other, "data", selectors.EVENT_READ)
        assert selector.get_key(other) == key
        assert list(selector.get_map().values()) == [key]
        selector.modify(other, selectors.EVENT_WRITE, "more")
        assert selector.select(1)[0][1] == selectors.EVENT_WRITE
        selector.unregister(other)
        assert selector.select(0.001) == []


def test_timers_of_a_loop_are_on_time_while_a_socket_is_served(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    selector = DirectSelector()
    loop = asyncio.SelectorEventLoop(selector)

    async def sleep() -> float:
        selector.lend(ours.fileno(), Echo(ours))
        begun = loop.time()
        for _ in range(5):
            theirs.send(b"x")
            await asyncio.sleep(0.01)
        selector.take_back(ours.fileno())
        return loop.time() - begun

    try:
        assert 0.05 <= loop.run_until_complete(sleep()) < 1
        assert theirs.recv(100) == b"xxxxx"
    finally:
        loop.close()
