"""Sessions of a wire without connections: by the name that each client sends with its requests."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from robowire.errors import Overloaded
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.serving.sessions import Peer

__all__ = ["ClientSessions"]


@dataclass(eq=False)
class _Client:
    """A client's session.

    Attributes:
        session: Its session; used under ``lock``, by one request at a time.
        episode: Name of its running episode; ``None`` where it does not say.
        borrowed: Requests that have it, or wait for it; changed under the lock of all sessions.
        used_at: Seconds, when the last one gave it back.
    """

    session: PolicySession
    episode: str | None = None
    borrowed: int = 0
    used_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ClientSessions:
    """Sessions of clients, bounded in number. For any thread.

    Args:
        service: Service that has the sessions.
        max_sessions: Clients at one time; with the next one, the session that was idle longest is closed.
        timeout_s: Seconds without a request after which a session is closed, when another request comes.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        service: PolicyService,
        *,
        max_sessions: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._max_sessions = max_sessions
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # the one used last is last

    @contextmanager
    def borrow(self, client: str | None, episode: str | None, peer: Peer) -> Iterator[PolicySession]:
        """Lend the session of a client to one authorised request. Requests of one client take turns.

        Args:
            client: Name of the client; ``None`` for a session of this request only.
            episode: Name of its episode; another one than last time begins a new episode.
            peer: Where the request came from.

        Raises:
            Overloaded: Every session is in use.
        """
        if client is None:
            session = self._open(peer)
            try:
                yield session
            finally:
                self._service.close_session(session)
            return
        entry = self._take(client, peer)
        try:
            with entry.lock:
                entry.session.peer = peer
                if episode != entry.episode and episode is not None:
                    entry.session.episode.clear()
                    entry.episode = episode
                yield entry.session
        finally:
            with self._lock:
                entry.borrowed -= 1
                entry.used_at = self._clock()

    def close(self) -> None:
        """Close every session; no request has one."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            self._service.close_session(client.session)

    def __len__(self) -> int:
        return len(self._clients)

    def _take(self, name: str, peer: Peer) -> _Client:
        with self._lock:
            closed = self._expired()
            entry = self._clients.get(name)
            if entry is None and len(self._clients) >= self._max_sessions:
                idle = next((key for key, client in self._clients.items() if not client.borrowed), None)
                if idle is None:
                    raise Overloaded(f"all {self._max_sessions} sessions are in use; try again later")
                closed.append(self._clients.pop(idle))
            if entry is None:
                entry = self._clients[name] = _Client(self._open(peer))
            entry.borrowed += 1
            self._clients.move_to_end(name)
        for client in closed:
            self._service.close_session(client.session)
        return entry

    def _expired(self) -> list[_Client]:
        """Take out the sessions that nobody used for too long."""
        before = self._clock() - self._timeout_s
        names = [
            key for key, client in self._clients.items() if not client.borrowed and client.used_at < before
        ]
        return [self._clients.pop(name) for name in names]

    def _open(self, peer: Peer) -> PolicySession:
        session = self._service.open_session(peer)
        session.authenticated = True  # each request shows the token, where there is one
        session.said_hello = True  # clients of this wire understand typed errors
        return session
