"""When to send an observation, what its reply changes, and what to execute at each step, without waiting.

No socket, thread or clock: time is the number of the control step, and the caller passes it in. So the same
rules drive a robot in real time (:class:`robowire.AsyncPolicyClient`) and an evaluation on a virtual clock,
where a latency is a number of steps and costs nothing::

    controller = AsyncController(AsyncOptions(chunk_size_threshold=0.5))
    in_flight = None  # there is never more than one
    for step in range(max_steps):
        if in_flight is not None and in_flight[2] <= step:
            controller.deliver(in_flight[0], in_flight[1], step)
            in_flight = None
        request = controller.next_request(step, observation)
        if request is not None:
            in_flight = (request, policy(observation), step + latency_steps)  # latency_steps: 1 or more
        action = controller.next_action(step)
        if action is not None:  # None: nothing to execute yet, and the clock goes on without the simulator
            observation = simulate(action)

In each step what has arrived comes first, then :meth:`AsyncController.next_request`, then a reply that takes
no time at all, then :meth:`AsyncController.next_action`. Ask :meth:`AsyncController.wants_observation` before
taking or rendering images that may not be needed. Begin an episode with :meth:`AsyncController.reset`, and
forget the request in flight with it.

**The rules** are those of LeRobot's ``async_inference``, under its names. An observation is sent when
``queue_size / action_chunk_size <= chunk_size_threshold``, the size counted without the action of this step,
``action_chunk_size`` being the longest chunk so far. Timesteps count executed actions, not periods of time: a
step in which the queue is empty moves no timestep on, so a chunk is never too late for a robot that stood
still and waited for it. Actions not later than the last executed one are dropped, others merged by the
aggregate function. ``must_go`` is set on a request that leaves the queue empty.

**Where it differs from LeRobot**, and why:

- One request is in flight at a time. LeRobot sends an observation in every step below the threshold and its
  server skips all but the newest. Here the server answers every request, in order: a second observation would
  wait behind the first, and be older when it is answered than one taken when the first reply arrives.
- So LeRobot's flag, lowered when a must-go is sent and raised when actions arrive, is down exactly while a
  must-go is in flight, and needs no variable of its own. LeRobot's stays down for ever where that reply is
  lost, and the robot freezes. Here a request that is lost (:meth:`AsyncController.lost`, or
  ``reply_timeout_steps`` without an answer) is no longer in flight, and the next step asks again.
- An observation taken in a step without an action is numbered for the next action, not for the last one: the
  robot stood still, and LeRobot throws the first action of such a chunk away (all of it, if it has one only).
- What lies beyond a new chunk is kept; see :class:`robowire.client.action_queue.ActionQueue`.
- The filter of similar observations is off unless asked for, and it is the client's, not the server's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import numpy as np

from robowire.chunking import ActionChunk
from robowire.client.action_queue import ActionQueue, Merge, load_aggregate_function
from robowire.errors import ConfigurationError, SpecMismatch
from robowire.meta import MetaAction, MetaObs
from robowire.registry import nearest
from robowire.specs import HOLDS

__all__ = [
    "ON_EMPTY_QUEUE",
    "ON_STALE_ACTION",
    "RTC",
    "AsyncController",
    "AsyncOptions",
    "AsyncStatistics",
    "ChunkRequest",
    "Delivery",
    "require_declared_hold",
    "require_rtc",
]

ON_EMPTY_QUEUE = ("hold", "zero", "wait")

RTC = ("none", "trained", "guided")

NO_RTC = (
    "rtc is {!r}, but the policy has no real-time chunking (get_info says rtc 'none'): "
    "serve one that was trained with --rtc_max_delay_steps, or leave rtc out"
)
OTHER_RTC = "rtc is {!r}, but the policy's is {!r}, as get_info says: choose that"
# What is done in the place of an action that is too old; "as_empty" is what ``on_empty_queue`` says.
ON_STALE_ACTION = ("as_empty", *ON_EMPTY_QUEUE)

# How many delays the expectation of the next one is taken from; the paper's own buffer is of this kind.
_DELAYS_KEPT = 10

# The next action is always of the newest chunk that arrived, so its request is among the latest ones.
_REQUESTS_KEPT = 64

# Ages in steps are quotients: 3 / 30 is more than 0.1 in the last bit.
_ROUNDING_S = 1e-9


@dataclass(frozen=True)
class AsyncOptions:
    """When observations are sent and how chunks are merged. The first four are LeRobot's.

    Attributes:
        chunk_size_threshold: Send an observation when this share of a chunk, or less, is left: 0 when the
            queue is empty, 1 at every step.
        actions_per_chunk: Use so many actions of each chunk; ``None`` means all.
        fps: Control steps per second. Nothing here waits; it turns steps into milliseconds in statistics.
        aggregate_fn_name: Name in ``action_queue.AGGREGATE_FUNCTIONS``, or ``"module:function"``.
        on_empty_queue: What to execute while the queue is empty. ``"hold"`` stands still as ``action_hold``
            says; without that it executes nothing, as ``"wait"`` does, because to repeat an unknown action
            may mean to go on moving. ``"zero"`` is zeros whatever they mean, but for grippers (where
            ``action_hold`` does not say which: the last entry) and choices, which stay as they were.
            Before the first action of an episode all wait: there is nothing to hold.
        similar_atol: Skip an observation whose state is nearer than this (2-norm) to that of the last one
            sent, unless it must go. ``None`` sends all; LeRobot has 1.0.
        reply_timeout_steps: A request not answered for so many steps is given up, and the next observation
            sent. Its reply is used all the same if it comes before a later one. ``None`` leaves giving up to
            the caller, who may know better than a count of steps.
        action_hold: For each entry of an action ``"zero"``, ``"last"``, ``"choice"`` or ``"unknown"``, as in
            the spec of the body that executes it: :func:`robowire.specs.declared_hold`. Choices are never
            averaged. ``None`` where nothing is declared; :class:`robowire.AsyncPolicyClient` then takes what
            the policy declares.
        rtc: Real-time chunking. ``"trained"`` sends with each observation the actions that will be executed
            before the reply, to a policy that was trained to continue them; ``"guided"`` sends these and the
            ones behind them, to a policy whose sampling is guided by them; ``"none"`` sends none.
        rtc_max_delay_steps: Most actions of a prefix that the policy takes, as its server's info says;
            :class:`robowire.AsyncPolicyClient` asks for it. A longer delay is sent as this one.
        rtc_delay_error: For experiments: added to each delay that is sent, as if it was counted wrongly.
        max_action_age_s: An action is not executed when the newest observation that has a part in it was
            taken longer ago: what is left of its chunk is dropped, and the next observation must go. Counted
            in steps at ``fps``; :class:`robowire.AsyncPolicyClient` reads its clock. ``None`` executes all.
        on_stale_action: What is executed instead: ``"hold"``, ``"zero"`` or ``"wait"``, each as in
            ``on_empty_queue``; ``"as_empty"`` is whatever that says.

    Args:
        when_dry: Older name of ``on_empty_queue``, still accepted; it wins where both are given.
    """

    chunk_size_threshold: float = 0.5
    actions_per_chunk: int | None = None
    fps: float = 30.0
    aggregate_fn_name: str = "weighted_average"
    on_empty_queue: str = "hold"
    similar_atol: float | None = None
    reply_timeout_steps: int | None = None
    action_hold: tuple[str, ...] | None = None
    rtc: str = "none"
    rtc_max_delay_steps: int = 0
    rtc_delay_error: int = 0
    max_action_age_s: float | None = None
    on_stale_action: str = "as_empty"
    when_dry: InitVar[str | None] = None

    def __post_init__(self, when_dry: str | None) -> None:
        if when_dry is not None:
            object.__setattr__(self, "on_empty_queue", when_dry)
        if not 0 <= self.chunk_size_threshold <= 1:
            raise ValueError(f"chunk_size_threshold is {self.chunk_size_threshold}, expected 0 to 1")
        if self.on_empty_queue not in ON_EMPTY_QUEUE:
            hint = nearest(self.on_empty_queue, ON_EMPTY_QUEUE)
            names = ", ".join(ON_EMPTY_QUEUE)
            raise ValueError(f"on_empty_queue is {self.on_empty_queue!r}, expected one of {names}.{hint}")
        if self.rtc not in RTC:
            hint = nearest(self.rtc, RTC)
            raise ValueError(f"rtc is {self.rtc!r}, expected one of {', '.join(RTC)}.{hint}")
        if self.rtc_max_delay_steps < 0:
            raise ValueError(f"rtc_max_delay_steps is {self.rtc_max_delay_steps}, expected 0 or more")
        if self.rtc_delay_error and self.rtc == "none":
            raise ValueError(
                f"rtc_delay_error is {self.rtc_delay_error}, but rtc is 'none': no delay is sent"
            )
        if self.on_stale_action not in ON_STALE_ACTION:
            hint = nearest(self.on_stale_action, ON_STALE_ACTION)
            names = ", ".join(ON_STALE_ACTION)
            raise ValueError(f"on_stale_action is {self.on_stale_action!r}, expected one of {names}.{hint}")
        age_s = self.max_action_age_s
        if age_s is not None and not (age_s > 0 and math.isfinite(age_s)):
            raise ValueError(f"max_action_age_s is {age_s}, expected a positive number or None")
        if not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"fps is {self.fps}, expected a positive number")
        for name in ("actions_per_chunk", "reply_timeout_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1 or None")
        if self.action_hold is not None:
            object.__setattr__(self, "action_hold", tuple(self.action_hold))
            if not all(entry in HOLDS for entry in self.action_hold):
                raise ValueError(
                    f"action_hold is {self.action_hold!r}, expected a tuple of {', '.join(HOLDS)}, or None"
                )
        if self.similar_atol is not None and not self.similar_atol >= 0:
            raise ValueError(f"similar_atol is {self.similar_atol}, expected 0 or more, or None")


@dataclass(frozen=True, eq=False)
class ChunkRequest:
    """Send the observation of this step.

    Attributes:
        number: Counts the controller's requests, from 0.
        episode: Counts its episodes, from 0.
        step: Control step of the observation: its ``timestep`` on the wire, which thus advances even where
            the queue runs empty. A server begins a new episode where it does not.
        timestep: Timestep of the action that its chunk begins with: the one of this step, or the next one
            there will be.
        must_go: The queue is empty after this step.
        prefix: The queue from ``timestep`` on, float (n, action_dim), n 0 or more; ``None`` before the first
            chunk. With ``delay``, all that real-time chunking (arXiv 2506.07339) asks of a client: the first
            ``delay`` of these will be executed before the reply is there.
        delay: Steps to expect until the reply: the longest of the latest 10; ``None`` before the first.
            Counted in control steps and never read off a clock; where the queue is shorter, all of it will
            be executed.
    """

    number: int
    episode: int
    step: int
    timestep: int
    must_go: bool
    prefix: np.ndarray | None = field(repr=False)
    delay: int | None


@dataclass(frozen=True, eq=False)
class Delivery:
    """What a reply changed.

    Attributes:
        request: ChunkRequest that it answers.
        delay: Steps from the observation to now.
        raw: The policy's own chunk, float (n, action_dim).
        processed: What will be executed from now on if nothing else arrives, (action_dim,) each: after
            aggregation, and with what lies beyond the chunk.
        merge: Number of the chunk's actions that were merged, added, dropped.
    """

    request: ChunkRequest
    delay: int
    raw: np.ndarray
    processed: list[np.ndarray]
    merge: Merge


@dataclass
class AsyncStatistics:
    """Statistics of one episode.

    Attributes:
        fps: Control steps per second, from the options.
        queue_sizes: Actions in the queue at each step, before that step's one was taken.
        starved_steps: Steps in which it was empty, the wait for the first chunk among them.
        observation_ages: For each executed action, steps since the newest observation that has a part in it.
        changes: For each executed action, how far it is from the one executed before it: Euclidean, without
            the gripper, in the action's units; 0 for the first.
        borders: For each executed action, whether a newer chunk than the last one's has a part in it.
        delays: Steps from each answered observation to its reply.
        aggregated_actions: Actions merged with an earlier one of the same timestep.
        aggregated_steps: Executed actions that more than one chunk has a part in.
        dropped_actions: Actions that arrived after their timestep.
        stale_actions: Actions not executed because they were older than ``max_action_age_s``.
        requests: Observations to be sent.
        must_go_requests: Those of them that left the queue empty.
        filtered: Observations not sent because they were too similar.
        lost: Requests given up.
        ignored: Replies to an earlier episode, or older than one that had come already.
    """

    fps: float
    queue_sizes: list[int] = field(default_factory=list)
    starved_steps: int = 0
    observation_ages: list[int] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    borders: list[bool] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    aggregated_actions: int = 0
    aggregated_steps: int = 0
    dropped_actions: int = 0
    stale_actions: int = 0
    requests: int = 0
    must_go_requests: int = 0
    filtered: int = 0
    lost: int = 0
    ignored: int = 0

    def observation_age_ms(self, share: float) -> float | None:
        """Return the quantile of the ages of executed actions' observations at ``fps``, 0.5 being the median.

        ``None`` before the first action.
        """
        if not self.observation_ages:
            return None
        return float(np.quantile(self.observation_ages, share)) * 1e3 / self.fps

    def jump(self, *, at_borders: bool) -> float | None:
        """Return the mean of ``changes`` at borders of chunks, or within chunks; ``None`` without any."""
        chosen = [
            change for change, is_border in zip(self.changes[1:], self.borders[1:]) if is_border == at_borders
        ]
        return float(np.mean(chosen)) if chosen else None

    def summary(self) -> dict[str, Any]:
        """Return plain data for a JSON file: counts, quantiles of ages, means of queue sizes and changes."""
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return {
            **counts,
            "steps": len(self.queue_sizes),
            "queue_size_mean": float(np.mean(self.queue_sizes)) if self.queue_sizes else None,
            "observation_age_ms_p50": self.observation_age_ms(0.5),
            "observation_age_ms_p95": self.observation_age_ms(0.95),
            "jump_at_borders": self.jump(at_borders=True),
            "jump_within_chunks": self.jump(at_borders=False),
            "delay_steps_max": max(self.delays, default=None),
        }


class AsyncController:
    """The rules of this module for one robot. Not thread-safe.

    Attributes:
        options: As given.
        statistics: Statistics of the running episode; :meth:`reset` begins new ones.

    Raises:
        UnknownName: There is no such aggregate function.
    """

    def __init__(self, options: AsyncOptions | None = None) -> None:
        self.options = options or AsyncOptions()
        hold = self.options.action_hold or ()
        self._queue = ActionQueue(
            load_aggregate_function(self.options.aggregate_fn_name),
            choices=[index for index, entry in enumerate(hold) if entry == "choice"],
        )
        self._zeros = _zeros(self.options, self.options.on_empty_queue)
        self._stale_zeros = _zeros(self.options, self.options.on_stale_action)
        self._episode = -1
        self._requests = 0
        self._delays: deque[int] = deque(maxlen=_DELAYS_KEPT)  # outlives episodes: the network stays the same
        self._longest_chunk = 0  # so does the policy
        self.reset()

    @property
    def queue_size(self) -> int:
        """Number of actions in the queue."""
        return len(self._queue)

    def reset(self) -> None:
        """Begin an episode. The queue is emptied, and a reply to an earlier request will be ignored."""
        self._episode += 1
        self._queue.clear()
        self._in_flight: ChunkRequest | None = None
        self._answered = -1  # number of the latest request whose reply was taken
        self._raw: np.ndarray | None = None  # the latest chunk
        self._sent_state: np.ndarray | None = None
        self._last: MetaAction | None = None  # executed
        self._stale = False  # whether the queue is empty because its actions were too old
        self._observed_s: dict[int, float] = {}  # when the observations of the latest requests were taken
        self._step = -1  # the latest step this controller was asked about
        self._acted = False  # whether that step has had its action
        self._counted = -1  # the latest step in the statistics
        self._newest = -1  # observed_at of the action executed last
        self._ctrl = ("", "")
        self.statistics = AsyncStatistics(self.options.fps)

    def wants_observation(self, step: int) -> bool:
        """Return whether :meth:`next_request` would ask for the observation of this step, filter aside.

        Raises:
            ValueError: ``step`` is before the latest one of the episode.
        """
        self._check(step)
        if self._in_flight is not None and not self._overdue(self._in_flight, step):
            return False
        # The division of LeRobot, so that its thresholds mean the same to the last bit.
        return not self._longest_chunk or (
            self._left() / self._longest_chunk <= self.options.chunk_size_threshold
        )

    def next_request(
        self, step: int, observation: MetaObs, now_s: float | None = None
    ) -> ChunkRequest | None:
        """Return a request if this step's observation is to be sent, which then counts as sent.

        Args:
            step: Control steps since the episode began.
            observation: Only its ``state`` is looked at, and only by the filter.
            now_s: Seconds at which it was taken, on any clock; ``None`` counts the age of actions in steps.

        Raises:
            ValueError: ``step`` is before the latest one of the episode, or has had its action already.
        """
        if self._acted and step == self._step:
            raise ValueError(f"step {step} has its action already: call next_request before next_action")
        self._check(step)
        self._drop_stale(step, now_s)
        if not self.wants_observation(step):
            return None
        self._step, self._acted = step, False
        if self._in_flight is not None:
            self.lost(self._in_flight)
        must_go = self._left() == 0
        state = None if observation.state is None else np.array(observation.state)
        if not must_go and self._similar(state):
            self.statistics.filtered += 1
            return None
        self._sent_state = state
        if now_s is not None and self.options.max_action_age_s is not None:
            self._observed_s[step] = now_s
            if len(self._observed_s) > _REQUESTS_KEPT:
                del self._observed_s[next(iter(self._observed_s))]
        self._in_flight = ChunkRequest(
            number=self._requests,
            episode=self._episode,
            step=step,
            timestep=self._queue.next_timestep,
            must_go=must_go,
            prefix=self._prefix(),
            delay=max(self._delays, default=None),
        )
        self._requests += 1
        self.statistics.requests += 1
        self.statistics.must_go_requests += must_go
        return self._in_flight

    def fill(self, observation: MetaObs, request: ChunkRequest) -> MetaObs:
        """Return the observation to send for a request: a copy that shares its arrays.

        ``timestep`` is the step, and with real-time chunking ``prefix`` and ``delay`` are set. All prefixes
        have ``rtc_max_delay_steps`` rows, so that packed requests have one layout. Those behind the queue's
        end are zero, or NaN for a policy that is guided by the rows behind ``delay`` too.
        """
        options = self.options
        delay, count, guided = 0, 0, options.rtc == "guided"
        if options.rtc != "none" and request.prefix is not None and request.delay is not None:
            most = min(len(request.prefix), options.rtc_max_delay_steps)
            delay = min(max(request.delay + options.rtc_delay_error, 0), most)
            count = most if guided else delay
        if not count:
            return replace(observation, timestep=request.step)
        assert request.prefix is not None
        shape = (options.rtc_max_delay_steps, request.prefix.shape[1])
        prefix = np.full(shape, np.nan if guided else 0, request.prefix.dtype)
        prefix[:most] = request.prefix[:most]
        return replace(observation, timestep=request.step, prefix=prefix, delay=delay)

    def deliver(self, request: ChunkRequest, chunk: ActionChunk, step: int) -> Delivery | None:
        """Take the reply to a request.

        Args:
            request: What was answered.
            chunk: float (n, action_dim), kept, not copied.
            step: The control step it arrives in.

        Returns:
            What it changed; ``None`` where it is ignored, being of an earlier episode or older than a reply
            that has come already.

        Raises:
            SpecMismatch: Its actions do not fit those in the queue.
            ValueError: It is not a chunk of one robot, or ``step`` is before the latest one of the episode.
        """
        if request.episode != self._episode or request.number <= self._answered:
            self.statistics.ignored += 1
            return None
        self._check(step)
        hold = self.options.action_hold
        if hold is not None and chunk.actions.ndim == 2 and chunk.actions.shape[1] != len(hold):
            raise SpecMismatch(
                f"the chunk's actions have {chunk.actions.shape[1]} numbers, action_hold has {len(hold)}"
            )
        if self._in_flight is not None and self._in_flight.number <= request.number:
            self._in_flight = None
        actions = chunk.actions[: self.options.actions_per_chunk]
        merge = self._queue.merge(request.timestep, actions, observed_at=request.step)
        self._answered = request.number
        self._longest_chunk = max(self._longest_chunk, len(actions))
        self._raw = chunk.actions if chunk.raw_actions is None else chunk.raw_actions
        self._ctrl = (chunk.ctrl_space, chunk.ctrl_type)
        delay = step - request.step
        self._delays.append(delay)
        self.statistics.delays.append(delay)
        self.statistics.aggregated_actions += merge.aggregated
        self.statistics.dropped_actions += merge.dropped
        return Delivery(request, delay, self._raw, self._queue.peek(), merge)

    def lost(self, request: ChunkRequest) -> None:
        """Give a request up, so that the next observation is sent. A reply may be delivered after all."""
        if request is self._in_flight:
            self._in_flight = None
            self._sent_state = None
            self.statistics.lost += 1

    def next_action(self, step: int, now_s: float | None = None) -> MetaAction | None:
        """Return what to execute in this step; the caller may keep and change it.

        Args:
            step: Control step.
            now_s: Seconds now, on the clock whose readings :meth:`next_request` was given; ``None`` counts
                the age of actions in steps.

        Returns:
            ``None`` where nothing is to be executed: the queue is empty, and ``on_empty_queue`` is
            ``"wait"``, or ``"hold"`` without a declared ``action_hold``, or this is before the episode's
            first action. The same step may then be asked again.

        Raises:
            ValueError: ``step`` is before the latest one of the episode, or has had its action already.
        """
        self._check(step)
        if self._acted and step == self._step:
            raise ValueError(f"step {step} has its action already")
        if step != self._counted:
            self._counted = step
            self._drop_stale(step, now_s)
            self.statistics.queue_sizes.append(len(self._queue))
            self.statistics.starved_steps += not len(self._queue)
        action: MetaAction | None
        if len(self._queue):
            self._stale = False
            action = self._queued_action(step)
        else:
            action = self._action_without_queue()
        self._step, self._acted = step, action is not None
        return action

    @property
    def hold_problem(self) -> str | None:
        """Why nothing is executed while the queue is empty, and what to set; ``None`` if it is declared."""
        if self._zeros is None and self.options.on_empty_queue == "hold":
            return _UNDECLARED
        if self._stale_zeros is None and self.options.on_stale_action == "hold":
            return _UNDECLARED.replace("on_empty_queue", "on_stale_action")
        return None

    def _drop_stale(self, step: int, now_s: float | None) -> None:
        """Drop the queue if its next action is too old: what follows is of the same chunk or an older one."""
        longest_s = self.options.max_action_age_s
        if longest_s is None or not len(self._queue):
            return
        observed_at = self._queue.next_observed_at
        age_s = (step - observed_at) / self.options.fps
        if now_s is not None and observed_at in self._observed_s:
            age_s = now_s - self._observed_s[observed_at]
        if age_s > longest_s + _ROUNDING_S:
            self.statistics.stale_actions += self._queue.drop()
            self._stale = True

    def _queued_action(self, step: int) -> MetaAction:
        taken = self._queue.pop()
        self.statistics.observation_ages.append(step - taken.observed_at)
        last = None if self._last is None else self._last.action
        # The last entry is the gripper, which opens and closes at once whatever the chunks do.
        change = 0.0 if last is None else float(np.linalg.norm((taken.action - last)[:-1]))
        self.statistics.changes.append(change)
        self.statistics.borders.append(last is not None and taken.observed_at != self._newest)
        self._newest = taken.observed_at
        self.statistics.aggregated_steps += taken.chunks > 1
        self._last = MetaAction(*self._ctrl, action=taken.action)
        return replace(self._last, action=taken.action.copy())

    def _action_without_queue(self) -> MetaAction | None:
        on_empty, zeros = self.options.on_empty_queue, self._zeros
        if self._stale and self.options.on_stale_action != "as_empty":
            on_empty, zeros = self.options.on_stale_action, self._stale_zeros
        if self._last is None or on_empty == "wait":
            return None
        assert self._last.action is not None
        if zeros is None:
            return None  # see hold_problem
        action = self._last.action.copy()
        if isinstance(zeros, slice):
            action[zeros] = 0
        else:
            action[list(zeros)] = 0
        return replace(self._last, action=action)

    def _prefix(self) -> np.ndarray | None:
        """Return the actions that will be executed if nothing arrives, (n, action_dim)."""
        if self._raw is None:
            return None
        queued = self._queue.peek()
        return np.stack(queued) if queued else self._raw[:0]

    def _left(self) -> int:
        """Return how many actions are in the queue without the one of this step."""
        return max(len(self._queue) - 1, 0)

    def _overdue(self, request: ChunkRequest, step: int) -> bool:
        timeout = self.options.reply_timeout_steps
        return timeout is not None and step - request.step >= timeout

    def _similar(self, state: np.ndarray | None) -> bool:
        if self.options.similar_atol is None or state is None or self._sent_state is None:
            return False
        return bool(np.linalg.norm(state - self._sent_state) < self.options.similar_atol)

    def _check(self, step: int) -> None:
        if step < self._step:
            raise ValueError(f"step {step} comes after step {self._step}: reset begins an episode")


_UNDECLARED = (
    "on_empty_queue is 'hold', but what stands still is not declared: set action_hold ('zero' or 'last' for "
    "each entry of the action) in the spec of the simulator or of the policy, or in AsyncOptions, or choose "
    "on_empty_queue 'wait' or 'zero'"
)


def require_declared_hold(options: AsyncOptions) -> None:
    """Refuse ``"hold"`` where nobody declares what stands still.

    Raises:
        ConfigurationError: So it is; says what to set.
    """
    if options.on_empty_queue == "hold" and _zeros(options, "hold") is None:
        raise ConfigurationError(_UNDECLARED)
    if options.on_stale_action == "hold" and _zeros(options, "hold") is None:
        raise ConfigurationError(_UNDECLARED.replace("on_empty_queue", "on_stale_action"))


def _zeros(options: AsyncOptions, on_empty: str) -> tuple[int, ...] | slice | None:
    """Return which entries are zero while the queue is empty; ``None`` where nothing is to be executed."""
    hold = options.action_hold
    if hold is not None and "unknown" in hold and on_empty == "hold":
        hold = None
    if on_empty == "zero":
        if hold is None:
            return slice(-1)  # the gripper's zero would be a command to close
        if "zero" not in hold:
            # Positions are all "last", and which of them is a gripper is not said.
            return tuple(index for index, entry in enumerate(hold[:-1]) if entry != "choice")
        return tuple(index for index, entry in enumerate(hold) if entry in ("zero", "unknown"))
    if hold is None:
        return None
    return tuple(index for index, entry in enumerate(hold) if entry == "zero")


def require_rtc(chosen: str, policy: str) -> None:
    """Accept a policy that has the chosen real-time chunking.

    Raises:
        ConfigurationError: It has none, or another kind.
    """
    if chosen not in ("none", policy):
        raise ConfigurationError(
            NO_RTC.format(chosen) if policy == "none" else OTHER_RTC.format(chosen, policy)
        )
