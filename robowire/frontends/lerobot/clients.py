"""The clients of the LeRobot wire: a session for each connection, and the observation that waits in it.

The wire has no session and no close. A connection's address is all that tells clients apart, and a client
that is gone shows only by its calls, which end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from robowire.errors import Overloaded
from robowire.frontends.lerobot.codec import TimedObservation
from robowire.frontends.lerobot.features import RobotFeatures
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.serving.sessions import Peer

__all__ = ["Client", "Clients"]

logger = logging.getLogger(__name__)

# Timesteps grow, so only the latest can come again.
_REMEMBERED = 1024

# LeRobot's client always waits for actions. One that does not, for so long, may yield its place to another.
_IDLE_S = 10.0


class Client:
    """One connection of the wire.

    Args:
        service: Whose session it has.
        address: The client's ``host:port``.

    Attributes:
        session: Its session.
        features: What its instructions announced; ``None`` before they came.
        actions_per_chunk: Most actions of a chunk that it takes.
        receiving: Held while an observation is received.
        inferring: Held while a request for actions is in hand.
        calls: Calls in hand; guarded by the table's lock.
        last_call: When the last one ended, on the monotonic clock; guarded by the same lock.
        left: Whether a call ended because the client went away.
    """

    def __init__(self, service: PolicyService, address: str) -> None:
        self.features: RobotFeatures | None = None
        self.actions_per_chunk = 1
        self.receiving = threading.Lock()
        self.inferring = threading.Lock()
        self.calls = 0
        self.opened = self.last_call = time.monotonic()
        self.left = False
        self._changed = threading.Condition()  # guards the next three
        self._waiting: TimedObservation | None = None
        self._predicted: dict[int, None] = {}
        self._stopped = False
        self._context: Any = None
        self.session: PolicySession = service.open_session(
            Peer(address, has_left=self._has_left, wire="lerobot")
        )
        self.session.authenticated = True  # each call was, before it came here

    def reset(self) -> None:
        """Forget the observation that waits and the timesteps that were predicted."""
        with self._changed:
            self._waiting = None
            self._predicted.clear()

    def put(self, observation: TimedObservation) -> bool:
        """Let an observation wait in the place of an older one, and return whether it does.

        One whose timestep was predicted already is dropped, unless it must go.
        """
        with self._changed:
            if observation.timestep in self._predicted and not observation.must_go:
                return False
            self._waiting = observation
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float, context: Any) -> TimedObservation | None:
        """Return the observation that waits, or the next one; ``None`` where none comes in time.

        Args:
            timeout_s: Seconds to wait.
            context: Context of the call; the wait ends where the call does.
        """
        if not context.add_callback(self._wake):
            return None
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting is not None or self._stopped or not context.is_active(), timeout_s
            )
            if not context.is_active():
                self.left = not self._stopped
                return None
            observation, self._waiting = self._waiting, None
            if observation is not None:
                self._predicted[observation.timestep] = None
                if len(self._predicted) > _REMEMBERED:
                    del self._predicted[next(iter(self._predicted))]
            self._context = context
            return observation

    def stop(self) -> None:
        """End the wait for an observation."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _has_left(self) -> bool:
        return self._context is not None and not self._context.is_active()


class Clients:
    """The clients of one frontend, with a place for each.

    Args:
        service: Whose sessions they have.
        max_clients: Number of places.
        session_timeout_s: Seconds without a call after which a client is forgotten.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        service: PolicyService,
        *,
        max_clients: int,
        session_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._max_clients = max_clients
        self._session_timeout_s = session_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._clients)

    def begin_call(self, address: str) -> Client:
        """Return the client of a call that begins, a new one for a new connection.

        Raises:
            Overloaded: Every place is taken, by clients that are at work.
        """
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                if len(self._clients) >= self._max_clients:
                    self._make_place()
                client = self._clients[address] = Client(self._service, address)
                if self._closed:
                    client.stop()
            client.calls += 1
            client.left = False
            return client

    def end_call(self, client: Client) -> None:
        """Note the end of a call."""
        with self._lock:
            client.calls -= 1
            client.last_call = self._clock()

    def forget_idle(self) -> None:
        """Close the sessions of clients that went away, or have not called for a long time."""
        with self._lock:
            now = self._clock()
            for address, client in list(self._clients.items()):
                patience = _IDLE_S if client.left else self._session_timeout_s
                if not client.calls and now - client.last_call > min(patience, self._session_timeout_s):
                    self._close(address, "it went away" if client.left else "it was idle")

    def stop(self) -> None:
        """End every wait for an observation, from now on too."""
        with self._lock:
            self._closed = True
            for client in self._clients.values():
                client.stop()

    def close(self) -> None:
        """Close every session."""
        with self._lock:
            for address in list(self._clients):
                self._close(address, "the server stops")

    def _make_place(self) -> None:
        idle = [
            (client.last_call, address)
            for address, client in self._clients.items()
            if not client.calls and self._clock() - client.last_call > _IDLE_S
        ]
        if not idle:
            self._service.metrics.session_refused()
            raise Overloaded(f"all {self._max_clients} connections are taken; try again later")
        self._close(min(idle)[1], "its place was needed")

    def _close(self, address: str, reason: str) -> None:
        client = self._clients.pop(address)
        self._service.close_session(client.session)
        seconds = time.monotonic() - client.opened
        logger.info(
            "%s closed (%d requests, %.0f s): %s", client.session, client.session.requests, seconds, reason
        )
