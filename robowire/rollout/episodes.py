"""One episode: a policy's chunks executed by a simulator, and its video. No thread, file or socket."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Protocol, Sequence

import numpy as np

from robowire.client.async_controller import AsyncStatistics
from robowire.errors import VideoFailed
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.video_layout import Caption, compose_frame
from robowire.specs import SimulatorSpec

__all__ = [
    "EpisodeResult",
    "FrameSink",
    "Rollout",
    "RolloutPolicy",
    "RolloutSimulator",
    "record_video",
    "run_episode",
]


class RolloutPolicy(Protocol):
    """Methods of :class:`robowire.PolicyClient` that the loop calls."""

    def get_info(self) -> dict[str, Any]:
        """Return the policy's spec and what else its server reports."""
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


class RolloutSimulator(Protocol):
    """Methods of :class:`robowire.SimulatorClient` that the loop calls."""

    def select_simulator(self, name: str) -> None:
        """Start the simulator of this name."""
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
        """Return an image for people, uint8 (height, width, 3), RGB."""
        ...

    def get_info(self) -> dict[str, Any]:
        """Return what the simulator's process reports: its ``versions`` and more."""
        ...

    def disconnect(self) -> None:
        """End the session and its process."""
        ...


class FrameSink(Protocol):
    """Receiver of a video's frames, in order."""

    def add(self, frame: np.ndarray) -> None:
        """Take uint8 (height, width, 3), RGB; every frame of a video has the first one's size."""
        ...


class StepSink(Protocol):
    """Receiver of an episode's steps, in order."""

    def __call__(
        self, step: int, observation: MetaObs, action: MetaAction | None, reward: float | None
    ) -> None:
        """Take one step.

        Args:
            step: Its number, from 0.
            observation: Observation before the action.
            action: The action; ``None`` after the last one.
            reward: The action's reward; ``None`` after the last one.
        """
        ...


class EpisodeLog(Protocol):
    """Receiver of whole episodes, for people who look at them; any thread may call it."""

    def begin_episode(
        self,
        episode: int,
        *,
        seed: int,
        success: bool,
        fps: float,
        camera_names: Sequence[str],
        chunks: Sequence[tuple[int, np.ndarray]],
    ) -> StepSink:
        """Return what takes the steps of an episode that was executed.

        Args:
            episode: Its number.
            seed: Its seed.
            success: Its result.
            fps: Control steps a second.
            camera_names: Cameras of the observations' images, in their order.
            chunks: Step of each observation that the policy was asked with, and the actions (n, action_dim)
                that it answered.
        """
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """One row of ``episodes.jsonl``.

    Attributes:
        episode: Number of the episode, from 0.
        seed: Seed given to the simulator.
        init_state: Number of the initial state; ``None`` where the task has none.
        success: ``None`` where the simulator did not finish it.
        steps: Executed actions.
        total_reward: Sum of the rewards; ``"return"`` in the file.
        error: Why the simulator did not finish it.
        infer_ms: Milliseconds from each observation sent to its actions received.
        seconds: Duration from the reset to the end, without the video, in seconds.
        video: File name within the folder of results.
        mode: ``"sync"`` or ``"async"``.
        statistics: Queue statistics of an asynchronous episode.
        late_steps: Steps that took longer than their period, of an episode in real time.
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
    """What was executed so far: enough to repeat the episode.

    Attributes:
        seed: Seed given to the simulator.
        init_state: Number of the initial state, where the task has them.
        actions: Executed actions.
        rewards: One reward for each action.
        infer_ms: Milliseconds of each inference.
        chunks: Step of each observation sent, and the actions (n, action_dim) it was answered with; kept
            for a log only.
        success: Result, known once the episode ended.
        last: Observation after the last action, known once the episode ended.
        statistics: Queue statistics of an asynchronous episode.
        late_steps: Steps that took longer than their period, of an episode in real time.
    """

    seed: int
    init_state: int | None = None
    actions: list[MetaAction] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)
    chunks: list[tuple[int, np.ndarray]] = field(default_factory=list)
    success: bool | None = None
    last: MetaObs | None = None
    statistics: AsyncStatistics | None = None
    late_steps: int | None = None

    def begin_again(self) -> None:
        """Clear everything but the seed and the initial state."""
        self.actions.clear()
        self.rewards.clear()
        self.infer_ms.clear()
        self.chunks.clear()
        self.success = self.last = self.statistics = self.late_steps = None


def run_episode(
    act: Callable[[MetaObs], Sequence[MetaAction]],
    simulator: RolloutSimulator,
    rollout: Rollout,
) -> None:
    """Run one episode into ``rollout``, which also holds the steps so far where an exception ends it.

    A whole chunk goes to the simulator at once: the images in between are not needed.

    Args:
        act: Returns the actions to execute for an observation. An empty list leaves the episode unfinished,
            with ``success`` None.
        simulator: Simulator with a task loaded.
        rollout: New rollout.

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


def record_video(
    simulator: RolloutSimulator,
    rollout: Rollout,
    sink: FrameSink,
    *,
    stopped: Callable[[], bool],
    hold: int = 0,
    log: StepSink | None = None,
) -> None:
    """Execute the seed and actions of a finished episode again, with a frame for ``sink`` after each step.

    So all counted episodes run alike and at full speed, and only the frames of videos are rendered. The
    video shows the counted episode and not a similar one: every reward is compared, and the last state.

    Args:
        simulator: Simulator with the episode's task loaded.
        rollout: The finished episode.
        sink: Takes the frames: see :func:`robowire.rollout.video_layout.compose_frame`.
        stopped: Whether to give up.
        hold: How often the last frame is repeated, so that the end can be seen.
        log: Takes the steps too.

    Raises:
        VideoFailed: The second run differs from the first, or ``stopped`` became true.
        RobowireError: The simulator failed.
    """
    steps, total = len(rollout.actions), 0.0

    def show(observation: MetaObs, step: int) -> np.ndarray:
        success = rollout.success if step == steps else None
        reward = rollout.rewards[step - 1] if step else None
        caption = Caption(rollout.seed, step, steps, total, success, reward)
        frame = compose_frame(simulator.render(), observation.image, caption)
        sink.add(frame)
        return frame

    observation: MetaObs = simulator.reset(seed=rollout.seed, init_state=rollout.init_state)
    frame = show(observation, 0)
    for step, (action, reward) in enumerate(zip(rollout.actions, rollout.rewards)):
        if stopped():
            raise VideoFailed("the evaluation was stopped")
        result = simulator.step(action)
        if float(result.reward) != reward:
            raise _not_repeated(f"reward {float(result.reward)!r} instead of {reward!r} at step {step}")
        if log is not None:
            log(step, observation, action, reward)
        observation, total = result.observation, total + reward
        frame = show(observation, step + 1)
    if log is not None:
        log(steps, observation, None, None)
    for _ in range(hold):
        sink.add(frame)
    assert rollout.last is not None
    again, counted = np.asarray(observation.state), np.asarray(rollout.last.state)
    if not np.array_equal(again, counted):  # rewards may be zero all the way
        raise _not_repeated("another last state")


def _not_repeated(difference: str) -> VideoFailed:
    return VideoFailed(
        f"the counted seed and actions, executed again, gave {difference}: this simulator does not repeat "
        "its episodes, so no video of them can be recorded"
    )
