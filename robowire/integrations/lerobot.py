"""LeRobot's names for an evaluation in a simulator: the client, its configuration, its observations.

For scripts written against LeRobot's ``async_inference``: the import changes, the rest stays. ::

    config = SimClientConfig(
        env=LiberoEnv(task="libero_10"), policy_type="act", pretrained_name_or_path="lerobot/act_libero_10",
        actions_per_chunk=50, server_address="localhost:5000", n_episodes=10,
    )
    client = SimClient(config)
    if client.start():
        threading.Thread(target=client.receive_actions, daemon=True).start()
        client.control_loop(task="")
        client.stop()

The loop is :func:`robowire.rollout.evaluation.evaluate`, so there are results, errors and seeds as everywhere
here. ``docs/lerobot.md`` says what maps to what, and what has no meaning here. Needs Python 3.10 and numpy.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol

import numpy as np

from robowire.address import parse_address, split_address
from robowire.client.action_queue import load_aggregate_function
from robowire.client.async_controller import AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import ChunkResult, SimulatorClient
from robowire.errors import (
    ConfigurationError,
    EvaluationStopped,
    InvalidParams,
    LocalProtocolError,
    TaskNotFound,
    TransportError,
)
from robowire.interfaces import StepResult
from robowire.meta import MetaObs
from robowire.rollout.episodes import Episode
from robowire.rollout.evaluation import EvaluateOptions, evaluate
from robowire.rollout.real_clock import RealClock
from robowire.rollout.virtual_clock import AsyncClock, Latency, VirtualClock

__all__ = [
    "Env",
    "EnvConfig",
    "LiberoEnv",
    "RobosuiteEnv",
    "SimClient",
    "SimClientConfig",
    "from_lerobot",
    "to_lerobot",
]

_log = logging.getLogger(__name__)

_STATE, _TASK = "observation.state", "task"
_IMAGE = re.compile(r"observation\.images\.image([2-9]|[1-9]\d+)?$")

_CLOCKS: Mapping[str, type[AsyncClock]] = {clock.name: clock for clock in (RealClock, VirtualClock)}


# observations


def to_lerobot(observation: MetaObs) -> dict[str, Any]:
    """Return an observation under LeRobot's names, as its policies take them (without a batch axis).

    Returns:
        ``observation.images.image``, ``observation.images.image2``, ... in the order of the policy's
        cameras: float32 (3, height, width), 0 to 1; ``observation.state``: float32 (state_dim,); ``task``:
        the instruction. What there is not is left out. Fresh arrays.
    """
    named: dict[str, Any] = {_TASK: observation.raw_lang}
    for number, picture in enumerate(() if observation.image is None else observation.image, 1):
        named[_image_name(number)] = picture.astype(np.float32) / np.float32(255)
    if observation.state is not None:
        named[_STATE] = np.array(observation.state, np.float32)
    return named


def from_lerobot(observation: Mapping[str, Any], *, timestep: int = -1) -> MetaObs:
    """Return the observation that LeRobot's names tell of; other names are left out.

    Args:
        observation: Pictures are float (3, height, width), 0 to 1, as LeRobot's policies take them, or uint8
            (height, width, 3), as its robots and simulators give them; all of one size.
        timestep: Step of the episode.

    Raises:
        InvalidParams: A picture or state is not of this form, or the pictures are not numbered without a gap.
    """
    names = sorted((name for name in observation if _IMAGE.match(name)), key=lambda name: (len(name), name))
    wanted = [_image_name(number) for number in range(1, len(names) + 1)]
    if names != wanted:
        raise InvalidParams(f"the pictures are called {', '.join(names)}, expected {', '.join(wanted)}")
    pictures = [_picture(name, np.asarray(observation[name])) for name in names]
    if len({picture.shape for picture in pictures}) > 1:
        sizes = ", ".join(f"{name} {picture.shape}" for name, picture in zip(names, pictures))
        raise InvalidParams(f"the pictures differ in size: {sizes}")
    state = None
    if _STATE in observation:
        state = np.array(observation[_STATE], np.float32)
        if state.ndim != 1:
            raise InvalidParams(f"{_STATE} has shape {state.shape}, expected (state_dim,)")
    return MetaObs(
        state=state,
        image=np.stack(pictures) if pictures else None,
        raw_lang=str(observation.get(_TASK, "")),
        timestep=timestep,
    )


def _image_name(number: int) -> str:
    return f"observation.images.image{'' if number == 1 else number}"


def _picture(name: str, picture: np.ndarray) -> np.ndarray:
    """Return uint8 (3, height, width)."""
    if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return np.ascontiguousarray(picture.transpose(2, 0, 1))
    if picture.dtype.kind == "f" and picture.ndim == 3 and picture.shape[0] == 3:
        if not (picture.min(initial=0) >= 0 and picture.max(initial=0) <= 1):
            raise InvalidParams(f"{name} is {picture.dtype} from beyond 0 to 1, expected 0 to 1")
        levels: np.ndarray = np.rint(picture * 255).astype(np.uint8)
        return levels
    raise InvalidParams(
        f"{name} is {picture.dtype} {picture.shape}, expected float (3, height, width) or uint8 "
        "(height, width, 3)"
    )


# configuration


class Env(Protocol):
    """What is looked at of an environment's configuration; LeRobot's own has it too."""

    @property
    def type(self) -> str:
        """The simulator's name: ``"libero"``, ``"robosuite"``, ..."""
        ...

    @property
    def task(self) -> str | None:
        """A task, a suite, or several of either with commas."""
        ...


@dataclass(frozen=True)
class EnvConfig:
    """An environment.

    Attributes:
        type: The simulator's name.
        task: A task, a suite (all its tasks are run), or several of either with commas.
        task_ids: Of each suite, only the tasks with these numbers; ``None`` means all.
        episode_length: Steps after which an episode is over; ``None`` means the task's own.
        camera_name: The simulator's cameras in the order of the policy's, with commas; LeRobot's ending
            ``_image`` may be there. ``None`` means those that the policy server names.
    """

    type: str
    task: str | None = None
    task_ids: tuple[int, ...] | None = None
    episode_length: int | None = None
    camera_name: str | None = None


@dataclass(frozen=True)
class LiberoEnv(EnvConfig):
    """LIBERO, with LeRobot's default task."""

    type: str = "libero"
    task: str | None = "libero_10"


@dataclass(frozen=True)
class RobosuiteEnv(EnvConfig):
    """robosuite, which LeRobot does not have."""

    type: str = "robosuite"
    task: str | None = "Lift"


@dataclass(frozen=True)
class SimClientConfig:
    """What is evaluated, under LeRobot's names; those from ``simulator_address`` on are ours.

    Attributes:
        policy_type: Of the policy that the server is expected to hold, such as ``"act"``; it is not loaded
            from here.
        pretrained_name_or_path: Its checkpoint; the last part of it is compared with what the server says.
        env: Where it is evaluated.
        actions_per_chunk: Use so many actions of each chunk.
        task: Instruction for the policy; empty means the task's own.
        server_address: ``host:port`` of the policy server.
        policy_device: Noted; the server was told its device when it was started.
        client_device: Noted; actions are numpy arrays.
        chunk_size_threshold: Ask when this share of a chunk is left, or less.
        fps: Control steps a second; ``None`` means the simulator's own rate.
        aggregate_fn_name: How chunks that overlap are put together.
        n_episodes: Of each task.
        seed: Evaluation seed, 0 or more; :func:`robowire.rollout.seeds.episode_seed` gives those of episodes.
        save_videos: Whether to film, which takes ffmpeg.
        max_episodes_rendered: How many of the first episodes of each task.
        debug_visualize_queue_size: Noted; the rows of the results have the queue's mean size.
        simulator_address: ``host:port`` of the simulator server.
        output_dir: Folder for the results, with a folder for each task where there are several.
        clock: ``"real"`` or ``"virtual"``.
        latency_ms: ``"80"``, ``"normal:80,20"``, ``"recorded:FILE"``: the whole latency of a virtual clock,
            added to the real one in real time.
        num_envs: Simulators at one time.
        on_empty_queue: What to execute while the queue is empty: ``"hold"``, ``"zero"``, ``"wait"``.
        policy_wait_s: Seconds that the policy server may be away in the middle.
        overwrite: Whether results in ``output_dir`` may be replaced.
        resume: Whether they may be added to.
        token: Shown to the policy server.
        simulator_token: Shown to the simulator server.
    """

    policy_type: str
    pretrained_name_or_path: str
    env: Env
    actions_per_chunk: int | None = None
    task: str = ""
    server_address: str = "localhost:5000"
    policy_device: str = "cpu"
    client_device: str = "cpu"
    chunk_size_threshold: float = 0.5
    fps: float | None = None
    aggregate_fn_name: str = "weighted_average"
    n_episodes: int = 10
    seed: int = 0
    save_videos: bool = False
    max_episodes_rendered: int = 10
    debug_visualize_queue_size: bool = False
    simulator_address: str = "localhost:5555"
    output_dir: str = "outputs/lerobot-eval"
    clock: str = "real"
    latency_ms: str = "0"
    num_envs: int = 1
    on_empty_queue: str = "hold"
    policy_wait_s: float = 60.0
    overwrite: bool = False
    resume: bool = False
    token: str | None = field(default=None, repr=False)
    simulator_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("policy_type", "pretrained_name_or_path"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, expected what the policy server holds")
        if not self.env.task:
            raise ValueError("env.task is empty, expected a task or a suite")
        if self.clock not in _CLOCKS:
            raise ValueError(f"clock is {self.clock!r}, expected one of {', '.join(_CLOCKS)}")
        for name in ("server_address", "simulator_address"):
            try:
                parse_address(name, getattr(self, name), example="localhost:5000")
            except ConfigurationError as exc:
                raise ValueError(str(exc)) from None
        load_aggregate_function(self.aggregate_fn_name)
        self.asynchronous()
        self.options("", "")

    def asynchronous(self) -> AsyncClock:
        """Return the clock, with the rules and the latency."""
        rules = AsyncOptions(
            chunk_size_threshold=self.chunk_size_threshold,
            actions_per_chunk=self.actions_per_chunk,
            aggregate_fn_name=self.aggregate_fn_name,
            on_empty_queue=self.on_empty_queue,
        )
        return _CLOCKS[self.clock](rules, Latency.parse(self.latency_ms), self.fps)

    def options(self, task: str, folder: str) -> EvaluateOptions:
        """Return what one task's evaluation is."""
        cameras: str | None = getattr(self.env, "camera_name", None)
        return EvaluateOptions(
            Path(self.output_dir) / folder,
            simulator=self.env.type,
            task=task,
            num_episodes=self.n_episodes,
            num_envs=self.num_envs,
            seed=self.seed,
            record_video=str(self.max_episodes_rendered) if self.save_videos else "off",
            max_episode_steps=getattr(self.env, "episode_length", None),
            camera_names=None if cameras is None else tuple(_camera(name) for name in cameras.split(",")),
            overwrite=self.overwrite,
            resume=self.resume,
            asynchronous=self.asynchronous(),
        )


def _camera(name: str) -> str:
    """Return the simulator's name of a camera, for LeRobot's name of its picture."""
    name = name.strip()
    return name[: -len("_image")] if name.endswith("_image") else name


# the client


class SimClient:
    """Evaluates a policy that a robowire policy server holds, in simulators of a robowire simulator server.

    Args:
        config: What is evaluated.
        ffmpeg: The program that makes films; by default the one on ``PATH``.
        command_line: Written into the summaries.
        on_episode: Called after each episode, from the thread of :meth:`control_loop`, with its task, itself,
            and that task's summary so far.

    Attributes:
        tasks: What is run, known after :meth:`start`.
        results: The summaries of the tasks that were run, by task.
    """

    def __init__(
        self,
        config: SimClientConfig,
        *,
        ffmpeg: str | None = None,
        command_line: tuple[str, ...] = (),
        on_episode: Callable[[str, Episode, dict[str, Any]], None] = lambda task, episode, summary: None,
    ) -> None:
        self.config = config
        self.tasks: list[str] = []
        self.results: dict[str, dict[str, Any]] = {}
        self._ffmpeg = ffmpeg
        self._command_line = command_line
        self._on_episode = on_episode
        self._stopped = threading.Event()
        self._stopped.set()

    def start(self) -> bool:
        """Look at both servers and find the tasks; return whether both answer, the log says which does not.

        Raises:
            ConfigurationError: The policy server holds another policy.
            RequestError: A server refuses: there is no such simulator, task or suite, or no room.
        """
        try:
            self._check_policy()
            self.tasks = self._find_tasks()
        except TransportError as exc:
            _log.error("cannot start: %s", exc)
            return False
        self.results = {}
        self._stopped.clear()
        return True

    def receive_actions(self, verbose: bool = False) -> None:
        """Return when the client is stopped. Actions are received by a thread that each episode has."""
        self._stopped.wait()

    def control_loop(self, task: str = "", verbose: bool = False) -> dict[str, dict[str, Any]]:
        """Run every episode of every task, and return the summaries by task.

        Args:
            task: Instruction for the policy; empty means the configuration's, or else each task's own.
            verbose: LeRobot's, noted; logging levels say how much is told.

        Raises:
            LocalProtocolError: :meth:`start` was not called, or said no.
            EvaluationStopped: A server is gone and no further episode can run.
            SpecMismatch: The policy does not fit a task.
        """
        if self._stopped.is_set():
            raise LocalProtocolError("this SimClient does not run: call start first, and look at its answer")
        for number, name in enumerate(self.tasks):
            folder = "" if len(self.tasks) == 1 else f"{number:03d}-{name.replace('/', '-')}"
            try:
                self._evaluate(name, folder, task or self.config.task)
            except _StopRequested:
                break
        return self.results

    def stop(self) -> None:
        """End the loop after the episode that runs. May be called twice, and from any thread."""
        self._stopped.set()

    def _evaluate(self, name: str, folder: str, instruction: str) -> None:
        config = self.config
        host, port = split_address(config.server_address)
        simulator = split_address(config.simulator_address)

        def on_episode(episode: Episode, summary: dict[str, Any]) -> None:
            self.results[name] = summary
            self._on_episode(name, episode, summary)
            if self._stopped.is_set():
                raise _StopRequested("stop was called")

        def open_async(rules: AsyncOptions, added_s: Callable[[int], float]) -> AsyncPolicyClient:
            return AsyncPolicyClient(
                host,
                port,
                rules,
                patience_s=max(config.policy_wait_s, 1e-3),
                token=config.token,
                added_latency_s=added_s,
            )

        summary = evaluate(
            config.options(name, folder),
            open_policy=lambda: PolicyClient(host, port, retries=0, token=config.token),
            open_simulator=lambda: _Instructed(*simulator, instruction, token=config.simulator_token),
            open_async_policy=open_async,
            policy_wait_s=config.policy_wait_s,
            ffmpeg=self._ffmpeg or shutil.which("ffmpeg"),
            command_line=self._command_line,
            on_episode=on_episode,
        )
        self.results[name] = summary
        _log.info("%s: %d of %d succeeded", name, summary["successes"], summary["episodes"])

    def _check_policy(self) -> None:
        """Compare the policy that was asked for with the one that the server holds."""
        config = self.config
        host, port = split_address(config.server_address)
        with PolicyClient(host, port, retries=0, token=config.token) as client:
            info = client.get_info()
        if info["policy"] != config.policy_type:
            raise ConfigurationError(
                f"policy_type is {config.policy_type!r}, but the server at {config.server_address} holds "
                f"{info['policy']!r}: the server is told its policy when it is started"
            )
        wanted, held = Path(config.pretrained_name_or_path).name, info.get("model_name")
        if held is None:
            _log.warning(
                "the server at %s does not name its checkpoint, so whether it is %s is not checked",
                config.server_address,
                config.pretrained_name_or_path,
            )
        elif wanted != held:
            raise ConfigurationError(
                f"pretrained_name_or_path is {config.pretrained_name_or_path!r}, but the server at "
                f"{config.server_address} holds {held!r}: it is told its checkpoint when it is started"
            )
        asked, chunk_size = config.actions_per_chunk, info["chunk_size"]
        if asked is not None and asked > chunk_size:
            _log.warning("actions_per_chunk is %d, but this policy's chunks have %d", asked, chunk_size)

    def _find_tasks(self) -> list[str]:
        env = self.config.env
        host, port = split_address(self.config.simulator_address)
        # Its session ends with it: the evaluation opens its own, and there may be no room for one more.
        with SimulatorClient(host, port, token=self.config.simulator_token, reconnect_s=0) as client:
            client.select_simulator(env.type)
            found: list[str] = []
            for name in str(env.task).split(","):
                found += self._tasks_of(client, name.strip())
        return found

    def _tasks_of(self, client: SimulatorClient, name: str) -> list[str]:
        """Return the task of this name, or those of the suite of this name."""
        try:
            tasks = client.list_tasks(name)
        except InvalidParams:  # no suite of this name, or no suites at all
            return [name]
        if self.config.env.type == "libero":
            # In the order of publications, which its numbers tell and its names do not.
            tasks = [f"{name}/{number}" for number in range(len(tasks))]
        ids: tuple[int, ...] | None = getattr(self.config.env, "task_ids", None)
        if ids is None:
            return tasks
        for number in ids:
            if not 0 <= number < len(tasks):
                raise TaskNotFound(f"{name} has no task {number}, expected 0 to {len(tasks) - 1}")
        return [tasks[number] for number in ids]


class _StopRequested(EvaluationStopped):
    """The user's own wish."""


class _Instructed(SimulatorClient):
    """A session whose observations say what the user wants done, where the user says so."""

    def __init__(self, host: str, port: int, instruction: str, *, token: str | None) -> None:
        super().__init__(host, port, token=token)
        self._instruction = instruction

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode."""
        return self._instructed(super().reset(seed, init_state))

    def step(self, action: Any) -> StepResult:
        """Execute one action."""
        result = super().step(action)
        self._instructed(result.observation)
        return result

    def step_chunk(self, actions: Any) -> ChunkResult:
        """Execute actions up to the episode's end."""
        result = super().step_chunk(actions)
        self._instructed(result.observation)
        return result

    def _instructed(self, observation: Any) -> Any:
        if self._instruction:
            observation.raw_lang = self._instruction
        return observation
