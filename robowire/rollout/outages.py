"""Outages of a server: a request is repeated until it is answered, for a limited time."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, TypeVar

from robowire.errors import ConnectFailed, ConnectionLost, Overloaded, ShuttingDown

__all__ = ["Outages"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Errors that another server at the same address, or the same one later, may not give. A timeout is not among
# these: the server is there, and at work.
_AWAY = (ConnectFailed, ConnectionLost, Overloaded, ShuttingDown)

# Pause before each later attempt: short compared with the seconds in which a server loads its model.
_PAUSE_S = 0.25


class Outages:
    """Repeats requests while a server is away.

    Args:
        patience_s: Seconds that it may be away, each time; 0 means one attempt.
        stopping: Ends every wait once it is set.
        clock: Seconds, monotonic.
        server: Name of the server in log lines.

    Attributes:
        survived: How often the server was away and came back.
    """

    def __init__(
        self,
        patience_s: float,
        stopping: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
        server: str = "policy server",
    ) -> None:
        self._patience_s = patience_s
        self._stopping = stopping
        self._clock = clock
        self._server = server
        self.survived = 0

    def ask(self, send: Callable[[], T], *, must_be_reachable: bool = False) -> T:
        """Return what ``send`` returns.

        Args:
            send: Sends the request and returns its reply.
            must_be_reachable: Whether an address where nothing answers is an error at once. It is before the
                first episode, where the address may be wrong; not after another sign of a server there.

        Raises:
            RobowireError: What ``send`` raised: at once if it would be the same again, else after
                ``patience_s``.
        """
        since: float | None = None
        pause_s = 0.0  # a connection that was cut is made again at once
        while True:
            try:
                answer = send()
            except _AWAY as exc:
                if since is None:
                    if must_be_reachable and isinstance(exc, ConnectFailed):
                        raise
                    since = self._clock()
                    if self._patience_s:
                        _log.warning("waiting up to %g s for the %s: %s", self._patience_s, self._server, exc)
                if self._clock() - since >= self._patience_s or self._stopping.wait(pause_s):
                    raise
                pause_s = _PAUSE_S
                continue
            if since is not None:
                self.survived += 1
                _log.warning("the %s is back after %.1f s", self._server, self._clock() - since)
            return answer
