"""How long a host that sent wrong tokens waits before its next one is looked at."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["TokenGuard"]

# A person mistypes; a program that is configured wrongly retries a few times.
_FREE_GUESSES = 3
_FIRST_DELAY_S = 0.1
# Long enough that a guess each time is hopeless, short enough that the owner of the token gets in from the
# same host.
_MAX_DELAY_S = 5.0
# After so long without a wrong token a host is trusted as any other.
_FORGET_S = 300.0
_MAX_HOSTS = 1024


class TokenGuard:
    """Counts wrong tokens of each host. For any thread.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # wrong tokens, time of the last one

    def delay_s(self, host: str) -> float:
        """Return the seconds to wait before a token of this host is looked at."""
        with self._lock:
            guesses, last = self._hosts.get(host, (0, 0.0))
        if guesses < _FREE_GUESSES or self._clock() - last > _FORGET_S:
            return 0.0
        return float(min(_FIRST_DELAY_S * 2.0 ** (guesses - _FREE_GUESSES), _MAX_DELAY_S))

    def failed(self, host: str) -> None:
        """Count a wrong token."""
        with self._lock:
            guesses, last = self._hosts.pop(host, (0, 0.0))
            now = self._clock()
            self._hosts[host] = (1 if now - last > _FORGET_S else min(guesses + 1, 64), now)
            while len(self._hosts) > _MAX_HOSTS:
                self._hosts.popitem(last=False)

    def succeeded(self, host: str) -> None:
        """Forget the wrong tokens of a host."""
        with self._lock:
            self._hosts.pop(host, None)
