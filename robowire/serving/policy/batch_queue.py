"""Which observations the device works on next. No thread or clock in here: the time is passed in."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from robowire.errors import Overloaded

__all__ = ["BatchQueue"]

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """A bounded queue that returns batches of items of one kind, with a fair share for each client.

    Clients take turns: a batch holds one item of each client before it holds two of any, and a client that
    was served goes behind the others. So a client that puts 250 items at once delays another by one batch.

    Args:
        max_batch_size: Largest batch.
        max_wait_s: Seconds that the first item of a batch may wait for others. With 0 a batch is what is
            queued already.
        max_waiting: Capacity, in items.

    Attributes:
        size: Number of items, as ``len()`` says.
    """

    def __init__(self, *, max_batch_size: int, max_wait_s: float, max_waiting: int) -> None:
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self.size = 0
        # In the order in which clients are served next: kind, time of arrival and item of each that waits.
        self._clients: OrderedDict[Hashable, deque[tuple[Hashable, float, T]]] = OrderedDict()

    def __len__(self) -> int:
        return self.size

    def put(self, items: Sequence[tuple[Hashable, T]], *, now: float, client: Hashable = None) -> None:
        """Append all of the items, each with its kind, or none of them.

        Args:
            items: Kinds and items, in their order.
            now: Time of arrival.
            client: Whose items they are; ``None`` for a client of their own.

        Raises:
            Overloaded: The capacity does not suffice.
        """
        if self.size + len(items) > self._max_waiting:
            raise Overloaded(
                f"{self.size} observations wait already and {len(items)} more came, "
                f"{self._max_waiting} may: try again later"
            )
        if not items:
            return
        queue = self._clients.setdefault(object() if client is None else client, deque())
        for kind, item in items:
            queue.append((kind, now, item))
        self.size += len(items)

    def due_in(self, now: float) -> float | None:
        """Return the seconds until a batch should be taken: 0 for at once, ``None`` for an empty queue."""
        if not self.size:
            return None
        if not self._max_wait_s:
            return 0.0
        first, since, _ = self._first()
        waiting = sum(kind == first for queue in self._clients.values() for kind, _, _ in queue)
        if waiting >= self._max_batch_size:
            return 0.0
        return max(since + self._max_wait_s - now, 0.0)

    def take(self) -> list[T]:
        """Remove and return the next batch; empty where nothing is queued."""
        batch: list[T] = []
        if not self.size:
            return batch
        kind = self._first()[0]
        turns = list(self._clients)
        while turns and len(batch) < self._max_batch_size:
            served = []
            for client in turns:
                queue = self._clients[client]
                if len(batch) == self._max_batch_size:
                    break
                if queue[0][0] == kind:  # nearly always
                    batch.append(queue.popleft()[2])
                else:
                    index = next((i for i, entry in enumerate(queue) if entry[0] == kind), None)
                    if index is None:
                        continue
                    batch.append(queue[index][2])
                    del queue[index]
                if queue:
                    served.append(client)
                    self._clients.move_to_end(client)
                else:
                    del self._clients[client]
            turns = served
        self.size -= len(batch)
        return batch

    def _first(self) -> tuple[Hashable, float, T]:
        return next(iter(self._clients.values()))[0]
