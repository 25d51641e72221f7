"""Which observations the device works on next. No thread or clock in here: the time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from robowire.errors import Overloaded

__all__ = ["BatchQueue"]

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """A bounded queue that returns batches of items of one kind, oldest first.

    Args:
        max_batch_size: Largest batch.
        max_wait_s: Seconds that the first item of a batch may wait for others. With 0 a batch is what is
            queued already.
        max_waiting: Capacity, in items.
    """

    def __init__(self, *, max_batch_size: int, max_wait_s: float, max_waiting: int) -> None:
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._items: deque[tuple[Hashable, float, T]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: Sequence[tuple[Hashable, T]], *, now: float) -> None:
        """Append all of the items, each with its kind, or none of them.

        Raises:
            Overloaded: The capacity does not suffice.
        """
        if len(self._items) + len(items) > self._max_waiting:
            raise Overloaded(
                f"{len(self._items)} observations wait already and {len(items)} more came, "
                f"{self._max_waiting} may: try again later"
            )
        self._items.extend((kind, now, item) for kind, item in items)

    def due_in(self, now: float) -> float | None:
        """Return the seconds until a batch should be taken: 0 for at once, ``None`` for an empty queue."""
        if not self._items:
            return None
        first, since, _ = self._items[0]
        if sum(kind == first for kind, _, _ in self._items) >= self._max_batch_size:
            return 0.0
        return max(since + self._max_wait_s - now, 0.0)

    def take(self) -> list[T]:
        """Remove and return the next batch; empty where nothing is queued."""
        batch: list[T] = []
        others: deque[tuple[Hashable, float, T]] = deque()
        for entry in self._items:
            if entry[0] == self._items[0][0] and len(batch) < self._max_batch_size:
                batch.append(entry[2])
            else:
                others.append(entry)
        self._items = others
        return batch
