"""The way to a policy that wants to know its clients: each client's session runs in that client's thread.

Such a policy waits, usually for another server. So its sessions are called at the same time, and a batch is
for the server that it asks to make.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import (
    BackendError,
    ConnectFailed,
    ConnectionLost,
    InternalError,
    Overloaded,
    RequestError,
    RobowireError,
    ShuttingDown,
)
from robowire.interfaces import EpisodeSession, Policy, SessionPolicy
from robowire.meta import MetaObs
from robowire.serving.metrics import Metrics
from robowire.serving.policy.dispatcher import LOOK_AFTER_S, DispatchOptions
from robowire.serving.policy.validation import check_observation, check_values, checked_actions
from robowire.tracing.spans import active_tracing
from robowire.wire.text_safety import printable

__all__ = ["SessionDispatcher"]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Client:
    session: EpisodeSession
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the session is at work


class SessionDispatcher:
    """Call a session of the policy for each client. The methods are those of :class:`Dispatcher`.

    Args:
        policy: A :class:`SessionPolicy`.
        options: Of these, ``max_waiting`` counts observations that are at work or wait for their session.
        metrics: Counts observations and the duration of inferences.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        options: DispatchOptions,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert isinstance(policy, SessionPolicy)
        self.spec = policy.spec
        self._open_session = policy.open_session
        self._stateful = policy.stateful
        self._max_waiting = options.max_waiting
        self._metrics = metrics
        self._clock = clock
        self._tracing = active_tracing()
        self._changed = threading.Condition()  # guards what follows
        self._clients: dict[Hashable, _Client] = {}
        self._in_hand = 0
        self._closing = False
        metrics.gauge(
            "queue_depth", "Observations that are at work or wait for their session.", lambda: self._in_hand
        )

    @property
    def waiting(self) -> int:
        """Number of observations that are at work or wait for their session."""
        return self._in_hand

    def submit(
        self,
        observations: Sequence[MetaObs],
        *,
        client: Hashable = None,
        has_left: Callable[[], bool] = lambda: False,
        kind: Hashable | None = None,
    ) -> ActionChunk:
        """Return the next actions for each observation of one request; blocks until they are there.

        Args:
            observations: Unbatched; the rows of the request.
            client: Whose session is called; ``None`` for one that ends with this request.
            has_left: Whether the client is gone; then an observation that waited is not sent.
            kind: Not ``None`` where dtypes and shapes were compared with the spec before.

        Returns:
            The whole chunk of the policy, (n, B, action_dim), B being the number of observations.

        Raises:
            SpecMismatch: An observation does not fit the policy.
            Overloaded: Too many observations are at work, or the server that the policy asks is away.
            BackendError: The policy failed on one of them.
            ShuttingDown: The server accepts no new requests.
        """
        for observation in observations:
            if kind is None:
                check_observation(observation, self.spec)
            else:
                check_values(observation)
        started = self._clock()
        rows = len(observations)
        with self._changed:
            if self._closing:
                raise ShuttingDown("the server shuts down and takes no new requests")
            if self._in_hand + rows > max(self._max_waiting, rows if not self._in_hand else 0):
                raise Overloaded(f"{self._in_hand} observations are at work already: try again later")
            self._in_hand += rows
            own = self._clients.get(client) if client is not None else None
            if own is None:
                own = _Client(self._open_session())
                if client is not None:
                    self._clients[client] = own
        try:
            with own.lock:
                waited_s = self._clock() - started
                if waited_s > LOOK_AFTER_S and has_left():
                    raise InternalError("the client left before the policy answered")
                begun = self._clock()
                request = None if self._tracing is None else self._tracing.current_request()
                if request is None or self._tracing is None:
                    actions = self._infer(own.session, observations)
                else:
                    with self._tracing.inference([(request, started)] * rows):
                        actions = self._infer(own.session, observations)
                infer_ms = (self._clock() - begun) * 1e3
        finally:
            with self._changed:
                self._in_hand -= rows
                self._changed.notify_all()
            if client is None:
                own.session.close()
        self._metrics.batch([waited_s] * rows, infer_ms / 1e3)
        self._metrics.observe("infer", self._clock() - started)
        return ActionChunk(actions.swapaxes(0, 1), *self.spec.ctrl, infer_ms=infer_ms)

    @property
    def latest_s(self) -> float:
        """Infinity: how long the other server takes next time is unknown."""
        return float("inf")

    def reset(self, client: Hashable) -> None:
        """Begin a client's new episode."""
        with self._changed:
            own = self._clients.get(client)
        if own is not None:
            with own.lock:
                own.session.reset()

    def end(self, client: Hashable) -> None:
        """End a client's session."""
        with self._changed:
            own = self._clients.pop(client, None)
        if own is not None:
            own.session.close()

    def close(self, *, timeout_s: float) -> None:
        """Accept nothing new, wait for what is at work, and end every session after ``timeout_s``."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._in_hand, timeout_s)
            clients, self._clients = list(self._clients.values()), {}
        for own in clients:
            own.session.close()

    def _infer(self, session: EpisodeSession, observations: Sequence[MetaObs]) -> np.ndarray:
        try:
            actions = checked_actions(session.infer(observations), len(observations), self.spec)
        except RequestError:
            raise
        except (ConnectFailed, ConnectionLost) as exc:
            # Clients repeat what was "overloaded". Where the lost session knew the episode so far, the same
            # observation would get another answer: only a new episode is right.
            if self._stateful and isinstance(exc, ConnectionLost):
                raise BackendError(
                    printable(
                        f"{exc}. What that server knew of the episode is lost: reset, and begin it again"
                    )
                ) from exc
            raise Overloaded(printable(f"{exc}. Try again later")) from exc
        except RobowireError as exc:
            raise BackendError(printable(f"{type(exc).__name__}: {exc}")) from exc
        except Exception as exc:  # the top of the policy's own code
            logger.exception("the policy failed")
            raise BackendError(printable(f"the policy failed: {type(exc).__name__}: {exc}")) from exc
        if not np.isfinite(actions).all():
            logger.warning("the policy answered with numbers that are not finite")
            raise BackendError("the policy answered with numbers that are not finite")
        return actions
