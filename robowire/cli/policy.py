"""``policy``: the policy server's flags, and the server of the policy that they name."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robowire.cli.command import Program
from robowire.cli.dashboard import server_page
from robowire.cli.inspect_checkpoint import checkpoint_format
from robowire.cli.record_flags import RecordFlags
from robowire.cli.serve import connection_words, serve
from robowire.cli.tracing_flags import TracingFlags
from robowire.dashboard.options import DashboardFlags
from robowire.errors import ConfigurationError, MissingDependency, UnknownName
from robowire.frontends.policy_frontends import PolicyFrontendOptions, make_policy_frontends
from robowire.interfaces import Policy, PolicyOptions
from robowire.progress import Progress
from robowire.registry import Entry, entries, load_policy, nearest
from robowire.serving.freed_memory import keep_freed_memory, settle_memory
from robowire.serving.policy.process import PolicySource
from robowire.serving.policy.process_policy import ProcessOptions, ProcessPolicy, start_policy
from robowire.serving.policy.replicas import Replica, start_replicas
from robowire.serving.policy.server import PolicyServer
from robowire.serving.tcp import listen

__all__ = ["PolicyFlags", "make_policy_server", "run"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyFlags(PolicyFrontendOptions, RecordFlags, ProcessOptions, DashboardFlags, TracingFlags):
    """Flags of ``policy``.

    Attributes:
        policy: Name of a policy, or module:function of your own.
        model_name_or_path: Folder of a checkpoint, the embedded one by default; a recording for --policy
            replay.
        dataset_id: Which entry of the checkpoint's normalize.json to use; the first by default.
        device: cpu, cuda, cuda:N, or auto for CUDA where there is one.
        camera_names: Cameras in the order of the images, for a checkpoint that does not name them.
        policy_python: Interpreter to run the policy with, in a process of its own, which is started again
            after a crash; it needs numpy and what the policy needs.
        replicas: Number of processes of the policy, each with all of it; a request goes to the least loaded.
            By default one for each device.
        devices: Devices of these processes, such as cuda:0,cuda:1; used in turn.
        engine: Where these processes run: local, or ray, as actors of a Ray cluster.
        ray_address: Address of the Ray cluster to join; by default one is started on this machine.
        cpus_per_replica: Cores that Ray reserves for each replica.
        gpus_per_replica: GPUs, or a part of one, that Ray reserves for each replica.
        policy_options: Options of one kind of policy only, such as --policy_options.nheads 8.
    """

    policy: str = "act"
    model_name_or_path: str | None = None
    dataset_id: str | None = None
    device: str = "auto"
    camera_names: tuple[str, ...] | None = None
    policy_python: str | None = None
    replicas: int | None = None
    devices: tuple[str, ...] | None = None
    engine: str = "local"
    ray_address: str | None = None
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    policy_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        ProcessOptions.__post_init__(self)
        if self.replicas is not None and self.replicas < 1:
            raise ConfigurationError(f"replicas is {self.replicas}, expected at least 1")
        if self.engine not in ("local", "ray"):
            raise ConfigurationError(f"engine is {self.engine!r}, expected local or ray")
        if self.engine == "local" and (self.ray_address or self.gpus_per_replica):
            raise ConfigurationError("ray_address and gpus_per_replica are for --engine ray")


def run(flags: PolicyFlags, program: Program) -> int:
    """Serve until a signal, then drain."""
    if program.checkout is None and ":" not in flags.policy and not entries("policy", program.policies):
        raise ConfigurationError(
            f"the policy {flags.policy!r} comes with the checkout of robowire, not with the installed "
            "package: name your own with --policy module:function"
        )
    keep_freed_memory()
    words = connection_words(flags)
    with server_page(flags) as (flags, page):
        server = make_policy_server(flags, program.policies)
        settle_memory()
        return serve(
            server,
            flags,
            {
                "try it": lambda host, port: program.example(
                    "client.py", "infer", "--host", host, "--port", port, *words
                )
            },
            page=page,
        )


def _start_of(flags: PolicyFlags, number: int, source: PolicySource) -> Callable[[], Replica]:
    """Return the function that starts one replica."""
    label = f"replica {number} of policy {flags.policy}"
    # These alone, without a token: Ray sends them to other machines.
    options = ProcessOptions(flags.policy_timeout_s, flags.policy_start_timeout_s, flags.max_policy_mb)
    if flags.engine == "ray":
        from robowire.fleet.policy_actors import ActorPolicy

        return lambda: ActorPolicy(
            source,
            options,
            label=label,
            num_cpus=flags.cpus_per_replica,
            num_gpus=flags.gpus_per_replica,
        )
    return lambda: ProcessPolicy(source, options, label=label)


def _counted(start: Callable[[], Replica], progress: Progress) -> Callable[[], Replica]:
    """Return the function, which counts in addition what it started."""

    def start_and_count() -> Replica:
        replica = start()
        progress.update()
        return replica

    return start_and_count


def _join_ray(flags: PolicyFlags) -> Callable[[], None]:
    """Join the Ray cluster, and return what leaves it.

    Raises:
        MissingDependency: Ray is not installed.
    """
    try:
        from robowire.fleet.policy_actors import join_cluster, leave_cluster
    except ModuleNotFoundError as exc:
        raise MissingDependency("--engine ray needs 'ray': ./setup_simulator.sh ray") from exc
    join_cluster(flags.ray_address)
    return leave_cluster


def _environment_of(name: str, policies: Mapping[str, Entry]) -> str | None:
    """Return the interpreter of a policy that has an environment of its own; ``None`` for ours.

    Raises:
        MissingDependency: Its environment was not made yet.
    """
    entry = policies.get(name)
    if entry is None or not entry.python:
        return None
    if not Path(entry.python).exists():
        raise MissingDependency(
            f"policy {name!r} runs in an environment of its own, which was not made yet: {entry.install}, "
            "or name another one that has its packages with --policy_python"
        )
    return entry.python


def _row(name: str, policies: Mapping[str, Entry]) -> Entry:
    """Return the row of a policy that a process is to load.

    Raises:
        UnknownName: There is no such policy.
    """
    offered = entries("policy", policies)
    if name not in offered and ":" not in name:
        raise UnknownName(
            f"no policy is called {name!r}.{nearest(name, offered)} Known: {', '.join(sorted(offered))}"
        )
    return offered.get(name) or Entry(name)


def _format_of(folder: str | None) -> str | None:
    """Return what wrote the folder that is served; ``None`` where it is no folder of a known kind."""
    try:
        return None if folder is None else checkpoint_format(Path(folder).expanduser())
    except ConfigurationError:
        return None  # of a policy that knows its own files


def make_policy_server(flags: PolicyFlags, policies: Mapping[str, Entry]) -> PolicyServer:
    """Return the server of the policy that the flags name.

    Args:
        flags: Policy, port and limits.
        policies: Table of policies; those of installed packages are offered too.

    Raises:
        RobowireError: It cannot be loaded, or the port not be opened; the message says what to do.
    """
    options = PolicyOptions(
        model_name_or_path=flags.model_name_or_path,
        dataset_id=flags.dataset_id,
        device=flags.device,
        camera_names=flags.camera_names,
        extra=flags.policy_options,
    )
    frontends = make_policy_frontends(flags)
    # First: a port in use is reported before a policy takes time to load.
    listener = listen(flags.host, flags.port)
    policy: Policy
    closing = ExitStack()
    try:
        python = flags.policy_python or _environment_of(flags.policy, policies)
        devices = flags.devices or (flags.device,)
        replicas = flags.replicas or len(devices)
        loading = Progress(f"loading policy {flags.policy}", log=logger)
        if flags.engine == "ray":
            closing.callback(_join_ray(flags))
        if replicas > 1 or flags.devices or flags.engine == "ray":
            row = _row(flags.policy, policies)
            sources = [
                PolicySource(
                    flags.policy,
                    row,
                    dataclasses.replace(options, device=devices[number % len(devices)]),
                    python or sys.executable,
                )
                for number in range(replicas)
            ]
            with Progress(f"loading policy {flags.policy}", replicas, unit="replica", log=logger) as progress:
                starts = [_start_of(flags, number, source) for number, source in enumerate(sources)]
                policy = start_replicas(
                    [_counted(start, progress) for start in starts], on_close=closing.close
                )
        elif python is None:
            with loading:
                policy = load_policy(flags.policy, options, policies)
        else:
            with loading:
                policy = start_policy(
                    PolicySource(flags.policy, _row(flags.policy, policies), options, python),
                    flags,
                    label=f"policy {flags.policy}",
                )
    except BaseException:
        closing.close()
        listener.close()
        raise
    folder = flags.model_name_or_path
    server = PolicyServer(
        policy,
        flags,
        listener=listener,
        device=str(getattr(policy, "device", flags.device)),
        model_name=None if folder is None else Path(folder).resolve().name,
        checkpoint_format=_format_of(folder),
        frontends=frontends,
    )
    try:
        server.service.recorder = flags.recorder()
    except BaseException:
        server.shutdown()
        raise
    return server
