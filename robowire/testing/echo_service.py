"""A service for tests of frontends: it answers a request with its own parameters."""

from __future__ import annotations

import threading
from typing import Any

from robowire.serving.metrics import Metrics
from robowire.serving.service import Service
from robowire.serving.sessions import Peer, Session
from robowire.wire.messages import Request, ok

__all__ = ["EchoService"]


class EchoService(Service[Session]):
    """Answers every request by ``ok`` and the request's parameters.

    The method ``"bug"`` fails as a bug of ours would; ``"much"`` is answered with 32 MiB.

    Attributes:
        opened: Sessions so far.
        closed: Set when a session was closed.
    """

    kind = "echo"

    def __init__(self, *, token: str | None = None, metrics: Metrics | None = None) -> None:
        super().__init__(token=token, metrics=metrics)
        self.opened: list[Session] = []
        self.closed = threading.Event()

    def describe(self) -> str:
        """Return one line for a person."""
        return "an echo"

    def info(self, session: Session | None = None) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` report."""
        return {"server": self.kind, "session": None if session is None else session.id}

    def close_session(self, session: Session) -> None:
        """Note that it was closed."""
        super().close_session(session)
        self.closed.set()

    def _make_session(self, number: int, peer: Peer, *, authenticated: bool) -> Session:
        self.opened.append(Session(number, peer, authenticated))
        return self.opened[-1]

    def _execute(self, session: Session, request: Request) -> dict[str, Any]:
        if request.method == "bug":
            raise ZeroDivisionError
        return ok(much=bytes(1 << 25)) if request.method == "much" else ok(**request.params)
