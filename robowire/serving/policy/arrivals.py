"""Which clients are about to send their next observation, and whether it pays to wait for them.

No thread or clock in here: the time is passed in. A client in a closed loop sends its next observation some
time after its answer: the simulator's step, the network, its own work. Clients whose time is short fill one
batch if the device waits for them a moment; a robot that asks twice a second is never waited for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["WAIT_SHARE", "Arrivals"]

# Longest wait, as a share of the inference that has just been measured.
WAIT_SHARE = 0.5

# An arrival is expected this much later than the client's slow ones lately, and by the time that a thread
# takes to be scheduled.
_MARGIN, _MARGIN_S = 1.25, 0.0005

# A wait that is shorter than a thread takes to be scheduled is none: with a policy of microseconds nobody is
# looked up among hundreds of clients.
_LEAST_WAIT_S = 0.0001

# How much of a slow arrival is remembered at the next, and of a batch's duration at the next batch.
_KEEP = 0.8

# A client that has not come back for so long has left, or pauses.
_FORGET_S = 5.0


@dataclass
class _Client:
    answered_at: float | None = None  # None while its observation waits or is worked on
    gap_s: float | None = None  # from its answer to its next observation; None before its second one


class Arrivals:
    """Predict when active clients send their next observation.

    Args:
        share: Longest wait, as a share of the latest inference.
    """

    def __init__(self, share: float = WAIT_SHARE) -> None:
        self._share = share
        self._clients: dict[Hashable, _Client] = {}
        self._awaited: set[Hashable] = set()
        self._seconds = 0.0
        self._costs = _BatchCosts()

    @property
    def awaited(self) -> bool:
        """Whether a client is missing that :meth:`wait_for` named and that has not arrived since."""
        return bool(self._awaited)

    def stop_waiting(self) -> None:
        """Note that the batch begins without those that are still missing."""
        self._awaited.clear()

    def arrived(self, client: Hashable, now: float) -> None:
        """Note that a client has sent an observation."""
        self._awaited.discard(client)
        entry = self._clients.get(client)
        if entry is None:
            entry = self._clients[client] = _Client()
        if entry.answered_at is not None:
            gap_s = now - entry.answered_at
            entry.gap_s = gap_s if entry.gap_s is None else max(gap_s, _KEEP * entry.gap_s)
            entry.answered_at = None

    def answered(self, client: Hashable, now: float) -> None:
        """Note that a client was sent its answer."""
        if entry := self._clients.get(client):
            entry.answered_at = now

    def forget(self, client: Hashable) -> None:
        """Forget a client that has left."""
        self._awaited.discard(client)
        self._clients.pop(client, None)

    def inferred(self, rows: int, seconds: float) -> None:
        """Note how long a batch took."""
        self._seconds = seconds
        self._costs.add(rows, seconds)

    def wait_for(self, now: float) -> float:
        """Choose the clients that the next batch waits for.

        Args:
            now: When the device is free and an observation is there.

        Returns:
            The time at which the last of them is expected; ``now`` where nobody is waited for.
        """
        # Waiting delays everyone by the wait, and saves everyone one fixed cost of a batch: it pays up to
        # that, and not at all where a batch of two takes twice as long as one.
        self._awaited.clear()
        wait_s = self._share * self._seconds
        if wait_s < _LEAST_WAIT_S:
            return now
        latest = now + min(wait_s, self._costs.fixed_s())
        until = now
        for client, entry in list(self._clients.items()):
            if entry.answered_at is None:
                continue
            if now - entry.answered_at > _FORGET_S:
                del self._clients[client]
            elif entry.gap_s is not None:
                due = entry.answered_at + _MARGIN * entry.gap_s + _MARGIN_S
                if now < due <= latest:
                    self._awaited.add(client)
                    until = max(until, due)
        return until


class _BatchCosts:
    """The fixed part of a batch's duration: the intercept of a line through the latest (rows, seconds)."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows2 = self._product = 0.0

    def add(self, rows: int, seconds: float) -> None:
        self._weight = _KEEP * self._weight + 1.0
        self._rows = _KEEP * self._rows + rows
        self._seconds = _KEEP * self._seconds + seconds
        self._rows2 = _KEEP * self._rows2 + rows * rows
        self._product = _KEEP * self._product + rows * seconds

    def fixed_s(self) -> float:
        """Return seconds; infinity while every batch had the same size, since nothing is known then."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows2 / self._weight - rows * rows
        if variance < 1e-3:
            return float("inf")
        slope = (self._product / self._weight - rows * seconds) / variance
        return max(seconds - slope * rows, 0.0)
