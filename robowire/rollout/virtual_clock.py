"""Asynchronous episodes on a virtual clock: a latency is a number of control steps, and costs no waiting.

The rules are those of ``client.async_controller``. Each inference is really done at once; only its delivery
is put off, by ``ceil(latency_ms * fps / 1000)`` control steps. No decision looks at a wall clock, and the
latency of request k of an episode depends on the episode's seed and k alone. So an episode is a pure function
of its seed and the latency, as far as policy and simulator are.

Where the controller has nothing to execute (before an episode's first action, and with
``on_empty_queue="wait"``), virtual time passes and the simulator stands still, which flatters ``"wait"``: a
real world goes on. What an empty queue costs there is what ``"hold"`` and ``"zero"`` show: their actions are
executed, and are steps of the episode.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, ClassVar, Sequence, TypeVar

import numpy as np

from robowire.chunking import ActionChunk
from robowire.client.async_controller import (
    AsyncController,
    AsyncOptions,
    AsyncStatistics,
    require_rtc,
)
from robowire.errors import ConfigurationError
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import Rollout, RolloutSimulator

__all__ = ["AsyncClock", "Latency", "VirtualClock", "run_virtual_episode"]

Clock = TypeVar("Clock", bound="AsyncClock")

# A minute: an episode is over by then, and a wrong unit is noticed.
_MAX_MS = 60_000.0

# Actions sent to the simulator at once, at most: enough that few images are rendered without being used.
_MAX_WAITING = 32


@dataclass(frozen=True)
class Latency:
    """How late replies are: always ``mean`` without the rest, else drawn, else as recorded.

    Attributes:
        text: What :meth:`parse` read.
        mean: Milliseconds.
        std: Of a normal distribution, of which what is below 0 counts as 0.
        recorded: Milliseconds, taken in order from a start that depends on the episode's seed.
    """

    text: str = "0"
    mean: float = 0.0
    std: float = 0.0
    recorded: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> Latency:
        """Read ``"80"``, ``"normal:80,20"`` or ``"recorded:FILE"``, the file with one number a line.

        Raises:
            ConfigurationError: It is something else, or the file cannot be used.
        """
        kind, separator, rest = text.partition(":")
        if kind == "recorded" and separator:
            return cls(text, recorded=_read_recorded(Path(rest)))
        mean, comma, std = rest.partition(",") if kind == "normal" and separator else (text, "", "0")
        values = _milliseconds(mean), _milliseconds(std)
        if values[0] is None or values[1] is None or bool(separator) != bool(comma):
            raise ConfigurationError(
                f"latency_ms is {text!r}, expected milliseconds from 0 to {_MAX_MS:g}, "
                "normal:mean,std of such, or recorded:FILE"
            )
        return cls(text, values[0], values[1])

    def milliseconds(self, seed: int, request: int) -> float:
        """Return the latency of one request of the episode of this seed, counted from 0."""
        if self.recorded:
            start = int(np.random.default_rng(seed).integers(len(self.recorded)))
            return self.recorded[(start + request) % len(self.recorded)]
        if self.std:
            return max(float(np.random.default_rng([seed, request]).normal(self.mean, self.std)), 0.0)
        return self.mean

    def steps(self, seed: int, request: int, *, fps: float) -> int:
        """Return the same as control steps, rounded up."""
        exact = self.milliseconds(seed, request) * fps / 1000
        nearest = round(exact)
        # k * 1000 / fps * fps / 1000 is k and a few last bits, which are no further step.
        return nearest if math.isclose(exact, nearest, rel_tol=1e-9) else math.ceil(exact)


@dataclass(frozen=True)
class AsyncClock:
    """An asynchronous evaluation, whichever clock it runs on.

    Attributes:
        rules: When an observation is sent, and what its reply changes. Their ``fps`` gives way to the one
            here.
        latency: How late replies are.
        fps: Control steps a second; ``None`` means the simulator's ``control_hz``.
    """

    name: ClassVar[str]
    rules: AsyncOptions = field(default_factory=AsyncOptions)
    latency: Latency = field(default_factory=Latency)
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.fps is not None:
            object.__setattr__(self, "rules", replace(self.rules, fps=self.fps))

    def at(
        self: Clock,
        control_hz: float | None,
        *,
        action_hold: tuple[str, ...] | None = None,
        rtc: str = "none",
        rtc_max_delay_steps: int = 0,
    ) -> Clock:
        """Return the same for a simulator with this rate, which counts where no ``fps`` was chosen.

        Args:
            control_hz: Rate of the simulator.
            action_hold: What stands still while the queue is empty, where the rules do not say.
            rtc: Real-time chunking of the policy.
            rtc_max_delay_steps: Most actions of a prefix that it takes.

        Raises:
            ConfigurationError: Neither rate is known, or the policy has no such real-time chunking.
        """
        require_rtc(self.rules.rtc, rtc)
        if not (self.fps or control_hz):
            raise ConfigurationError("the simulator does not say how fast it acts: choose --fps")
        rules = replace(
            self.rules,
            action_hold=self.rules.action_hold or action_hold,
            rtc_max_delay_steps=rtc_max_delay_steps if self.rules.rtc != "none" else 0,
        )
        return replace(self, rules=rules, fps=self.fps or control_hz)


@dataclass(frozen=True)
class VirtualClock(AsyncClock):
    """Virtual time: a latency is the whole of how late a reply is, inference and network included."""

    name = "virtual"


def run_virtual_episode(
    infer: Callable[[MetaObs], Sequence[MetaAction]],
    simulator: RolloutSimulator,
    rollout: Rollout,
    clock: VirtualClock,
) -> None:
    """Run one episode into ``rollout``, as :func:`robowire.rollout.episodes.run_episode` does.

    Actions wait here until an observation is wanted, and go to the simulator together: the images in
    between are not needed.

    Args:
        infer: Returns the whole chunk for an observation. An empty list leaves the episode unfinished, with
            ``success`` None.
        simulator: Simulator with a task loaded.
        rollout: New rollout. Its ``statistics`` are set too.
        clock: Clock from :meth:`VirtualClock.at`.

    Raises:
        RobowireError: The simulator failed, or ``infer`` did.
    """
    # One for each episode: what a controller remembers of earlier ones would make their order count.
    controller = AsyncController(clock.rules)
    rollout.statistics = controller.statistics
    observation: MetaObs = simulator.reset(seed=rollout.seed, init_state=rollout.init_state)
    delivered = 0  # replies
    in_flight = None  # request, chunk, the step that it arrives in
    waiting: list[tuple[MetaAction, _Mark]] = []
    for step in itertools.count():
        if in_flight is not None and in_flight[2] <= step:
            # Came before this step began, so that this step may ask again, as it does in real time.
            controller.deliver(in_flight[0], in_flight[1], step)
            in_flight, delivered = None, delivered + 1
        wanted = controller.wants_observation(step)
        if waiting and (wanted or len(waiting) == _MAX_WAITING):
            result = simulator.step_chunk([action for action, _ in waiting])
            rollout.actions += [action for action, _ in waiting[: result.steps]]
            rollout.rewards += [float(reward) for reward in result.rewards]
            if result.terminated or result.truncated:
                rollout.success, rollout.last = bool(result.info["success"]), result.observation
                mark = waiting[result.steps - 1][1]
                rollout.statistics = mark.of(controller.statistics)
                # A reply that is on its way at the end counts on no clock: in real time it is never received.
                del rollout.infer_ms[mark.delivered :]
                return
            observation, waiting = result.observation, []
        request = controller.next_request(step, observation) if wanted else None
        if request is not None:
            actions = infer(controller.fill(observation, request))
            if not actions:
                return
            arrives = step + clock.latency.steps(rollout.seed, request.number, fps=clock.rules.fps)
            if arrives == step:
                controller.deliver(request, _chunk(actions), step)
                delivered += 1
            else:
                in_flight = request, _chunk(actions), arrives
        action = controller.next_action(step)
        if action is not None:
            waiting.append((action, _Mark.at(controller.statistics, delivered)))


@dataclass(frozen=True)
class _Mark:
    """How far the statistics were when an action was taken: the episode may end before those behind it."""

    steps: int
    executed: int
    starved: int
    aggregated: int
    delivered: int

    @classmethod
    def at(cls, seen: AsyncStatistics, delivered: int) -> _Mark:
        executed = len(seen.observation_ages)
        return cls(len(seen.queue_sizes), executed, seen.starved_steps, seen.aggregated_steps, delivered)

    def of(self, seen: AsyncStatistics) -> AsyncStatistics:
        return replace(
            seen,
            queue_sizes=seen.queue_sizes[: self.steps],
            observation_ages=seen.observation_ages[: self.executed],
            changes=seen.changes[: self.executed],
            borders=seen.borders[: self.executed],
            starved_steps=self.starved,
            aggregated_steps=self.aggregated,
        )


def _chunk(actions: Sequence[MetaAction]) -> ActionChunk:
    rows = np.stack([np.asarray(action.action) for action in actions])
    return ActionChunk(rows, actions[0].ctrl_space, actions[0].ctrl_type)


def _milliseconds(text: str) -> float | None:
    """Return a number within the bounds, or ``None``."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= _MAX_MS else None


def _read_recorded(path: Path) -> tuple[float, ...]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigurationError(f"cannot read the recorded latencies of {path}: {reason}") from exc
    if not lines:
        raise ConfigurationError(f"{path} is empty, expected a number of milliseconds in each line")
    values = []
    for number, line in enumerate(lines, 1):
        value = _milliseconds(line)
        if value is None:
            raise ConfigurationError(
                f"{path}, line {number} is {line!r}, expected milliseconds from 0 to {_MAX_MS:g}"
            )
        values.append(value)
    return tuple(values)
