"""The one thread that runs the policy, and the one way to it: :meth:`Dispatcher.submit`.

Every frontend's requests end here, so batching, limits and timing exist once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Union

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import (
    BackendError,
    ConfigurationError,
    InternalError,
    Overloaded,
    RequestError,
    ShuttingDown,
)
from robowire.interfaces import AnyThread, Batched, Policy
from robowire.meta import MetaObs
from robowire.serving.metrics import Metrics
from robowire.serving.policy.arrivals import WAIT_SHARE, Arrivals
from robowire.serving.policy.batch_queue import BatchQueue
from robowire.serving.policy.process import PolicyProcessEnded
from robowire.serving.policy.validation import (
    check_observation,
    check_values,
    checked_actions,
    observation_kind,
)
from robowire.serving.sessions import Answering, OnDone
from robowire.tracing.spans import RequestSpan, active_tracing
from robowire.wire.arrays import are_finite

__all__ = ["DispatchOptions", "Dispatcher", "Inferred", "PendingInference"]

logger = logging.getLogger(__name__)

# One log line for this many inferences, but at most one in this many seconds: a robot at 10 Hz gets a line
# every 10 s, and a benchmark does not get twenty a second.
REPORT_EVERY = 100

# Where neither the flag nor the policy says. Sixteen rows of three 640x480 cameras are 180 MB as floats.
DEFAULT_MAX_BATCH_SIZE = 16

# A row that waited longer than this is worth a system call that asks whether its client is still there.
LOOK_AFTER_S = 0.05
REPORT_GAP_S = 5.0

# By how much the quickest of the latest inferences is taken to be longer at the next one.
_FORGET = 8.0

# Robots send one kind of observation. A client that invents some must not fill our memory.
_MAX_KINDS = 64

# A caller that does not wait runs a policy itself that takes less than handing it over: two switches of
# threads, and the cost of them to all others.
_AT_ONCE_S = 0.0005

# What a policy in a process of its own raises where the process, not one observation, is at fault.
_NOT_TRIED_AGAIN = (PolicyProcessEnded, Overloaded, ShuttingDown)


@dataclass(frozen=True)
class DispatchOptions:
    """How observations become actions.

    Attributes:
        chunk_size: Most actions in a reply, in steps; a policy's longer chunk is cut, a shorter one is sent
            as it is.
        temporal_agg: Answer one action, the average of what all past chunks of the episode predicted for it.
        max_batch_size: Largest batch of observations that the policy works on at once; by default what the
            policy takes, or 16 where it does not say.
        max_wait_ms: Milliseconds an observation may wait for others to share its batch; 0 never waits. By
            default it waits for clients that are about to send theirs, at most half an inference, and only
            while larger batches are faster.
        max_waiting: Observations that may wait for the policy; the next one is answered "overloaded".
    """

    chunk_size: int = 64
    temporal_agg: bool = False
    max_batch_size: int | None = None
    max_wait_ms: float | None = None
    # A waiting observation keeps its images in memory.
    max_waiting: int = 256

    def __post_init__(self) -> None:
        for name in ("chunk_size", "max_batch_size", "max_waiting"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}, expected at least 1")
        if self.max_wait_ms is not None and not 0 <= self.max_wait_ms < 60_000:
            raise ConfigurationError(f"max_wait_ms is {self.max_wait_ms}, expected 0 to 60000 milliseconds")


# The chunk of a request, (n, B, action_dim), and the seconds that the policy took.
Inferred = tuple[np.ndarray, float]

# Of a row: (n, action_dim) and seconds, or the error.
_Answer = Union["tuple[np.ndarray, float]", RequestError]

# An answer, and the ticket that is answered next with its answer. A thread that was woken wakes the next one:
# sixteen that are woken at once take the interpreter's lock from each other at every system call, which takes
# twice as many switches of threads.
_Chained = tuple[_Answer, "tuple[_Ticket, _Chained] | None"]


class _Ticket:
    """A row that waits for the policy.

    Args:
        observation: The row.
        client: Whose it is.
        since: When it came.
        has_left: Whether its client is gone.
        alone: Whether it is the only row of its request.
        span: Of its request, where that is traced.
        pending: Of a caller that does not wait.
    """

    __slots__ = ("alone", "answers", "client", "given", "has_left", "observation", "pending", "since", "span")

    def __init__(
        self,
        observation: MetaObs,
        client: Hashable,
        since: float,
        has_left: Callable[[], bool],
        *,
        alone: bool,
        span: RequestSpan | None,
        pending: PendingInference | None,
    ) -> None:
        self.observation = observation
        self.client = client
        self.since = since
        self.has_left = has_left
        self.alone = alone
        self.span = span
        self.pending = pending
        self.given: _Answer | None = None  # to a caller that does not wait
        if pending is None:
            # The first entry counts. SimpleQueue is written in C: a Future, which waits in Python, wakes the
            # waiting thread 5 to 15 us later.
            self.answers: SimpleQueue[_Chained] = SimpleQueue()

    def answer(self, answer: _Answer) -> OnDone | None:
        """Wake its thread, which wakes no other one.

        Args:
            answer: Of several the first counts.

        Returns:
            Who is to be told that an inference is done for which its caller does not wait.
        """
        if self.pending is None:
            self.answers.put((answer, None))
            return None
        if self.given is not None:
            return None
        self.given = answer
        return self.pending.note_answer()

    def wait(self) -> tuple[np.ndarray, float]:
        """Return the answer, or raise the error; of a caller that does not wait, it must be there."""
        answer = self.given
        if answer is None:
            answer, following = self.answers.get()
            if following is not None:
                ticket, its_answer = following
                ticket.answers.put(its_answer)
        if isinstance(answer, RequestError):
            raise answer
        return answer


class PendingInference:
    """An inference whose caller does not wait for it.

    Args:
        on_done: See :attr:`robowire.serving.sessions.Session.on_done`.
        finish: Makes the result of what it is given next and the rows' answers.
        started: When the request came.
        rows: How many there are.

    Attributes:
        tickets: Of the rows; set before any of their answers can come.
    """

    __slots__ = ("_finish", "_left", "_on_done", "_started", "tickets")

    def __init__(
        self,
        on_done: OnDone,
        finish: Callable[[float, Sequence[_Ticket]], Inferred],
        started: float,
        rows: int,
    ) -> None:
        self.tickets: Sequence[_Ticket] = ()
        self._left = rows
        self._on_done = on_done
        self._finish = finish
        self._started = started

    def note_answer(self) -> OnDone | None:
        """Count an answer, and return who is to be told after the last one.

        The dispatcher's thread calls it, or the one that closes the dispatcher.
        """
        self._left -= 1
        return None if self._left else self._on_done

    @property
    def done(self) -> bool:
        """Whether :meth:`result` has it all."""
        return self._left <= 0

    def result(self) -> Inferred:
        """Return what :meth:`Dispatcher.begin` would, or raise what it raises. Does not wait."""
        tickets, self.tickets = self.tickets, ()  # which refer to this one: their memory is needed again
        return self._finish(self._started, tickets)


class Dispatcher:
    """Run a policy in a thread of its own, which starts here and ends with :meth:`close`.

    Args:
        policy: Used by this thread only; one with ``any_thread`` by callers' threads too, one at a time.
        options: Batching and chunk length.
        metrics: Counts batches and the duration of inferences.
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
        self.spec = policy.spec
        self._policy = policy
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._tracing = active_tracing()
        self._max_batch_size = options.max_batch_size or (
            policy.max_batch_size if isinstance(policy, Batched) else DEFAULT_MAX_BATCH_SIZE
        )
        self._lock = threading.Lock()  # guards what follows
        self._changed = threading.Condition(self._lock)
        self._queue: BatchQueue[_Ticket] = BatchQueue(
            max_batch_size=self._max_batch_size,
            max_wait_s=(options.max_wait_ms or 0) / 1e3,
            max_waiting=options.max_waiting,
        )
        self._arrivals = Arrivals(WAIT_SHARE if options.max_wait_ms is None else 0.0)
        self._in_hand: list[_Ticket] = []
        self._kinds: set[Hashable] = set()  # of observations that were compared with the spec
        self._closing = False
        self._busy = False  # the policy works on an observation
        self._sleeps = False  # its thread waits until something changes
        self._any_thread = isinstance(policy, AnyThread) and policy.any_thread
        self._latest_s = float("inf")  # unknown
        self._next_report_count, self._next_report_at = REPORT_EVERY, self._clock()
        metrics.gauge("queue_depth", "Observations that wait for the policy.", lambda: self._queue.size)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of observations that wait for the policy."""
        return self._queue.size

    def submit(
        self,
        observations: Sequence[MetaObs],
        *,
        client: Hashable = None,
        has_left: Callable[[], bool] = lambda: False,
        kind: Hashable | None = None,
    ) -> ActionChunk:
        """Return the next actions for each observation of one request; blocks until they are computed.

        Args:
            observations: Unbatched; the rows of the request.
            client: Who has a share of each batch; ``None`` for a client of its own.
            has_left: Whether the client is gone; then rows that still wait are not computed.
            kind: What :func:`observation_kind` says of the observations, where their dtypes and shapes were
                compared with the spec before; ``None`` where they were not.

        Returns:
            The whole chunk of the policy, (n, B, action_dim), B being the number of observations.

        Raises:
            SpecMismatch: An observation does not fit the policy.
            Overloaded: Too many observations wait already.
            BackendError: The policy failed on one of them.
            ShuttingDown: The server accepts no new requests.
        """
        result = self.begin(observations, client=client, has_left=has_left, kind=kind)
        assert not isinstance(result, PendingInference)
        actions, seconds = result
        return ActionChunk(actions, *self.spec.ctrl, infer_ms=seconds * 1e3)

    def begin(
        self,
        observations: Sequence[MetaObs],
        *,
        client: Hashable,
        has_left: Callable[[], bool],
        kind: Hashable | None,
        on_done: OnDone | None = None,
    ) -> Inferred | PendingInference:
        """Do what :meth:`submit` does, and wait for nothing where ``on_done`` is given.

        Args:
            observations: As :meth:`submit` takes them, and the three that follow.
            client: The same.
            has_left: The same.
            kind: The same.
            on_done: Who is told by another thread when the result is there; ``None`` to wait for it.

        Returns:
            The chunk, and the seconds that the policy took; or what has them later.
        """
        started = self._clock()
        alone = len(observations) == 1
        if kind is not None:
            for observation in observations:
                check_values(observation)
        elif alone:
            kind = self._checked_kind(observations[0])
        else:
            for observation in observations:
                check_observation(observation, self.spec)
        span = None if self._tracing is None else self._tracing.current_request()
        # A caller that does not wait has others to serve meanwhile.
        may_run = alone and self._any_thread and (on_done is None or self._latest_s < _AT_ONCE_S)
        with self._lock:
            if self._closing:
                raise ShuttingDown("the server shuts down and takes no new requests")
            if client is not None and not self._arrivals.instant:
                self._arrivals.arrived(client, started)
            if may_run and self._take_policy(started):
                waiting = None
            else:
                waiting = self._wait(observations, client, started, has_left, kind, span, on_done)
        if waiting is None:
            chunk, seconds = self._infer_here(observations[0], client, started, span)
            return self._inferred(started, chunk[:, np.newaxis], seconds)
        if isinstance(waiting, PendingInference):
            return waiting
        return self._result(started, waiting)

    def _wait(
        self,
        observations: Sequence[MetaObs],
        client: Hashable,
        since: float,
        has_left: Callable[[], bool],
        kind: Hashable | None,
        span: RequestSpan | None,
        on_done: OnDone | None,
    ) -> list[_Ticket] | PendingInference:
        """Put the rows of a request into the queue; the lock is held."""
        pending = None
        if on_done is not None:
            pending = PendingInference(on_done, self._result, since, len(observations))
        alone = len(observations) == 1
        tickets, items = [], []
        for observation in observations:
            ticket = _Ticket(observation, client, since, has_left, alone=alone, span=span, pending=pending)
            tickets.append(ticket)
            items.append((kind or observation_kind(observation), ticket))
        if pending is not None:
            pending.tickets = tickets
        self._queue.put(items, now=since, client=client)
        # While others are awaited, waking the dispatcher for each arrival would delay them.
        if self._sleeps and (not self._arrivals.awaited or self._queue.size >= self._max_batch_size):
            self._changed.notify_all()
        return tickets if pending is None else pending

    def _result(self, started: float, tickets: Sequence[_Ticket]) -> Inferred:
        """Return what came of the rows, for whose answers it waits."""
        if len(tickets) == 1:  # the common case, which needs no copy
            chunk, seconds = tickets[0].wait()
            return self._inferred(started, chunk[:, np.newaxis], seconds)
        answers = [ticket.wait() for ticket in tickets]
        seconds = max(seconds for _, seconds in answers)
        return self._inferred(started, np.stack([chunk for chunk, _ in answers], axis=1), seconds)

    def _inferred(self, started: float, actions: np.ndarray, seconds: float) -> Inferred:
        """Count the inference of a request, and return it."""
        now = self._clock()
        count = self._metrics.observe("infer", now - started)
        if count >= self._next_report_count and now >= self._next_report_at:
            self._report(count)
        return actions, seconds

    def _checked_kind(self, observation: MetaObs) -> Hashable:
        """Return the kind of an observation that fits the policy. Each kind is compared with the spec once.

        Raises:
            SpecMismatch: It does not fit.
        """
        kind = observation_kind(observation)
        # A kind names the arrays only: what is there and no array must not pass for what is not there.
        known = (kind, observation.state is None, observation.image is None)
        if known in self._kinds and observation.delay is None:  # a delay is in no kind
            check_values(observation)
        else:
            check_observation(observation, self.spec)
            if len(self._kinds) < _MAX_KINDS:
                self._kinds.add(known)
        return kind

    def reset(self, client: Hashable) -> None:
        """Begin a client's new episode: nothing to do, as the policy is a pure function."""

    def end(self, client: Hashable) -> None:
        """Forget a client: no batch waits for it. Its rows that wait ask whether it is there."""
        with self._lock:
            self._arrivals.forget(client)
            self._changed.notify_all()  # it may have been the last that a batch waited for

    @property
    def latest_s(self) -> float:
        """Seconds that the quickest of the latest inferences took, about; infinity before the first."""
        return self._latest_s

    def _note_duration(self, seconds: float) -> None:
        # One that a busy machine delayed must not make callers hand over the next: they would be as late.
        self._latest_s = min(seconds, _FORGET * self._latest_s)

    def _take_policy(self, now: float) -> bool:
        """Return whether the caller's thread may run the policy now: nobody waits or is about to come."""
        if self._busy or self._queue.size:
            return False
        if self._arrivals.instant:
            self._busy = True
            return True
        self._busy = not self._arrivals.wait_for(now, 1, self._max_batch_size - 1)
        self._arrivals.stop_waiting()  # the dispatcher's thread asks again
        return self._busy

    def _infer_here(
        self, observation: MetaObs, client: Hashable, since: float, span: RequestSpan | None
    ) -> tuple[np.ndarray, float]:
        """Return (n, action_dim) and seconds, computed in the caller's thread, which has the policy."""
        seconds: float | None = None
        started = self._clock()
        ended = started
        try:
            chunk = self._checked_chunks([observation], [(span, since)])[0]
            ended = self._clock()
            seconds = ended - started
        except RequestError:
            raise
        except Exception as exc:  # the top of the policy's own code
            raise _failure(exc) from exc
        finally:
            with self._lock:
                self._busy = False
                if seconds is not None:
                    self._note_duration(seconds)
                    # Not what one took that was interrupted: nobody is to wait for others because of it.
                    self._arrivals.inferred(1, self._latest_s)
                    if not self._arrivals.instant:
                        self._arrivals.answered(client, ended)
                if self._queue.size or self._closing:
                    self._changed.notify_all()
        self._metrics.batch((started - since,), seconds)
        if not are_finite(chunk):
            raise _not_finite()
        return chunk, seconds

    def _checked_chunks(
        self, observations: Sequence[MetaObs], rows: Sequence[tuple[RequestSpan | None, float]]
    ) -> np.ndarray:
        """Return what the policy answers, (B, n, action_dim), as a span of the rows' requests."""
        if self._tracing is None:
            chunks = self._policy.infer(observations)
        else:
            with self._tracing.inference(rows):
                chunks = self._policy.infer(observations)
        return checked_actions(chunks, len(observations), self.spec)

    def close(self, *, timeout_s: float) -> None:
        """Accept nothing new, finish what waits, and end the thread; give up after ``timeout_s``."""
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._lock:
            left = self._in_hand + [ticket for batch in iter(self._queue.take, []) for ticket in batch]
        _fail(left, ShuttingDown("the server shut down before the policy answered"))

    def _run(self) -> None:
        while True:
            self._in_hand = self._next_batch()
            if not self._in_hand:  # closing, and the queue is empty
                return
            batch = self._present(self._in_hand)
            if batch:
                self._infer(batch)
            # An observation is freed before the next is awaited: its connection then uses the memory again.
            del batch
            self._in_hand = []
            self._busy = False

    def _next_batch(self) -> list[_Ticket]:
        """Return the rows to work on now; empty when it is closing and nothing is left."""
        with self._lock:
            while self._busy or not (self._queue.size or self._closing):
                self._sleep(None)
            waiting = self._queue.size
            self._arrivals.wait_for(self._clock(), waiting, self._max_batch_size - waiting)
            while self._queue.size < self._max_batch_size and not self._closing:
                if not (wait_s := self._arrivals.wait_s(self._clock())):
                    break
                self._sleep(wait_s)
            self._arrivals.stop_waiting()
            while (due := self._queue.due_in(self._clock())) and not self._closing:
                self._sleep(due)
            self._busy = True
            return self._queue.take()

    def _sleep(self, seconds: float | None) -> None:
        self._sleeps = True
        self._changed.wait(seconds)
        self._sleeps = False

    def _present(self, batch: Sequence[_Ticket]) -> list[_Ticket]:
        """Return the rows of a batch whose clients are still there."""
        late = self._clock() - LOOK_AFTER_S
        gone = [ticket for ticket in batch if ticket.since < late and ticket.has_left()]
        if not gone:
            return list(batch)
        _fail(gone, InternalError("the client left before the policy answered"))
        return [ticket for ticket in batch if ticket not in gone]

    def _infer(self, batch: Sequence[_Ticket]) -> None:
        """Answer every ticket of a batch, one way or another."""
        started = self._clock()
        try:
            chunks = self._checked_chunks(
                [ticket.observation for ticket in batch], [(ticket.span, ticket.since) for ticket in batch]
            )
        except Exception as exc:
            if isinstance(exc, _NOT_TRIED_AGAIN):
                _fail(batch, exc)
                return
            # The top of the policy's own code. One bad observation must not fail the others of its batch.
            if len(batch) > 1:
                logger.warning("a batch of %d failed and is tried one by one: %s", len(batch), exc)
                for ticket in batch:
                    self._infer([ticket])
                return
            _fail(batch, exc if isinstance(exc, RequestError) else _failure(exc))
            return
        ended = self._clock()
        seconds = ended - started
        self._note_duration(seconds)
        self._metrics.batch([started - ticket.since for ticket in batch], seconds)
        finite = np.isfinite(chunks).all(axis=(1, 2))
        following: tuple[_Ticket, _Chained] | None = None
        done: list[OnDone | None] = []
        with self._lock:
            self._arrivals.inferred(len(batch), seconds)
            for ticket in batch:
                self._arrivals.answered(ticket.client, ended)
                # Who encodes the reply looks whether anything still refers to the client's memory.
                del ticket.observation
        for ticket, chunk, is_finite in zip(reversed(batch), chunks[::-1], finite[::-1]):
            answer: _Answer = (chunk, seconds) if is_finite else _not_finite()
            if ticket.alone and ticket.pending is None:
                following = ticket, (answer, following)
            else:
                # Its request waits for rows of other batches too, so nobody may wait for it.
                done.append(ticket.answer(answer))
        # While nothing waits for the policy, this thread spares the hand-over to the one that sends.
        _tell(done, here=not self._queue.size)
        if following is not None:
            ticket, its_answer = following
            ticket.answers.put(its_answer)

    def _report(self, count: int) -> None:
        with self._lock:  # which decides between two threads
            now = self._clock()
            due = count >= self._next_report_count and now >= self._next_report_at
            if due:
                self._next_report_count, self._next_report_at = count + REPORT_EVERY, now + REPORT_GAP_S
        if due:
            p50, p99 = (self._metrics.quantile_ms("infer", share) for share in (0.5, 0.99))
            logger.info("%d inferences, the latest with p50 %.1f ms, p99 %.1f ms", count, p50, p99)


def _fail(tickets: Sequence[_Ticket], error: RequestError) -> None:
    """Answer every ticket by an error."""
    _tell([ticket.answer(error) for ticket in tickets], here=False)


def _tell(done: Sequence[OnDone | None], *, here: bool) -> None:
    """Say which inferences are done: once to each who answers them, so that it can answer them in a row."""
    connections: dict[Answering, list[Any]] = {}
    for told in done:
        if told is not None:
            connections.setdefault(told.by, []).append(told.connection)
    for by, those in connections.items():
        by.answered(those, here=here)


def _failure(exc: Exception) -> BackendError:
    logger.error("the policy failed", exc_info=exc)
    return BackendError(f"the policy failed: {type(exc).__name__}: {exc}"[:500])


def _not_finite() -> BackendError:
    logger.warning("the policy answered with numbers that are not finite")
    return BackendError("the policy answered with numbers that are not finite")
