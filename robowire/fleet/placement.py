"""Placement: cores and GPUs for a service, a service for a client, the services to remove. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Load", "least_loaded", "least_used", "to_remove"]

T = TypeVar("T", bound=object)


def least_used(resources: Sequence[T], used: Iterable[T], count: int) -> tuple[T, ...]:
    """Return the ``count`` resources that are used least often; all, if there are fewer.

    Equal ones are taken in their order, so that services which start one after the other take turns.

    Args:
        resources: Cores or GPUs.
        used: What the other services have, one entry for each use.
        count: Number of resources wanted.
    """
    uses = Counter(used)
    return tuple(sorted(resources, key=lambda resource: uses[resource])[:count])


# Seconds from the redirection of a client until the service reports its session.
ARRIVAL_S = 2.0


@dataclass
class Load:
    """Load of a service: what it reported last, and the clients that were redirected to it since.

    Attributes:
        sessions: Simulators in use, or clients if there are more, each of which will select one.
        max_sessions: Limit of the service.
    """

    sessions: int = 0
    max_sessions: int = 1
    _expected: int = 0
    _until: float = float("-inf")

    def count(self, now: float) -> int:
        """Return the number of sessions, including clients that were redirected and have not arrived yet."""
        return max(self.sessions, self._expected) if now < self._until else self.sessions

    def share(self, now: float) -> float:
        """Return the share of its capacity that is in use, 0 to 1."""
        return self.count(now) / self.max_sessions

    def see(self, sessions: int, max_sessions: int) -> None:
        """Record what the service reports."""
        self.sessions, self.max_sessions = sessions, max_sessions
        if sessions >= self._expected:  # all have arrived, and may leave again
            self._until = float("-inf")

    def send(self, now: float) -> None:
        """Record that a client is redirected to it."""
        # Not added to later reports: then a client that arrived would count twice.
        self._expected, self._until = self.count(now) + 1, now + ARRIVAL_S


def least_loaded(loads: Sequence[Load], now: float) -> int | None:
    """Return the index of the service for the next client; ``None`` if there is no service."""
    return min(range(len(loads)), key=lambda index: loads[index].share(now), default=None)


def to_remove(serving: Sequence[bool], loads: Sequence[Load], count: int, now: float) -> list[int]:
    """Return the indices of the services to end: those that do not serve, then those that are used least.

    Of equal ones the newest goes first.
    """
    order = sorted(range(len(loads)), key=lambda index: (serving[index], loads[index].count(now), -index))
    return order[:count]
