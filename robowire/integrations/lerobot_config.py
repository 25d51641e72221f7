"""Configuration of an evaluation under LeRobot's names."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Mapping, Protocol

from robowire.address import parse_address
from robowire.client.action_queue import load_aggregate_function
from robowire.client.async_controller import AsyncOptions
from robowire.client.session import client_context
from robowire.errors import ConfigurationError
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.real_clock import RealClock
from robowire.rollout.virtual_clock import AsyncClock, Latency, VirtualClock

if TYPE_CHECKING:
    import ssl

__all__ = ["Env", "EnvConfig", "LiberoEnv", "RobosuiteEnv", "SimClientConfig"]

_CLOCKS: Mapping[str, type[AsyncClock]] = {clock.name: clock for clock in (RealClock, VirtualClock)}


class Env(Protocol):
    """Part of an environment's configuration that is used here; LeRobot's own has it too."""

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
        type: Name of the simulator.
        task: A task, a suite (all its tasks are run), or several of either with commas.
        task_ids: Numbers of the tasks to run in each suite; ``None`` means all.
        episode_length: Steps after which an episode is over; ``None`` means the task's own.
        camera_name: Names of the simulator's cameras in the order of the policy's, with commas; LeRobot's
            ending ``_image`` may be there. ``None`` means those that the policy server names.
        fps: Control steps a second, where :class:`SimClientConfig` says nothing; ``None`` means the
            simulator's own rate.
    """

    type: str
    task: str | None = None
    task_ids: tuple[int, ...] | None = None
    episode_length: int | None = None
    camera_name: str | None = None
    fps: float | None = None


@dataclass(frozen=True)
class LiberoEnv(EnvConfig):
    """LIBERO, with LeRobot's default task.

    Attributes:
        obs_type: LeRobot's observation, ``"pixels"`` or ``"pixels_agent_pos"``. Without effect: a policy
            server is sent what its policy needs.
        render_mode: Without effect; videos are made where ``save_videos`` asks for them.
        init_states: Whether episodes begin from the initial states of the task, as they do here always.

    Raises:
        ValueError: LeRobot has no such ``obs_type``, or ``init_states`` is false.
    """

    type: str = "libero"
    task: str | None = "libero_10"
    obs_type: str = "pixels_agent_pos"
    render_mode: str = "rgb_array"
    init_states: bool = True

    def __post_init__(self) -> None:
        if self.obs_type not in ("pixels", "pixels_agent_pos"):
            raise ValueError(f"obs_type is {self.obs_type!r}, expected 'pixels' or 'pixels_agent_pos'")
        if not self.init_states:
            raise ValueError(
                "init_states is False, but episodes of LIBERO begin from its initial states here"
            )


@dataclass(frozen=True)
class RobosuiteEnv(EnvConfig):
    """robosuite, which LeRobot does not have."""

    type: str = "robosuite"
    task: str | None = "Lift"


@dataclass(frozen=True)
class SimClientConfig:
    """What is evaluated, under LeRobot's names; those from ``simulator_address`` on are ours.

    Attributes:
        policy_type: Name of the policy that the server is expected to hold, such as ``"act"``; it is not
            loaded from here.
        pretrained_name_or_path: Its checkpoint; the last part of it is compared with the server's info.
        env: Environment of the evaluation.
        actions_per_chunk: Number of actions to use of each chunk.
        task: Instruction for the policy; empty means the task's own.
        server_address: ``host:port`` of the policy server.
        policy_device: Without effect; the server's device is set when it is started.
        client_device: Without effect; actions are numpy arrays.
        chunk_size_threshold: Share of a chunk; an observation is sent when as much is left, or less.
        fps: Control steps a second; ``None`` means those of ``env``, or else the simulator's own rate.
        aggregate_fn_name: How chunks that overlap are merged.
        n_episodes: Number of episodes of each task.
        seed: Evaluation seed, 0 or more; :func:`robowire.rollout.seeds.episode_seed` gives those of episodes.
        save_videos: Whether to record videos, which takes ffmpeg.
        max_episodes_rendered: Number of episodes of each task that are recorded, the first ones.
        debug_visualize_queue_size: Without effect; the rows of the results have the queue's mean size.
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
        token: Token shown to the policy server.
        simulator_token: Token shown to the simulator server.
        tls: Whether the servers speak TLS, or a context to use.
        ca: PEM file of the certificates to trust, in the place of the system's; implies ``tls``.
        tls_cert: PEM file of the client's own certificate, where a server asks for one.
        tls_key: PEM file of its private key.
        simulator_tls: Whether the simulator server speaks TLS, or a context to use with it; ``None`` means as
            the policy server.
        wait_s: Seconds that :meth:`SimClient.start` tries to connect while a server does not answer.

    Args:
        when_dry: Older name of ``on_empty_queue``, still accepted; it wins where both are given.
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
    tls: bool | ssl.SSLContext = field(default=False, repr=False)
    ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    simulator_tls: bool | ssl.SSLContext | None = field(default=None, repr=False)
    wait_s: float = 0.0
    when_dry: InitVar[str | None] = None

    def __post_init__(self, when_dry: str | None) -> None:
        if when_dry is not None:
            object.__setattr__(self, "on_empty_queue", when_dry)
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
        if not self.wait_s >= 0:
            raise ValueError(f"wait_s is {self.wait_s!r}, expected 0 or more seconds")

    def policy_context(self) -> ssl.SSLContext | None:
        """Return the TLS context for the policy server; ``None`` where it speaks no TLS."""
        return client_context(self.tls, self.ca, self.tls_cert, self.tls_key)

    def simulator_context(self) -> ssl.SSLContext | None:
        """Return the TLS context for the simulator server; ``None`` where it speaks no TLS."""
        if self.simulator_tls is None:
            return self.policy_context()
        if self.simulator_tls is True:
            return client_context(True, self.ca, self.tls_cert, self.tls_key)
        return client_context(self.simulator_tls)

    def asynchronous(self) -> AsyncClock:
        """Return the clock, with the rules and the latency."""
        rules = AsyncOptions(
            chunk_size_threshold=self.chunk_size_threshold,
            actions_per_chunk=self.actions_per_chunk,
            aggregate_fn_name=self.aggregate_fn_name,
            on_empty_queue=self.on_empty_queue,
        )
        fps = self.fps if self.fps is not None else getattr(self.env, "fps", None)
        return _CLOCKS[self.clock](rules, Latency.parse(self.latency_ms), fps)

    def options(self, task: str, folder: str) -> EvaluateOptions:
        """Return the options of one task's evaluation."""
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
    """Return the simulator's name of a camera, for LeRobot's name of its image."""
    name = name.strip()
    return name[: -len("_image")] if name.endswith("_image") else name
