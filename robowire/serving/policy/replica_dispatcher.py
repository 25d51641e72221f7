"""The way to several replicas of a policy: each has a dispatcher, and a request goes to the least loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence

from robowire.chunking import ActionChunk
from robowire.errors import Overloaded
from robowire.meta import MetaObs
from robowire.serving.metrics import Metrics
from robowire.serving.policy.dispatcher import Dispatcher, DispatchOptions
from robowire.serving.policy.replicas import ReplicaAway, ReplicatedPolicy

__all__ = ["ReplicaDispatcher"]


class ReplicaDispatcher:
    """Send each request to the replica with the fewest observations. The methods are those of `Dispatcher`.

    Where several have equally few, a client stays with its last one, which knows when to expect it; another
    client goes to the one that was used longest ago. What waits for a replica that ends goes to another.

    Args:
        policy: The replicas.
        options: Of each dispatcher; ``max_waiting`` counts the observations of all.
        metrics: Counts batches and the duration of inferences of all.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        policy: ReplicatedPolicy,
        options: DispatchOptions,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = policy.spec
        self._policy = policy
        self._max_waiting = options.max_waiting
        self._dispatchers = [Dispatcher(asked, options, metrics, clock=clock) for asked in policy.asked]
        self._lock = threading.Lock()  # guards what follows
        self._loads = [0] * len(self._dispatchers)  # observations that wait or are worked on
        self._used = [0] * len(self._dispatchers)  # number of the latest request
        self._requests = 0
        self._last: dict[Hashable, int] = {}
        metrics.gauge("queue_depth", "Observations that wait for the policy.", lambda: self.waiting)
        metrics.gauge(
            "policy_replica_observations",
            "Observations that wait for a replica of the policy, or are in its hand.",
            lambda: {str(number): load for number, load in enumerate(self._loads)},
            label="replica",
        )

    def submit(
        self,
        observations: Sequence[MetaObs],
        *,
        client: Hashable = None,
        has_left: Callable[[], bool] = lambda: False,
        kind: Hashable | None = None,
    ) -> ActionChunk:
        """Return the next actions for each observation of one request; see :meth:`Dispatcher.submit`."""
        if self.waiting + len(observations) > max(self._max_waiting, len(observations)):
            raise Overloaded(f"{self.waiting} observations wait already: try again later")
        attempts = len(self._dispatchers) + 1
        while True:
            number = self._take(client, len(observations))
            try:
                return self._dispatchers[number].submit(
                    observations, client=client, has_left=has_left, kind=kind
                )
            except ReplicaAway:
                attempts -= 1
                if not attempts:
                    raise
            finally:
                with self._lock:
                    self._loads[number] -= len(observations)

    def _take(self, client: Hashable, rows: int) -> int:
        """Return the replica for a request, which is counted as its load."""
        ready = [number for number, replica in enumerate(self._policy.replicas) if replica.ready]
        with self._lock:
            last = self._last.get(client) if client is not None else None
            number = min(
                ready or range(len(self._loads)),
                key=lambda number: (self._loads[number], number != last, self._used[number]),
            )
            self._requests += 1
            self._used[number] = self._requests
            self._loads[number] += rows
            if client is not None:
                self._last[client] = number
        return number

    def reset(self, client: Hashable) -> None:
        """Begin a client's new episode: nothing to do, as the policy is a pure function."""

    def end(self, client: Hashable) -> None:
        """Forget a client."""
        with self._lock:
            self._last.pop(client, None)
        for dispatcher in self._dispatchers:
            dispatcher.end(client)

    @property
    def latest_s(self) -> float:
        """Seconds that the latest inference of a replica took, the shortest of them."""
        return min(dispatcher.latest_s for dispatcher in self._dispatchers)

    @property
    def waiting(self) -> int:
        """Number of observations that wait for a replica."""
        return sum(dispatcher.waiting for dispatcher in self._dispatchers)

    def close(self, *, timeout_s: float) -> None:
        """Accept nothing new, finish what waits, and end the threads; give up after ``timeout_s``."""
        threads = [
            threading.Thread(target=dispatcher.close, kwargs={"timeout_s": timeout_s})
            for dispatcher in self._dispatchers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
