"""Flags of the commands that run and compare episodes. Numpy only: ``--help`` works without extras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robowire.address import join_address
from robowire.cli.connection_flags import ImageFlags, pixels, tls_context
from robowire.cli.parser import setting
from robowire.dashboard.options import DashboardFlags
from robowire.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

__all__ = [
    "IGNORED_BY_LEROBOT_EVAL",
    "CompareFlags",
    "EpisodeServersFlags",
    "EvaluateFlags",
    "LerobotEvalFlags",
    "MergeFlags",
    "RunFlags",
    "SweepFlags",
]

_CLOCKS = ("real", "virtual")
_ON_EMPTY_QUEUE = ("hold", "zero", "wait")
_RTC = ("none", "trained", "guided")
# A typing error must not delete results.
_DELETES = setting(suggested=False)


@dataclass(frozen=True)
class EpisodeServersFlags(ImageFlags):
    """Simulator server of a command that runs episodes.

    Attributes:
        policy_wait_s: Seconds that the policy server may be away once the evaluation has begun, each time.
        simulator_address: Simulator server as host:port; default: one is started here.
        simulator_token: Token of the simulator server, where it needs one.
        simulator_tls: Connect to the simulator server with TLS; implied by the three flags below.
        simulator_tls_ca: PEM file of the certificates to trust instead of the system's, for that server.
        simulator_tls_cert: PEM file of the client's own certificate for that server (mutual TLS).
        simulator_tls_key: PEM file of its private key; by default it is in simulator_tls_cert.
    """

    # A policy server that is started again imports torch and reads its weights, which takes seconds; one
    # that a person has to notice and start takes longer.
    policy_wait_s: float = 60.0
    simulator_address: str | None = None
    simulator_token: str | None = None
    simulator_tls: bool = False
    simulator_tls_ca: str | None = None
    simulator_tls_cert: str | None = None
    simulator_tls_key: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy_wait_s < 0:
            raise ConfigurationError(f"policy_wait_s is {self.policy_wait_s:g}, expected 0 or more seconds")

    def simulator_tls_context(self) -> ssl.SSLContext | bool:
        """Return the context of connections with the simulator server, or ``False`` without TLS.

        Raises:
            ConfigurationError: A file cannot be read or used.
        """
        if self.simulator_address is None:
            return False
        return tls_context(
            self.simulator_tls,
            self.simulator_tls_ca,
            self.simulator_tls_cert,
            self.simulator_tls_key,
            flags="--simulator_",
        )


@dataclass(frozen=True)
class RunFlags(EpisodeServersFlags):
    """Flags of every command that runs episodes: which, and where.

    Attributes:
        simulator: Name of the simulator, with a task (gymnasium:FetchReach-v4) or without, or
            module:function.
        task: Task of the simulator; default: the one named with it, else Lift. evaluate takes several with
            commas, suites, and a YAML file of suites, too.
        num_episodes: Episodes to run, at most 1000.
        num_envs: Simulators at the same time, a process each.
        seed: Evaluation seed, 0 or more; episode i has the simulator seed seed * 1000 + i below 1000, and
            (seed + 1000) * 1000 + i from there on.
        n_action_steps: Actions executed of each chunk; default: what the policy server says, else the whole
            chunk.
        max_episode_steps: Steps after which an episode is over; default: the task's own limit.
        robot: Robot, such as Panda; default: the simulator's.
        controller: Controller, such as OSC_POSE; default: the simulator's.
        camera_names: Cameras of the simulator, in the order of the policy's.
        image_size: Pixels that the simulator renders, 224 or 480x640 (height x width); default: the policy's,
            and others need --resize.
        adapter: Mismatches of policy and task that are bridged, with commas: reorder (names in another
            order), units (rad and deg, m and mm), signs (directions, grippers), rate (control_hz). Default:
            each one is refused.
        policy_options: What a server of another wire (--address openpi://localhost:8000, or gr00t://,
            vla-eval://, lerobot://) does not say of itself, such as --policy_options.chunk_size 16.
    """

    simulator: str = "robosuite"
    task: str | None = None
    num_episodes: int = 50
    num_envs: int = 2
    seed: int = 0
    n_action_steps: int | None = None
    max_episode_steps: int | None = None
    robot: str | None = None
    controller: str | None = None
    camera_names: tuple[str, ...] | None = None
    image_size: str | None = None
    adapter: tuple[str, ...] = ()
    policy_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def upstream(self) -> str | None:
        """Address of a policy server of another wire; ``None`` for one of this wire."""
        address = self.address or ""
        return address if "://" in address and not address.startswith("robowire://") else None

    @property
    def policy_address(self) -> str:
        """Address of the policy server, for messages."""
        return self.upstream or join_address(self.host, self.port)

    def __post_init__(self) -> None:
        super().__post_init__()
        if pixels(self.image_size) is not None and not self.resize:
            raise ConfigurationError(
                f"image_size is {self.image_size}, and the policy takes its own size: give --resize too"
            )
        if self.policy_options and self.upstream is None:
            raise ConfigurationError(
                "policy_options are for servers of other wires: --address openpi://localhost:8000"
            )


@dataclass(frozen=True)
class EvaluateFlags(DashboardFlags, RunFlags):
    """Flags of ``evaluate``.

    Attributes:
        mode: In sync mode the simulator waits for each chunk; in async mode it goes on with the last one.
        clock: Clock of the async mode: real time at --fps (real, the default), or latencies as numbers of
            steps, which cost no waiting and repeat (virtual).
        latency_ms: Latency in the async mode: 0 (default), 80, normal:80,20 (mean, std) or recorded:FILE; the
            whole latency on the virtual clock, added to the real one in real time.
        fps: Control steps a second in the async mode; default: the simulator's control_hz.
        chunk_size_threshold: Share of a chunk that is left when the next is requested in the async mode
            (0.5).
        actions_per_chunk: Actions used of each chunk in the async mode; default: all.
        aggregate_fn_name: Aggregation of overlapping chunks in the async mode: average, conservative,
            latest_only, weighted_average (default), or module:function.
        on_empty_queue: Action while the queue is empty in the async mode (hold).
        rtc: Real-time chunking in the async mode: none (default), trained, for a policy that learned to
            continue the actions that are executed before its reply, or guided, for one of LeRobot whose
            sampling is guided by them.
        delay_error: Steps added to each delay that real-time chunking sends, as if it was counted wrongly.
        max_action_age_s: Actions whose observation is older are not executed in the async mode.
        on_stale_action: What is executed instead of them: as_empty (default: what on_empty_queue says), hold,
            zero or wait.
        output_dir: Folder for the results; default: outputs/<date-time>-<task>.
        overwrite: Replace results that the folder holds.
        resume: Keep what the folder holds, and run the episodes that are missing or ended with an error.
        record_video: Videos to record: off, failures, all, or how many of the first episodes.
        stop_when: Claim such as "rate > 0.8": stop when it is decided, true or not, with at most 5 % error.
        shard: Part of the episodes to run here, such as 1/4; merge joins the parts.
        report: Write report.html into the folder at the end: rates, plots, videos of failures.
        rerun: File for the viewer of rerun.io, such as episodes.rrd: images, states, actions and chunks of
            the episodes of --record_video.
    """

    mode: str = field(default="sync", metadata=setting(choices=("sync", "async")))
    # Without defaults of their own: in the mode sync they mean nothing, and are refused.
    clock: str | None = field(default=None, metadata=setting(choices=_CLOCKS))
    latency_ms: str | None = None
    fps: float | None = None
    chunk_size_threshold: float | None = None
    actions_per_chunk: int | None = None
    aggregate_fn_name: str | None = None
    on_empty_queue: str | None = field(default=None, metadata=setting(choices=_ON_EMPTY_QUEUE))
    rtc: str | None = field(default=None, metadata=setting(choices=_RTC))
    delay_error: int | None = None
    max_action_age_s: float | None = None
    on_stale_action: str | None = field(
        default=None, metadata=setting(choices=("as_empty", *_ON_EMPTY_QUEUE))
    )
    output_dir: str | None = None
    overwrite: bool = field(default=False, metadata=_DELETES)
    resume: bool = False
    record_video: str = "5"
    stop_when: str | None = None
    shard: str | None = None
    report: bool = True
    rerun: str | None = None


@dataclass(frozen=True)
class SweepFlags(RunFlags):
    """Flags of ``sweep``.

    Attributes:
        latencies_ms: Latencies, each written as --latency_ms of evaluate.
        aggregate_fn_names: Aggregations of overlapping chunks: these, or module:function.
        chunk_size_thresholds: Shares of a chunk that are left when the next is requested.
        actions_per_chunk: Actions used of each chunk, numbers or all.
        fps: Control steps a second; default: the simulator's control_hz.
        on_empty_queue: Action while the queue is empty.
        rtc: Real-time chunking: none, trained or guided, or several with commas.
        delay_error: Steps added to each delay that real-time chunking sends, such as 1,-1: further points, of
            a delay that is counted wrongly.
        output_dir: Folder for the results; one that holds a part of them is completed.
        overwrite: Replace results that the folder holds.
    """

    latencies_ms: tuple[str, ...] = field(default=("0,100,200,400",), metadata=setting(split=False))
    aggregate_fn_names: tuple[str, ...] = ("average", "conservative", "latest_only", "weighted_average")
    chunk_size_thresholds: tuple[str, ...] = ("0.5",)
    actions_per_chunk: tuple[str, ...] = ("all",)
    fps: float | None = None
    on_empty_queue: str = field(default="hold", metadata=setting(choices=_ON_EMPTY_QUEUE))
    rtc: tuple[str, ...] = ("none",)
    delay_error: tuple[str, ...] = ()
    output_dir: str | None = None
    overwrite: bool = field(default=False, metadata=_DELETES)


@dataclass(frozen=True)
class CompareFlags:
    """Flags of ``compare``.

    Attributes:
        a: Folder of results.
        b: Folder of results of the same task and --seed.
        sequential: Test after every pair, which is valid however often one looks at a growing folder.
        json: Print one JSON object.
    """

    a: str = field(metadata=setting(positional=True))
    b: str = field(metadata=setting(positional=True))
    sequential: bool = False
    json: bool = False


@dataclass(frozen=True)
class MergeFlags:
    """Flags of ``merge``.

    Attributes:
        dirs: Folders of results of ``evaluate``, the parts of one evaluation; two or more.
        output_dir: New folder for the whole.
    """

    dirs: tuple[str, ...] = field(metadata=setting(name="DIR", positional=True, split=False))
    output_dir: str = "outputs/merged"

    def __post_init__(self) -> None:
        if len(self.dirs) < 2:
            raise ConfigurationError(
                f"there is one folder to merge, {', '.join(self.dirs)!r}, expected at least two"
            )


@dataclass(frozen=True)
class ReportFlags:
    """Flags of ``report``.

    Attributes:
        dirs: Folders of results of ``evaluate`` or ``sweep``; two of the same episodes are compared.
        output: File to write.
        title: Heading; by default the tasks.
        max_videos: Most videos of failed episodes to include, for each folder.
    """

    dirs: tuple[str, ...] = field(metadata=setting(name="DIR", positional=True, split=False))
    output: str = "report.html"
    title: str = ""
    max_videos: int = 6

    def __post_init__(self) -> None:
        if self.max_videos < 0:
            raise ConfigurationError(f"max_videos is {self.max_videos}, expected 0 or more")


# Flags of LeRobot that ask for what is so anyway, belong to the server, or are reported elsewhere here, with
# the reason that is shown.
IGNORED_BY_LEROBOT_EVAL = {
    "policy_device": "the policy server was told its device when it was started",
    "client_device": "actions are numpy arrays here",
    "debug_visualize_queue_size": "episodes.jsonl has the queue's mean size, of each episode",
    "env.obs_type": "the policy server says what its policy needs",
    "env.render_mode": "the policy server says what its policy needs",
    "env.init_states": "LIBERO's initial states are taken in turn",
    "eval.use_async_envs": "every simulator has a process of its own",
    "videos_dir": "videos are in the folder of the results",
}


@dataclass(frozen=True, kw_only=True)
class LerobotEvalFlags(EpisodeServersFlags):
    """Flags of ``lerobot-eval``.

    Attributes:
        env_type: Name of the simulator, or module:function.
        env_task: Task, suite, or several with commas.
        env_task_ids: Tasks of each suite to run, such as [0,3]; default: all.
        env_episode_length: Steps after which an episode is over; default: the task's own limit.
        env_camera_name: Cameras with commas; default: those that the policy names.
        env_fps: Same as --fps.
        policy_type: Kind of policy, compared with the server's.
        pretrained_name_or_path: Checkpoint, whose last part is compared with the name of the server's.
        server_address: Policy server as host:port, same as --address.
        task: Instruction for the policy; default: each task's own.
        n_episodes: Episodes of each task.
        num_envs: Simulators at the same time.
        seed: Evaluation seed, 0 or more; episode i has the simulator seed seed * 1000 + i below 1000, and
            (seed + 1000) * 1000 + i from there on.
        actions_per_chunk: Actions used of each chunk; default: all.
        chunk_size_threshold: Share of a chunk that is left when the next is requested.
        aggregate_fn_name: Aggregation of overlapping chunks.
        fps: Control steps a second; default: the simulator's control_hz.
        clock: Clock: real time (real), or latencies as numbers of steps, which repeat (virtual).
        latency_ms: Latency: 80, normal:80,20 or recorded:FILE.
        on_empty_queue: Action while the queue is empty.
        save_videos: Record videos.
        max_episodes_rendered: Videos of each task, of its first episodes.
        output_dir: Folder for the results; default: outputs/lerobot-eval/<date-time>.
        overwrite: Replace results that the folder holds.
        resume: Run the episodes that the folder lacks.
        policy_device: Accepted without effect.
        client_device: Accepted without effect.
        debug_visualize_queue_size: Accepted without effect.
        env_obs_type: Accepted without effect.
        env_render_mode: Accepted without effect.
        env_init_states: Accepted without effect.
        eval_use_async_envs: Accepted without effect.
        videos_dir: Accepted without effect.
    """

    env_type: str = field(default="libero", metadata=setting(name="env.type"))
    env_task: str = field(default="libero_10", metadata=setting(name="env.task"))
    env_task_ids: tuple[int, ...] | None = field(default=None, metadata=setting(name="env.task_ids"))
    env_episode_length: int | None = field(default=None, metadata=setting(name="env.episode_length"))
    env_camera_name: str | None = field(default=None, metadata=setting(name="env.camera_name"))
    env_fps: float | None = field(default=None, metadata=setting(name="env.fps"))
    policy_type: str = field(metadata=setting(aliases=("policy.type",)))
    pretrained_name_or_path: str = field(metadata=setting(aliases=("policy.path",)))
    server_address: str | None = None
    task: str = ""
    n_episodes: int = field(default=10, metadata=setting(aliases=("eval.n_episodes",)))
    num_envs: int = field(default=1, metadata=setting(aliases=("eval.batch_size",)))
    seed: int = 0
    actions_per_chunk: int | None = None
    chunk_size_threshold: float = 0.5
    aggregate_fn_name: str = "weighted_average"
    fps: float | None = None
    clock: str = field(default="real", metadata=setting(choices=_CLOCKS))
    latency_ms: str = "0"
    on_empty_queue: str = field(default="hold", metadata=setting(choices=_ON_EMPTY_QUEUE))
    save_videos: bool = False
    max_episodes_rendered: int = 10
    output_dir: str | None = None
    overwrite: bool = field(default=False, metadata=_DELETES)
    resume: bool = False
    policy_device: str | None = None
    client_device: str | None = None
    debug_visualize_queue_size: str | None = None
    env_obs_type: str | None = field(default=None, metadata=setting(name="env.obs_type"))
    env_render_mode: str | None = field(default=None, metadata=setting(name="env.render_mode"))
    env_init_states: str | None = field(default=None, metadata=setting(name="env.init_states"))
    eval_use_async_envs: str | None = field(default=None, metadata=setting(name="eval.use_async_envs"))
    videos_dir: str | None = None
