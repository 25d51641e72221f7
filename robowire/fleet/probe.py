"""How one service is, asked again and again: over the wire, as its clients ask it, and with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import RobowireError
from robowire.fleet.options import FleetOptions

__all__ = ["Probe", "Seen"]


@dataclass(frozen=True)
class Seen:
    """What a look at a service showed.

    Attributes:
        failure: Why it did not answer; empty where it did, and only then the rest counts.
        sessions: Simulators in use, or clients if there are more.
        max_sessions: Its limit.
        memory_mb: Of it and its simulators.
    """

    failure: str = ""
    sessions: int = 0
    max_sessions: int = 1
    memory_mb: float = 0.0


class Probe:
    """Look at a service at intervals, in a thread of its own, until :meth:`close`.

    Args:
        address: Of the service.
        options: How often, and how long it may take.
        token: Shown to the service, where it wants one.
        memory_mb: Returns its memory.
        on_seen: Called after each look, in that thread.
    """

    def __init__(
        self,
        address: tuple[str, int],
        options: FleetOptions,
        *,
        token: str | None,
        memory_mb: Callable[[], float],
        on_seen: Callable[[], None],
    ) -> None:
        self._options = options
        self._memory_mb = memory_mb
        self._on_seen = on_seen
        self._seen: Seen | None = None
        self._closing = threading.Event()
        self._client = SimulatorClient(
            *address,
            connect_timeout_s=options.health_timeout_s,
            timeout_s=options.health_timeout_s,
            token=token,
            reconnect_s=0,
        )
        self._thread = threading.Thread(target=self._run, name=f"probe of {address[1]}", daemon=True)
        self._thread.start()

    def take(self) -> Seen | None:
        """Return what the last look showed, once."""
        seen, self._seen = self._seen, None
        return seen

    def close(self) -> None:
        """End the thread. It may have to wait for an answer, ``health_timeout_s`` at most."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._seen = self._look()
            except RobowireError as exc:
                self._seen = Seen(failure=str(exc))
            self._on_seen()
            self._closing.wait(self._options.health_interval_s)
        self._client.disconnect()

    def _look(self) -> Seen:
        self._client.connect()
        stats = self._client.stats()
        return Seen(
            # One of its clients are we.
            sessions=max(stats["simulator_sessions"], stats["sessions_open"] - 1),
            max_sessions=stats["max_sessions"],
            memory_mb=self._memory_mb(),
        )
