"""A selector for an event loop that serves some sockets itself, in the loop's thread.

For each event asyncio looks up a key, queues a callback and runs it in a context, which for a short request
is a large part of its work. Here a socket may be lent: what comes for it is passed on as soon as the system
reports it, before the loop goes on. All other sockets, and every timer and callback, are the loop's as ever.
"""

from __future__ import annotations

import select
import selectors
import time
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["DirectSelector", "Served"]


class Served(Protocol):
    """What has a socket that is lent."""

    def go_on(self) -> bool:
        """Receive and answer what has come; must not wait, or raise.

        Returns:
            Whether the loop may go on waiting: ``False`` after anything that scheduled a callback or a timer.
        """
        ...


class DirectSelector(selectors.BaseSelector):
    """The selector of one event loop; used by the loop's thread only."""

    # Other systems' selectors can't be polled inside of another one in one system call.
    available = hasattr(selectors, "EpollSelector")

    def __init__(self) -> None:
        self._inner = selectors.EpollSelector()
        self._inner_number = self._inner.fileno()
        self._epoll = select.epoll()  # of the sockets that are lent, and of the other selector
        self._epoll.register(self._inner_number, select.EPOLLIN)
        self._served: dict[int, Served] = {}

    def lend(self, number: int, served: Served) -> None:
        """Serve a socket, which must not be registered, until :meth:`take_back`.

        Args:
            number: Its descriptor.
            served: Called when something has come.
        """
        self._epoll.register(number, select.EPOLLIN)
        self._served[number] = served

    def take_back(self, number: int) -> None:
        """Serve a socket no longer. Its descriptor must be open still."""
        del self._served[number]
        self._epoll.unregister(number)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready of the loop's own sockets; serve those that are lent meanwhile."""
        served = self._served
        if not served or (timeout is not None and timeout <= 0):
            return self._select_once(timeout)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            events = self._epoll.poll(timeout)
            inner, may_wait = False, bool(events)
            for number, _ in events:
                connection = served.get(number)
                if connection is not None:
                    may_wait = connection.go_on() and may_wait
                elif number == self._inner_number:
                    inner = True
            if inner:
                return self._inner.select(0)
            if not may_wait:
                return []
            if until is not None:
                timeout = until - time.monotonic()
                if timeout <= 0:
                    return []

    def _select_once(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        for number, _ in self._epoll.poll(0) if self._served else ():
            connection = self._served.get(number)
            if connection is not None:
                connection.go_on()
        return self._inner.select(timeout)

    # -- of the other selector -------------------------------------------------------------------------------

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a socket for the loop."""
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch it no longer."""
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch it for other events."""
        return self._inner.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return how a socket is watched."""
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return all that is watched for the loop."""
        return self._inner.get_map()

    def close(self) -> None:
        """Free the descriptors."""
        self._epoll.close()
        self._inner.close()
