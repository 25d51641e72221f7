"""A policy that another server holds: each session here is a connection there.

What happens when that server fails. A request is sent to it once, and once more over a new connection where
the first one was lost and the server keeps nothing of an episode: then the same observation has the same
answer. Where it does keep something, a lost connection costs the episode, and only a reset begins another.
A reply that is late is never waited for again: the connection is closed, and the caller decides.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from policies.remote.options import RemoteOptions
from policies.remote.upstream import Upstream, UpstreamConnection
from robowire.address import join_address
from robowire.errors import (
    BackendError,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
)
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import Entry, load
from robowire.serving.policy.validation import check_observation

__all__ = ["UPSTREAMS", "RemotePolicy", "RemoteSession", "make_policy"]

UPSTREAMS: dict[str, Entry] = {
    "robowire": Entry("policies.remote.robowire:RobowireUpstream"),
    "openpi": Entry("policies.remote.openpi:OpenpiUpstream", extra="openpi"),
    "gr00t": Entry("policies.remote.gr00t:Gr00tUpstream", extra="gr00t"),
    "lerobot": Entry("policies.remote.lerobot:LerobotUpstream", extra="lerobot"),
    "vla-eval": Entry("policies.remote.vla_eval:VlaEvalUpstream", extra="vla-eval"),
}


def make_policy(options: PolicyOptions) -> RemotePolicy:
    """Return the policy of the server that ``options.extra["url"]`` names, which must answer.

    Raises:
        ConfigurationError: An option is unusable, or one is missing that the server does not say.
        MissingDependency: The wire needs a package that is not installed.
        TransportError: Nothing answers there.
    """
    remote = RemoteOptions.read(options)
    upstream: Upstream = load("scheme", remote.scheme, UPSTREAMS)(remote)
    return RemotePolicy(remote, upstream)


class RemotePolicy:
    """A policy that a server of some wire holds.

    Attributes:
        spec: What it needs and gives.
        stateful: Whether an answer depends on earlier observations of a session.
        device: The server's address, which ``get_info`` shows as the device.
    """

    strided_images = True

    def __init__(self, options: RemoteOptions, upstream: Upstream) -> None:
        self.spec = upstream.spec
        self.stateful = upstream.stateful
        self.device = f"{options.scheme} at {join_address(options.host, options.port)}"
        self.upstream = upstream
        self._address = options.url
        self._shared = self.open_session()
        self._lock = threading.Lock()

    def open_session(self) -> RemoteSession:
        """Return a new session, which connects with its first observation."""
        return RemoteSession(self.upstream, self._address)

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim), each row as the first observation of an episode."""
        with self._lock:
            if self.stateful:
                self._shared.reset()
            return self._shared.infer(observations)

    def close(self) -> None:
        """End the connections of :meth:`infer`."""
        self._shared.close()


class RemoteSession:
    """One client's session: a connection to the server, and one for each further row of a batch.

    Args:
        upstream: Server that is asked.
        address: How messages name it.
    """

    def __init__(self, upstream: Upstream, address: str) -> None:
        self._upstream = upstream
        self._rows: list[_Row] = []
        self._address = address
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim).

        Raises:
            SpecMismatch: An observation does not fit the policy.
            TransportError: The server is away, was lost, or did not answer in time.
            RequestError: The server's own error.
            RemoteProtocolError: Its reply has not the announced shape, or is not finite.
        """
        if self._closed:
            raise LocalProtocolError(f"this session of {self._address} is closed")
        for observation in observations:
            check_observation(observation, self._upstream.spec)
        together = len(observations) == 1 or (self._upstream.takes_batches and _alike(observations))
        groups = [list(observations)] if together else [[observation] for observation in observations]
        while len(self._rows) < len(groups):
            self._rows.append(_Row(self._upstream, self._address))
        if len(groups) == 1:
            return self._rows[0].infer(groups[0])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(groups), thread_name_prefix="remote policy")
        return np.concatenate(list(self._threads.map(_Row.infer, self._rows, groups)))

    def reset(self) -> None:
        """Begin a new episode with the next observation."""
        for row in self._rows:
            row.reset()

    def interrupt(self) -> None:
        """End what another thread waits for, as if the connection was lost."""
        for row in self._rows:
            row.interrupt()

    def close(self) -> None:
        """End the connections. May be called twice, and while another thread waits."""
        self._closed = True
        for row in self._rows:
            row.interrupt()
            row.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False)


class _Row:
    """One connection at a time."""

    def __init__(self, upstream: Upstream, address: str) -> None:
        self._upstream = upstream
        self._address = address
        self._connection: UpstreamConnection | None = None
        self._new_episode = True
        self._lost_episode = False  # the server knew the episode so far, and is gone
        self._busy = threading.Lock()
        self._closed = False

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        with self._busy:
            if self._lost_episode:
                raise BackendError(
                    f"{self._address} was lost in the middle of an episode, and what it knew of it: "
                    "reset, and begin the episode again"
                )
            reused = self._connection is not None
            try:
                return self._ask(observations)
            except ConnectionLost:
                if self._upstream.stateful or not reused or self._closed:
                    raise
            return self._ask(observations)

    def reset(self) -> None:
        with self._busy:
            self._new_episode, self._lost_episode = True, False

    def interrupt(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def close(self) -> None:
        self._closed = True
        with self._busy:
            self._drop()

    def _ask(self, observations: Sequence[MetaObs]) -> np.ndarray:
        try:
            if self._new_episode and self._connection is not None:
                self._begin_on_old_connection(observations[0].raw_lang)
            if self._connection is None:
                self._connection = self._upstream.connect()
                self._connection.begin_episode(observations[0].raw_lang)
                self._new_episode = False
            return self._checked(self._connection.infer(observations), len(observations))
        except RequestError:
            # Its own answer: the connection is as good as before, unless this wire ends it with an error.
            if self._connection is not None and self._connection.broken:
                self._lose()
            raise
        except BaseException:
            # Lost, late or not understood. Never half read: what comes later belongs to this request.
            self._lose()
            raise

    def _begin_on_old_connection(self, instruction: str) -> None:
        assert self._connection is not None
        if not self._upstream.new_connection_is_episode:
            try:
                self._connection.begin_episode(instruction)
                self._new_episode = False
                return
            except ConnectionLost:  # between two episodes: nothing is lost with it
                pass
        self._drop()

    def _lose(self) -> None:
        if self._connection is not None:
            self._drop()
            self._lost_episode = self._upstream.stateful and not self._new_episode

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _checked(self, actions: np.ndarray, batch_size: int) -> np.ndarray:
        spec = self._upstream.spec
        dim = spec.action_dim
        if (
            actions.dtype.kind not in "fiu"
            or actions.ndim != 3
            or actions.shape[:2] != (batch_size, spec.chunk_size)
            or dim not in (None, actions.shape[2])
        ):
            raise RemoteProtocolError(
                f"{self._address} answered {actions.dtype} actions of shape {actions.shape[1:]}, expected "
                f"({spec.chunk_size}, {'action_dim' if dim is None else dim})"
            )
        with np.errstate(over="ignore"):
            numbers: np.ndarray = np.array(actions, dtype=np.float32)
        if not np.isfinite(numbers).all():
            raise RemoteProtocolError(f"{self._address} answered with numbers that are not finite")
        return numbers


def _alike(observations: Sequence[MetaObs]) -> bool:
    """Return whether the arrays of all observations have the same shapes and dtypes."""
    kinds = [
        [
            (name, value.shape, value.dtype)
            for name, value in vars(item).items()
            if isinstance(value, np.ndarray)
        ]
        for item in observations
    ]
    return all(kind == kinds[0] for kind in kinds)
