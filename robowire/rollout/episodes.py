"""One episode: a policy's chunks executed by a simulator, and the film of it. No thread, file or socket."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Protocol, Sequence

import numpy as np

from robowire.client.async_controller import AsyncStatistics
from robowire.errors import VideoFailed
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec

__all__ = ["Episode", "FrameSink", "PolicySession", "Rollout", "SimulatorSession", "film", "run_episode"]


class PolicySession(Protocol):
    """What the loop needs of a :class:`robowire.PolicyClient`, whose methods these are."""

    def get_info(self) -> dict[str, Any]:
        """Return the policy's spec and what else its server says."""
        ...

    def reset(self) -> None:
        """Begin an episode."""
        ...

    def send_meta_obs(self, obs: MetaObs) -> list[Any]:
        """Return the chunk, a :class:`MetaAction` for each step."""
        ...

    def disconnect(self) -> None:
        """End the session."""
        ...


class SimulatorSession(Protocol):
    """What the loop needs of a :class:`robowire.SimulatorClient`, whose methods these are."""

    def select_simulator(self, name: str) -> None:
        """Start it."""
        ...

    def load_task(
        self,
        task_name: str,
        *,
        robot: str | None = None,
        controller: str | None = None,
        camera_names: Sequence[str] | None = None,
        image_height: int | None = None,
        image_width: int | None = None,
        horizon: int | None = None,
        control_hz: float | None = None,
        observation_format: str = "raw",
    ) -> SimulatorSpec:
        """Build the task; observations are :class:`MetaObs` in the format ``"meta"``."""
        ...

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode and return its first observation."""
        ...

    def step(self, action: Any) -> Any:
        """Execute one action; the result has ``observation`` and ``reward``."""
        ...

    def step_chunk(self, actions: Sequence[Any]) -> Any:
        """Execute actions up to the episode's end.

        The result: the last ``observation``, ``rewards``, ``terminated``, ``truncated``, ``info``, ``steps``.
        """
        ...

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return a picture for people, uint8 (height, width, 3), RGB."""
        ...

    def get_info(self) -> dict[str, Any]:
        """Return what the simulator's process says of itself, its ``versions`` among it."""
        ...

    def disconnect(self) -> None:
        """End the session and its process."""
        ...


class FrameSink(Protocol):
    """Takes the pictures of a film, in order."""

    def add(self, frame: np.ndarray) -> None:
        """Take uint8 (height, width, 3), RGB; every frame of a film has the first one's size."""
        ...


@dataclass(frozen=True)
class Episode:
    """One row of ``episodes.jsonl``.

    Attributes:
        episode: Its number, from 0.
        seed: The simulator's seed of it.
        init_state: The numbered initial state it began in; ``None`` where the task has none.
        success: ``None`` where the simulator did not finish it.
        steps: Executed actions.
        total_reward: Sum of the rewards; ``"return"`` in the file.
        error: Why the simulator did not finish it.
        infer_ms: Milliseconds from each observation sent to its actions received.
        seconds: From reset to the end, without the film.
        video: File name within the folder of results.
        mode: ``"sync"`` or ``"async"``.
        statistics: Of an asynchronous episode.
        late_steps: Of one in real time: steps that took longer than their period.
    """

    episode: int
    seed: int
    success: bool | None
    steps: int
    total_reward: float
    error: str | None
    infer_ms: tuple[float, ...]
    seconds: float
    video: str | None = None
    init_state: int | None = None
    mode: str = "sync"
    statistics: AsyncStatistics | None = None
    late_steps: int | None = None


@dataclass
class Rollout:
    """What was executed so far: enough to see the same episode again.

    Attributes:
        seed: The simulator's.
        init_state: The numbered initial state to begin in, where the task has them.
        actions: As they were executed.
        rewards: One for each of them.
        infer_ms: One for each inference.
        success: Known once the episode ended, as is the next.
        last: The observation after the last action.
        statistics: Of an asynchronous episode.
        late_steps: Of one in real time: steps that took longer than their period.
    """

    seed: int
    init_state: int | None = None
    actions: list[MetaAction] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)
    success: bool | None = None
    last: MetaObs | None = None
    statistics: AsyncStatistics | None = None
    late_steps: int | None = None

    def begin_again(self) -> None:
        """Forget all but what says which episode it is."""
        for executed in (self.actions, self.rewards, self.infer_ms):
            executed.clear()
        self.success = self.last = self.statistics = self.late_steps = None


def run_episode(
    act: Callable[[MetaObs], Sequence[MetaAction]],
    simulator: SimulatorSession,
    rollout: Rollout,
) -> None:
    """Run one episode into ``rollout``, which also tells how far it got where an exception ends it.

    A whole chunk goes to the simulator at once: nobody looks at the pictures in between.

    Args:
        act: Gives the actions to execute for an observation. None at all leaves the episode unfinished, with
            ``success`` None.
        simulator: With a task loaded.
        rollout: A fresh one.

    Raises:
        RobowireError: The simulator failed, or ``act`` did.
    """
    observation: MetaObs = simulator.reset(seed=rollout.seed, init_state=rollout.init_state)
    while actions := act(replace(observation, timestep=len(rollout.actions))):
        result = simulator.step_chunk(actions)
        rollout.actions += actions[: result.steps]
        rollout.rewards += [float(reward) for reward in result.rewards]
        if result.terminated or result.truncated:
            rollout.success, rollout.last = bool(result.info["success"]), result.observation
            return
        observation = result.observation


def film(
    simulator: SimulatorSession, rollout: Rollout, sink: FrameSink, *, stopped: Callable[[], bool]
) -> None:
    """Show ``sink`` a finished episode: execute its seed and actions again, with a picture after each step.

    So the counted episodes all run alike and at full speed, and only what someone will watch is drawn. The
    film is of the counted episode and not of one like it: every reward is compared, and the last state.

    Raises:
        VideoFailed: The second run differs from the first, or ``stopped`` became true.
        RobowireError: The simulator failed.
    """
    simulator.reset(seed=rollout.seed, init_state=rollout.init_state)
    sink.add(simulator.render())
    for step, (action, reward) in enumerate(zip(rollout.actions, rollout.rewards)):
        if stopped():
            raise VideoFailed("the evaluation was stopped")
        result = simulator.step(action)
        if float(result.reward) != reward:
            raise _not_repeated(f"reward {float(result.reward)!r} instead of {reward!r} at step {step}")
        sink.add(simulator.render())
    assert rollout.last is not None
    again, counted = np.asarray(result.observation.state), np.asarray(rollout.last.state)
    if not np.array_equal(again, counted):  # rewards may be zero all the way
        raise _not_repeated("another last state")


def _not_repeated(difference: str) -> VideoFailed:
    return VideoFailed(
        f"the counted seed and actions, executed again, gave {difference}: this simulator does not repeat "
        "its episodes, so they can't be filmed"
    )
