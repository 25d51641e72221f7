"""A policy server that goes away and comes back: questions are asked again until it does, for a while."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, TypeVar

from robowire.errors import ConnectFailed, ConnectionLost, Overloaded, ShuttingDown

__all__ = ["Outages"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# What another server at the same address, or the same one later, may answer. A reply that does not come in
# time is not among these: the server is there, and at work.
_AWAY = (ConnectFailed, ConnectionLost, Overloaded, ShuttingDown)

# Between two later questions: not felt beside the seconds in which a server loads its model.
_PAUSE_S = 0.25


class Outages:
    """Asks again while the policy server is away.

    Args:
        patience_s: Seconds that it may be away, each time; 0 asks once.
        stopping: Nobody waits for an answer any more once this is set; waits on it between questions.
        clock: Seconds, monotonic.

    Attributes:
        survived: How often the server was away and came back.
    """

    def __init__(
        self,
        patience_s: float,
        stopping: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_s = patience_s
        self._stopping = stopping
        self._clock = clock
        self.survived = 0

    def ask(self, question: Callable[[], T]) -> T:
        """Return the answer.

        Raises:
            RobowireError: What the question raised: at once if it would be the same again, else after
                ``patience_s``.
        """
        since: float | None = None
        pause_s = 0.0  # a connection that was cut is made again at once
        while True:
            try:
                answer = question()
            except _AWAY as exc:
                if since is None:
                    since = self._clock()
                    if self._patience_s:
                        _log.warning("waiting up to %g s for the policy server: %s", self._patience_s, exc)
                if self._clock() - since >= self._patience_s or self._stopping.wait(pause_s):
                    raise
                pause_s = _PAUSE_S
                continue
            if since is not None:
                self.survived += 1
                _log.warning("the policy server is back after %.1f s", self._clock() - since)
            return answer
