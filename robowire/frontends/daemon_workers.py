"""Threads for the blocking calls of an event loop, which the interpreter does not wait for when it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["DaemonWorkers"]

T = TypeVar("T")


class DaemonWorkers:
    """As many threads as calls were running at one time. Used by one event loop.

    ``ThreadPoolExecutor`` makes the interpreter wait for each of its threads at the end: a policy that hangs
    in one would keep a server that was told to stop.

    Args:
        name: Of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # guards the next two
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a call gives, or raise what it raises; the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._threads.append(thread)
        self._calls.put((loop, future, function, arguments))
        del arguments  # a message is freed when it was read
        return await future

    def end(self, timeout_s: float) -> int:
        """End the threads, and return how many are still at work after the timeout."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return sum(thread.is_alive() for thread in threads)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, function, arguments = call
            del call
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as exc:
                error = exc
            del arguments
            with self._lock:
                self._idle += 1
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, result, error)
            del future, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
