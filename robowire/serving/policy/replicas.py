"""Several processes of one policy, as one policy that the service runs through :class:`ReplicaDispatcher`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from robowire.errors import ConfigurationError, Overloaded
from robowire.interfaces import EpisodeSession
from robowire.meta import MetaObs
from robowire.serving.policy.process import ReportedPolicy
from robowire.serving.policy.process_policy import ProcessPolicy, SessionProcessPolicy
from robowire.specs import PolicySpec

__all__ = ["Replica", "ReplicaAway", "ReplicatedPolicy", "ReplicatedSessions", "start_replicas"]


class ReplicaAway(Overloaded):
    """This replica is being started again, and others answer."""


class Replica(Protocol):
    """One of several policies that answer alike: a process here, or an actor of a cluster."""

    reported: ReportedPolicy

    @property
    def restarts(self) -> int:
        """Number of processes that took the place of another."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it is loaded and runs."""
        ...

    @property
    def pid(self) -> int:
        """Number of its process; 0 while there is none."""
        ...

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation; waits for a start."""
        ...

    def close(self) -> None:
        """End it, also where it hangs. May be called twice."""
        ...


class _Asked:
    """A replica as its own dispatcher calls it: what waits for one that is away goes to another."""

    any_thread = True

    def __init__(self, replica: Replica, replicas: Sequence[Replica]) -> None:
        self.spec = replica.reported.spec
        self.max_batch_size = replica.reported.max_batch_size or 16
        self._replica = replica
        self._replicas = replicas

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        if not self._replica.ready and any(replica.ready for replica in self._replicas):
            raise ReplicaAway("this replica of the policy is being started again: try again")
        return self._replica.infer(observations)


class ReplicatedPolicy:
    """The replicas of one policy.

    Args:
        replicas: Loaded; owned by this object from now on.
        on_close: Called once they are ended.

    Attributes:
        replicas: As given.
        asked: A policy for each, which raises :class:`ReplicaAway` instead of waiting where others answer.

    Raises:
        ConfigurationError: They are not alike, or have sessions.
    """

    def __init__(self, replicas: Sequence[Replica], on_close: Callable[[], None] = lambda: None) -> None:
        self.replicas = list(replicas)
        self._on_close = on_close
        first = self.replicas[0].reported
        if any(replica.reported.spec != first.spec for replica in self.replicas):
            raise ConfigurationError(
                "the replicas have different specs: did the checkpoint change meanwhile?"
            )
        self.asked = [_Asked(replica, self.replicas) for replica in self.replicas]
        self.spec: PolicySpec = first.spec
        self.device = ", ".join(dict.fromkeys(replica.reported.device for replica in self.replicas))
        self.foreign_versions: Mapping[str, str] = first.versions

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return what the first replica that runs answers."""
        return next((r for r in self.replicas if r.ready), self.replicas[0]).infer(observations)

    def describe(self) -> list[dict[str, Any]]:
        """Return for each replica its device, process, state and restarts, for ``get_info``."""
        return [
            {
                "device": replica.reported.device,
                "pid": replica.pid,
                "ready": replica.ready,
                "restarts": replica.restarts,
            }
            for replica in self.replicas
        ]

    def close(self) -> None:
        """End every replica."""
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            list(pool.map(lambda replica: replica.close(), self.replicas))
        self._on_close()


class ReplicatedSessions:
    """The replicas of a policy with sessions: a session stays with the replica that had the fewest.

    Args:
        policies: Loaded; owned by this object from now on.
    """

    def __init__(self, policies: Sequence[SessionProcessPolicy]) -> None:
        self._policies = list(policies)
        self._open = [0] * len(self._policies)
        self._lock = threading.Lock()
        self.spec = self._policies[0].spec
        self.device = ", ".join(dict.fromkeys(policy.device for policy in self._policies))
        self.foreign_versions = self._policies[0].foreign_versions

    @property
    def stateful(self) -> bool:
        """Whether an answer depends on earlier observations of the session."""
        return self._policies[0].stateful

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation, without a session."""
        return self._policies[0].infer(observations)

    def open_session(self) -> EpisodeSession:
        """Return a new session of the replica with the fewest, of those that run."""
        with self._lock:
            ready = [i for i, policy in enumerate(self._policies) if policy.process_policy.ready]
            number = min(ready or range(len(self._policies)), key=self._open.__getitem__)
            self._open[number] += 1
        return _CountedSession(self._policies[number].open_session(), lambda: self._closed(number))

    def close(self) -> None:
        """End every replica."""
        for policy in self._policies:
            policy.close()

    def _closed(self, number: int) -> None:
        with self._lock:
            self._open[number] -= 1


class _CountedSession:
    def __init__(self, session: EpisodeSession, closed: Callable[[], None]) -> None:
        self._session = session
        self._closed: Callable[[], None] | None = closed

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return self._session.infer(observations)

    def reset(self) -> None:
        self._session.reset()

    def close(self) -> None:
        self._session.close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()


def start_replicas(
    starts: Sequence[Callable[[], Replica]], *, on_close: Callable[[], None] = lambda: None
) -> ReplicatedPolicy | ReplicatedSessions:
    """Start the replicas, all at the same time, and return them as one policy.

    Args:
        starts: Functions that start one each and return it loaded.
        on_close: Called once those that were started are ended.

    Raises:
        ConfigurationError: One cannot be loaded; the others are ended.
    """
    with ThreadPoolExecutor(len(starts)) as pool:
        futures = [pool.submit(start) for start in starts]
    try:
        replicas = [future.result() for future in futures]
        if replicas[0].reported.stateful is None:
            return ReplicatedPolicy(replicas, on_close)
        if not all(isinstance(replica, ProcessPolicy) for replica in replicas):
            raise ConfigurationError(
                "this policy has sessions, which --engine ray does not place: use --engine local"
            )
        return ReplicatedSessions([SessionProcessPolicy(r) for r in replicas if isinstance(r, ProcessPolicy)])
    except BaseException:
        for future in futures:
            with suppress(Exception):
                future.result().close()
        raise
