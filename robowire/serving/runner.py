"""Start, drain and stop one service behind any number of frontends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from robowire.address import join_address
from robowire.serving.metrics import Metrics
from robowire.serving.service import Service

__all__ = ["Frontend", "Runner"]

logger = logging.getLogger(__name__)

T_co = TypeVar("T_co", bound=Service[Any], covariant=True)
R = TypeVar("R", bound="Runner[Any]")

# The end of the drain that is reserved for closing connections.
_CLOSING_S = 0.5


def _address(frontend: Frontend) -> str:
    host, port = frontend.address
    return join_address(host, port) if port else host


class Frontend(Protocol):
    """One wire of a service. Its port is bound when it is made, so that a port in use is found at once.

    Attributes:
        name: Name of the wire, as in the flag of its port: ``"tcp"``, ``"http"``.
        address: Host and port it listens on; the port is never 0.
    """

    name: str
    address: tuple[str, int]

    def describe(self) -> str:
        """Return where it listens, for a person; empty where the address says it all."""

    def start(self) -> None:
        """Answer clients, in threads of its own."""

    def stop_listening(self) -> None:
        """Accept no further connection; those that are open go on."""

    def drain(self, deadline: float) -> None:
        """Send the replies in hand and close every connection; give up at the deadline.

        Args:
            deadline: Time on the clock of :func:`time.monotonic`.
        """

    def close(self) -> None:
        """End every thread and free the port; the service is closed, so no request is in hand. Any state."""


class Runner(Generic[T_co]):
    """One service and its frontends, served as one.

    Use it as a context manager, which serves in threads and shuts down at the end, or call
    :meth:`serve_forever`.

    Args:
        service: What is served.
        frontends: Its wires, at least one.
        drain_s: Seconds that requests in hand have to finish when it is told to stop.

    Attributes:
        service: As given.
        frontends: As given.
    """

    def __init__(self, service: T_co, frontends: Sequence[Frontend], *, drain_s: float) -> None:
        self.service = service
        self.frontends = tuple(frontends)
        service.listening = tuple((frontend.name, _address(frontend)) for frontend in self.frontends)
        self._drain_s = drain_s
        # SimpleQueue.put is reentrant, which a signal handler needs; an Event's lock is not.
        self._stop_requests: SimpleQueue[None] = SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._close_when_told, name="runner", daemon=True)
        self._state = threading.Lock()  # held while it starts and while it is closed without having started
        self._closed = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first frontend."""
        return self.frontends[0].address

    @property
    def metrics(self) -> Metrics:
        """What the service counts."""
        return self.service.metrics

    def describe(self) -> list[str]:
        """Return lines for a person: what is served, and a line for each frontend that has one."""
        return [self.service.describe(), *filter(None, (frontend.describe() for frontend in self.frontends))]

    def start(self) -> None:
        """Serve in threads until :meth:`stop`, unless it was told to stop already."""
        with self._state:
            if self._thread.ident is not None or self._stopping:
                return
            self._thread.start()
            self.service.start()
            for frontend in self.frontends:
                frontend.start()

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`; then drain and return when nothing is left, or time is up."""
        try:
            self.start()
            if self._thread.ident is not None:
                self._thread.join()
        finally:
            self.shutdown()

    def stop(self) -> None:
        """Begin to shut down: finish requests in hand, refuse new ones. Returns at once.

        A signal handler may call it.
        """
        self._stopping = True
        self.service.begin_drain()
        self._stop_requests.put(None)

    def shutdown(self) -> None:
        """Stop, and return when nothing is left, or time is up."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join()
        with self._state:
            self._close()

    def _close_when_told(self) -> None:
        self._stop_requests.get()
        with self._state:  # after a start that is under way
            self._close()

    def _close(self) -> None:
        """Drain and close everything. The second time nothing is left to do."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + self._drain_s
        for frontend in self.frontends:
            frontend.stop_listening()
        self.service.wait_until_idle(deadline - _CLOSING_S)
        for frontend in self.frontends:
            frontend.drain(deadline)
        # Requests that did not finish fail now, and their threads end.
        self.service.close()
        for frontend in self.frontends:
            frontend.close()

    def __enter__(self: R) -> R:
        try:
            self.start()
        except BaseException:
            self.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
