"""One thread for the connections that ask again at once: it receives, answers and sends, and never waits.

Each connection has a thread of its own, which greets, negotiates, and waits for those who are slow. With many
clients most of a request's cost would be the hand-over between these threads and the interpreter's lock. So a
thread lends its connection while requests come quickly and are of the usual kind, and gets it back, with what
was received or is to be sent, as soon as anything else comes: then it does what it always did. Nothing of
timeouts, limits and errors is here.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Polled", "Poller"]

logger = logging.getLogger(__name__)

# How often it looks for connections that have become slow.
_LOOK_S = 0.25

# Readable, or the other side ended its half.
_EVENTS = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLRDHUP", 0)


class Polled(Protocol):
    """A connection, as the poller sees it. Its methods are called in the poller's thread and do not wait.

    Attributes:
        pending: Whether a request is in hand, and nothing is read until it is answered.
    """

    pending: bool

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        ...

    def go_on(self) -> bool:
        """Receive, answer and send what is possible; return whether the connection stays with the poller.

        Called when something has come, and when a request that was pending is answered.
        """
        ...

    def is_slow(self, now: float) -> bool:
        """Return whether its own thread is to wait for what comes next."""
        ...

    def fail(self, error: Exception) -> None:
        """Note an error that :meth:`go_on` raised: its own thread will raise it."""
        ...


class Poller:
    """The thread, which starts with the first connection; :meth:`open` comes before that.

    Args:
        name: Of its frontend, for the name of the thread.

    Attributes:
        memory: Shared by the connections that are lent, see :meth:`PayloadMemory.share`.
    """

    # What other systems have in place of epoll and eventfd costs more than the threads.
    available = sys.platform == "linux"

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # held while the thread starts or is ended
        # Held by the thread that serves connections now: its own, or one that has the answer to a request.
        self._working = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = True  # not open
        self.memory: list[list[bytearray]] = [[]]
        self._gates: dict[Polled, threading.Lock] = {}  # of connections that are lent
        self._served: dict[int, Polled] = {}  # by descriptor
        self._unwatched: set[int] = set()  # of these: the epoll knows them no more
        self._answered: deque[Polled] = deque()
        self._woken = False

    def open(self) -> None:
        """Take the descriptors that it needs: once, before :meth:`serve`."""
        self._epoll, self._wake = select.epoll(), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._ended = False

    def serve(self, connection: Polled) -> None:
        """Serve a connection, and return when it belongs to the calling thread again."""
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if self._ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"{self._name} poller", daemon=True)
                self._thread.start()
            number = connection.fileno()
            self._gates[connection] = gate
            self._served[number] = connection
            self._epoll.register(number, _EVENTS)
        gate.acquire()

    def answered(self, connections: Sequence[Polled], *, here: bool = False) -> None:
        """Note that the pending requests of connections can be answered now. Any thread may call it.

        Args:
            connections: Lent to this poller.
            here: Whether the calling thread may encode and send the replies, which spares the switches
                between it and this poller's thread.
        """
        if here and self._working.acquire(blocking=False):
            try:
                for connection in connections:
                    if connection in self._gates:
                        self._go_on(connection)
            finally:
                self._working.release()
            return
        self._answered.extend(connections)
        if not self._woken:  # one system call for all that a batch answers
            self._woken = True
            with self._lock:
                if not self._ended:
                    os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread; every connection goes back to its own. In any state."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._working:
            for connection in list(self._gates):
                self._give_back(connection)
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        poll, looked_at = self._epoll.poll, time.monotonic()
        while not self._ended:
            events = poll(_LOOK_S)
            with self._working:
                self._serve_events(events)
                now = time.monotonic()
                if now - looked_at >= _LOOK_S:
                    looked_at = now
                    self._give_back_slow(now)

    def _serve_events(self, events: list[tuple[int, int]]) -> None:
        served = self._served
        for number, _ in events:
            connection = served.get(number)
            if connection is not None:
                if connection.pending:  # it sends more, or left: both are looked at after its answer
                    self._unwatched.add(number)
                    self._epoll.unregister(number)
                else:
                    self._go_on(connection)
            elif number == self._wake:
                os.eventfd_read(self._wake)
        if self._woken:
            self._woken = False  # first: what is appended from now on wakes again
            while self._answered:
                connection = self._answered.popleft()
                if connection in self._gates:
                    self._go_on(connection)

    def _go_on(self, connection: Polled) -> None:
        try:
            stays = connection.go_on()
        except Exception as exc:  # the top of what a connection does in this thread
            connection.fail(exc)
            stays = False
        if not stays:
            self._give_back(connection)
        elif self._unwatched and not connection.pending:
            number = connection.fileno()
            if number in self._unwatched:
                self._unwatched.discard(number)
                self._epoll.register(number, _EVENTS)

    def _give_back_slow(self, now: float) -> None:
        for connection in list(self._served.values()):
            if not connection.pending and connection.is_slow(now):
                self._give_back(connection)

    def _give_back(self, connection: Polled) -> None:
        number = connection.fileno()
        del self._served[number]
        if number in self._unwatched:
            self._unwatched.discard(number)
        else:
            self._epoll.unregister(number)
        self._gates.pop(connection).release()
