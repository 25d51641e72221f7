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

# An arrival is expected this much later than the client's lately: the time that a thread takes to be
# scheduled.
_MARGIN_S = 0.0005

# A wait that is shorter than a thread takes to be scheduled is none: with a policy of microseconds nobody is
# looked up among hundreds of clients.
_LEAST_WAIT_S = 0.0001

# How much of a batch's duration is remembered at the next batch.
_KEEP = 0.95

# Variance of the sizes of batches, in rows, below which the fixed part of their duration is not known: one
# batch of 15 among twenty of 16.
_LEAST_VARIANCE = 0.04

# A client that has not come back for so long has left, or pauses.
_FORGET_S = 5.0


@dataclass
class _Client:
    answered_at: float | None = None  # None while its observation waits or is worked on
    # From its answers to its next observations: the latest three, and their median. A moment in which the
    # client was not scheduled is no reason not to wait for it the next time.
    latest_gaps: tuple[float, ...] = ()
    gap_s: float | None = None


class Arrivals:
    """Predict when active clients send their next observation.

    Args:
        share: Longest wait, as a share of the latest inference.

    Attributes:
        instant: Whether inferences are so short that nobody is waited for, and arrivals need not be noted.
    """

    def __init__(self, share: float = WAIT_SHARE) -> None:
        self._share = share
        self._clients: dict[Hashable, _Client] = {}
        self._awaited: dict[Hashable, float] = {}  # when each is expected
        self._rows = 0  # of the batch, once all have arrived
        self._fixed_s = 0.0
        self._latest = 0.0
        self._seconds = 0.0
        self.instant = False  # not before the first one
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
        self._awaited.pop(client, None)
        entry = self._clients.get(client)
        if entry is None:
            entry = self._clients[client] = _Client()
        if entry.answered_at is not None:
            gaps = entry.latest_gaps = (now - entry.answered_at, *entry.latest_gaps[:2])
            entry.gap_s = sorted(gaps)[len(gaps) // 2]
            entry.answered_at = None

    def answered(self, client: Hashable, now: float) -> None:
        """Note that a client was sent its answer."""
        if entry := self._clients.get(client):
            entry.answered_at = now

    def forget(self, client: Hashable) -> None:
        """Forget a client that has left."""
        self._awaited.pop(client, None)
        self._clients.pop(client, None)

    def inferred(self, rows: int, seconds: float) -> None:
        """Note how long a batch took."""
        self._seconds = seconds
        self.instant = self._share * seconds < _LEAST_WAIT_S
        if not self.instant:
            self._costs.add(rows, seconds)

    def wait_for(self, now: float, waiting: int, places: int) -> bool:
        """Choose the clients that the next batch waits for.

        Args:
            now: When the device is free and an observation is there.
            waiting: Observations that wait.
            places: How many more the batch can take.

        Returns:
            Whether there is one.
        """
        self._awaited.clear()
        longest_s = self._share * self._seconds
        if places < 1 or longest_s < _LEAST_WAIT_S:
            return False
        self._fixed_s = fixed_s = min(self._costs.fixed_s, self._seconds)
        expected: list[tuple[float, Hashable]] = []
        for client, entry in list(self._clients.items()):
            if entry.answered_at is None:
                continue
            if now - entry.answered_at > _FORGET_S:
                del self._clients[client]
            elif entry.gap_s is not None:
                at = entry.answered_at + entry.gap_s + _MARGIN_S
                if now - longest_s < at <= now + longest_s:
                    expected.append((max(at, now), client))
        if not expected:
            return False
        # A wait delays those that are there, and spares each that is awaited the time until the device is
        # free again: the fixed part of a batch, less the wait. Rows take as long either way.
        expected.sort(key=lambda item: item[0])
        del expected[places:]
        best, count = 0.0, 0
        for number, (at, _) in enumerate(expected, 1):
            gain_s = number * fixed_s - (number + waiting) * (at - now)
            if gain_s > best:
                best, count = gain_s, number
        self._awaited = {client: at for at, client in expected[:count]}
        self._rows = waiting + count
        self._latest = now + longest_s
        return bool(count)

    def wait_s(self, now: float) -> float:
        """Return the seconds to wait before this is asked again; 0 where the batch begins without the others.

        Those who are late are given up when the wait since they were expected has cost as much as it can
        save: soon where one of many is late, later where most are.
        """
        if not self._awaited:
            return 0.0
        last = max(self._awaited.values())
        step_s = self._fixed_s / self._rows
        until = min(last + len(self._awaited) * step_s, self._latest)
        # In steps, since the time shrinks when some of them arrive, which wakes nobody.
        wait_s = min(last + step_s - now if now < last + step_s else step_s, until - now)
        return wait_s if wait_s > 0 else 0.0


class _BatchCosts:
    """The fixed part of a batch's duration: the intercept of a line through the latest (rows, seconds).

    Attributes:
        fixed_s: Seconds; infinity while every batch has had the same size, since nothing is known then.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows2 = self._product = 0.0
        self.fixed_s = float("inf")

    def add(self, rows: int, seconds: float) -> None:
        self._weight = _KEEP * self._weight + 1.0
        self._rows = _KEEP * self._rows + rows
        self._seconds = _KEEP * self._seconds + seconds
        self._rows2 = _KEEP * self._rows2 + rows * rows
        self._product = _KEEP * self._product + rows * seconds
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows2 / self._weight - mean_rows * mean_rows
        if variance >= _LEAST_VARIANCE:  # else it is what it was
            slope = (self._product / self._weight - mean_rows * mean_s) / variance
            self.fixed_s = max(mean_s - slope * mean_rows, 0.0)
