"""Who gets what: cores and GPUs for a service, a service for a client, the service to take away. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Load", "least_loaded", "least_used", "to_take_away"]

T = TypeVar("T", bound=object)


def least_used(things: Sequence[T], used: Iterable[T], count: int) -> tuple[T, ...]:
    """Return ``count`` of the things, those that are used least often first; all, where there are fewer.

    Equal ones are taken in their order, so that services which are placed one after the other go round.

    Args:
        things: Cores or GPUs.
        used: What the other services have, one entry for each use.
        count: How many are wanted.
    """
    uses = Counter(used)
    return tuple(sorted(things, key=lambda thing: uses[thing])[:count])


# How long a client that was sent to a service may take to be seen there.
ARRIVAL_S = 2.0


@dataclass
class Load:
    """How much a service is used: what it said last, and who was sent to it since.

    Attributes:
        sessions: Simulators in use, or clients if there are more: each will want one.
        max_sessions: Its limit.
    """

    sessions: int = 0
    max_sessions: int = 1
    _expected: int = 0
    _until: float = float("-inf")

    def count(self, now: float) -> int:
        """Return the sessions there are, or will be when all have arrived that were sent."""
        return max(self.sessions, self._expected) if now < self._until else self.sessions

    def share(self, now: float) -> float:
        """Return how full it is: 1 when it has room for no other session."""
        return self.count(now) / self.max_sessions

    def see(self, sessions: int, max_sessions: int) -> None:
        """Take note of what it says."""
        self.sessions, self.max_sessions = sessions, max_sessions
        if sessions >= self._expected:  # all have arrived, and may leave again
            self._until = float("-inf")

    def send(self, now: float) -> None:
        """Take note that a client is sent to it."""
        # Not a sum with what is told later: then a client that arrived would count twice.
        self._expected, self._until = self.count(now) + 1, now + ARRIVAL_S


def least_loaded(loads: Sequence[Load], now: float) -> int | None:
    """Return the index of the service that the next client is sent to; ``None`` where there is none."""
    return min(range(len(loads)), key=lambda index: loads[index].share(now), default=None)


def to_take_away(serving: Sequence[bool], loads: Sequence[Load], count: int, now: float) -> list[int]:
    """Return the indices of the services to end: those that do not serve, then those that are used least.

    Of equal ones the newest goes first.
    """
    order = sorted(range(len(loads)), key=lambda index: (serving[index], loads[index].count(now), -index))
    return order[:count]
