"""``evaluate``: the loop of :mod:`robowire.rollout` with a progress bar and a table."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from robowire import AsyncPolicyClient, PolicyClient, SimulatorClient
from robowire.address import parse_address
from robowire.cli.command import Program
from robowire.cli.connection_flags import open_server_client, pixels
from robowire.cli.dashboard import evaluation_page
from robowire.cli.direct_policy import DirectPolicyClient
from robowire.cli.evaluation_flags import EpisodeServersFlags, EvaluateFlags, RunFlags
from robowire.cli.output_folder import check_output_folder, check_writable
from robowire.cli.simulator import simulator_server_of_environment
from robowire.cli.task_list import expand_tasks, named_suites, task_folder
from robowire.cli.task_table import report as table_of_tasks
from robowire.cli.task_table import write_results
from robowire.client.action_queue import load_aggregate_function
from robowire.client.async_controller import AsyncOptions
from robowire.errors import (
    ConfigurationError,
    EvaluationStopped,
    MissingDependency,
    ResultsNotWritten,
    SpecMismatch,
    TaskNotFound,
    UnknownName,
)
from robowire.interfaces import PolicyOptions
from robowire.progress import Progress
from robowire.registry import Entry, entries, family_and_task, load, load_policy
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate
from robowire.rollout.outages import Outages
from robowire.rollout.real_clock import RealClock
from robowire.rollout.virtual_clock import AsyncClock, Latency, VirtualClock

__all__ = [
    "find_ffmpeg",
    "named_task",
    "policy_opener",
    "report",
    "run",
    "run_options",
    "simulator_opener",
    "simulator_server",
    "without_tokens",
]

logger = logging.getLogger(__name__)

_CLOCKS: dict[str, type[AsyncClock]] = {clock.name: clock for clock in (RealClock, VirtualClock)}

# Flags that are fields of AsyncOptions.
_RULES = (
    *("chunk_size_threshold", "actions_per_chunk", "aggregate_fn_name", "on_empty_queue", "rtc"),
    *("max_action_age_s", "on_stale_action"),
)

# Flags whose values are secrets.
_TOKEN = r"(?:(?:simulator[_-])?(?:auth[_-])?|policy[_-]options\.)token"

# Connections of pages that show the evaluation.
_DASHBOARDS = 2

# With more late steps than this share, a latency costs fewer steps than it says.
_LATE_SHARE = 0.05


def named_task(flags: RunFlags, program: Program) -> tuple[str, str]:
    """Return the simulator and the task that the flags name, ``--simulator gymnasium:FetchReach-v4`` both."""
    simulator, named = family_and_task(flags.simulator, entries("simulator", program.simulators))
    return simulator, flags.task or named or EvaluateOptions.task


def run_options(flags: RunFlags, simulator: str, task: str) -> dict[str, Any]:
    """Return what these flags say, as arguments of :class:`EvaluateOptions`."""
    return {
        "simulator": simulator,
        "task": task,
        "num_episodes": flags.num_episodes,
        "num_envs": flags.num_envs,
        "seed": flags.seed,
        "max_episode_steps": flags.max_episode_steps,
        "robot": flags.robot,
        "controller": flags.controller,
        "camera_names": flags.camera_names,
        "image_size": pixels(flags.image_size),
        "adapters": flags.adapter,
    }


def run(flags: EvaluateFlags, program: Program) -> int:
    """Evaluate, print a table and return the exit code: 0; 1 where no episode was finished.

    Raises:
        ConfigurationError: A flag is unusable, or policy and simulator do not fit.
    """
    simulator, named = named_task(flags, program)
    suites = named_suites(named)
    names = [name for group in suites.values() for name in group]
    several = len(names) > 1 or "" not in suites
    if flags.resume and flags.output_dir is None:
        raise ConfigurationError("resume needs --output_dir, the folder with the episodes that there are")
    if flags.rerun is not None and flags.record_video == "off":
        raise ConfigurationError("rerun shows the episodes of --record_video, which is off")
    what = task_folder(names[0]) if not several else Path(named).stem if "" not in suites else "tasks"
    folder = Path(flags.output_dir or f"outputs/{time.strftime('%Y%m%d-%H%M%S')}-{what}")
    if not several:
        check_output_folder(_options(flags, simulator, names[0], folder))
    check_writable(folder)
    open_policy = policy_opener(flags, program)
    with ExitStack() as stack:
        log = stack.enter_context(_rerun_log(flags))
        run_one = _TaskRunner(flags, simulator, open_policy, log)
        address = stack.enter_context(simulator_server(program, flags, simulator, num_envs=flags.num_envs))
        page = stack.enter_context(evaluation_page(flags, address, folder))
        if page is not None:
            sys.stdout.write(f"dashboard    {page}\n")
            sys.stdout.flush()
        if not several:
            try:
                finished = bool(run_one(names[0], folder, address)["episodes"])
            except TaskNotFound:
                several, suites = True, _expand(flags, simulator, suites, address)
                if suites == {"": tuple(names)}:
                    raise
        else:
            suites = _expand(flags, simulator, suites, address)
        if several:
            finished = _run_tasks(run_one, suites, folder, address)
    if flags.report:
        _write_report(folder)
    return 0 if finished else 1


@contextmanager
def _rerun_log(flags: EvaluateFlags) -> Iterator[Any]:
    """Yield the log of ``--rerun``, ``None`` without it; its file is complete afterwards.

    Raises:
        ConfigurationError: It cannot be written.
        MissingDependency: rerun-sdk is not installed.
    """
    if flags.rerun is None:
        yield None
        return
    table = {"rerun": Entry("robowire.integrations.rerun_log:RerunLog", extra="rerun")}
    log = load("log", "rerun", table)(Path(flags.rerun))
    try:
        yield log
    finally:
        log.close()
        sys.stdout.write(f"rerun        {flags.rerun}: rerun {flags.rerun}\n")


def _write_report(folder: Path) -> None:
    """Write ``report.html`` into the folder; a failure is a warning, since the results are on disk."""
    try:
        # Loaded here: it imports matplotlib, which takes a second, and its extra may be missing.
        load("report", "html", {"html": Entry("robowire.cli.report:write_report", extra="report")})(
            [folder], folder / "report.html"
        )
    except (MissingDependency, ConfigurationError) as exc:
        logger.warning("no report was written: %s", exc)
    else:
        sys.stdout.write(f"report       {folder / 'report.html'}\n")


def _expand(
    flags: EvaluateFlags, simulator: str, suites: Mapping[str, Sequence[str]], address: tuple[str, int]
) -> dict[str, tuple[str, ...]]:
    """Return the tasks of each group of names; a suite that is named becomes a group."""

    def ask() -> dict[str, tuple[str, ...]]:
        # Its session ends with it: the evaluation opens its own, and there may be no capacity for one more.
        with simulator_opener(flags, *address)() as client:
            client.select_simulator(simulator)
            found: dict[str, tuple[str, ...]] = {}
            for group, names in suites.items():
                for name in names:
                    tasks = expand_tasks(client, simulator, [name])
                    suite = group or (name if tasks != (name,) else "")
                    found[suite] = tuple(dict.fromkeys([*found.get(suite, ()), *tasks]))
        return found

    # A server without a place at this moment is waited for, as it is later.
    outages = Outages(flags.policy_wait_s, threading.Event(), server="simulator server")
    return outages.ask(ask, must_be_reachable=True)


def _run_tasks(
    run_one: _TaskRunner, suites: Mapping[str, Sequence[str]], folder: Path, address: tuple[str, int]
) -> bool:
    """Evaluate each task in a folder of its own, print a table of all, and return whether any finished."""
    tasks = list(dict.fromkeys(task for group in suites.values() for task in group))
    folders = {task: folder / task_folder(task) for task in tasks}
    if len(set(folders.values())) < len(tasks):
        raise ConfigurationError(f"two of the tasks {', '.join(tasks)} would share a folder of results")
    for task in tasks:  # all of them, before an hour is spent on the first
        check_output_folder(run_one.options(task, folders[task]))
    results: dict[str, dict[str, Any]] = {}
    try:
        for number, task in enumerate(tasks, 1):
            label = f"task {number} of {len(tasks)}, {task}"
            results[task] = run_one(task, folders[task], address, label=label)
    finally:
        if results:
            write_results(folder, results)
            shown = {suite: group for suite, group in suites.items() if suite}
            sys.stdout.write(table_of_tasks(results, folder, shown))
    return any(summary["episodes"] for summary in results.values())


def _options(flags: EvaluateFlags, simulator: str, task: str, folder: Path) -> EvaluateOptions:
    return EvaluateOptions(
        output_dir=folder,
        n_action_steps=flags.n_action_steps,
        record_video=flags.record_video,
        overwrite=flags.overwrite,
        resume=flags.resume,
        asynchronous=_clock(flags),
        stop_when=flags.stop_when,
        shard=flags.shard,
        images=flags.images_text(),
        **run_options(flags, simulator, task),
    )


class _TaskRunner:
    """Evaluates one task after the other, with a bar and a table for each."""

    def __init__(
        self,
        flags: EvaluateFlags,
        simulator: str,
        open_policy: Callable[[], PolicyClient | DirectPolicyClient],
        log: Any = None,
    ) -> None:
        self._flags, self._simulator, self._open_policy = flags, simulator, open_policy
        self._log = log

    def options(self, task: str, folder: Path) -> EvaluateOptions:
        """Return the options of a task."""
        return _options(self._flags, self._simulator, task, folder)

    def __call__(
        self, task: str, folder: Path, address: tuple[str, int], *, label: str = ""
    ) -> dict[str, Any]:
        """Return the summary of a task's episodes."""
        options = self.options(task, folder)
        flags = self._flags
        latest: dict[str, Any] = {}  # what is known when something ends the evaluation early
        late: list[int] = []

        def open_async_policy(rules: AsyncOptions, added_s: Callable[[int], float]) -> AsyncPolicyClient:
            return AsyncPolicyClient(
                flags.host,
                flags.port,
                rules,
                client=self._open_policy() if flags.upstream else None,
                timeout_s=flags.timeout_s,
                patience_s=max(flags.policy_wait_s, 1e-3),  # 0 would mean no attempt at all
                token=flags.token,
                tls=flags.tls_context(),
                added_latency_s=added_s,
                **flags.image_options(),
            )

        def on_start(summary: dict[str, Any]) -> None:
            latest.update(summary)
            progress.note("")
            progress.write(
                f"{summary['policy']['policy']} at {flags.policy_address} runs {options.task} on "
                f"{options.simulator}; results go to {options.output_dir}"
            )
            if summary["episodes"]:
                progress.write(f"{summary['episodes']} of {options.num_episodes} episodes existed already")
                progress.skip(summary["episodes"])

        def on_episode(episode: EpisodeResult, summary: dict[str, Any]) -> None:
            latest.update(summary)
            progress.update()
            done, successes, errors = (summary[key] for key in ("episodes", "successes", "errors"))
            rate = f"{successes}/{done} = {successes / done:.0%}" if done else "none"
            progress.note(f"successes {rate}" + (f", ERRORS {errors}" if errors else ""))
            if (episode.late_steps or 0) > _LATE_SHARE * episode.steps and not late:
                late.append(episode.episode)
                progress.write(
                    f"WARNING: {episode.late_steps} of {episode.steps} steps of episode {episode.episode} "
                    f"were late: this machine does not hold {summary['options']['fps']:g} steps a second "
                    f"with {options.num_envs} environments, so latencies cost fewer steps than they should. "
                    "Use fewer --num_envs, a lower --fps, or --clock virtual",
                    sys.stderr,
                )

        progress = Progress(label or options.task, len(options.numbers()), unit="episode", least_s=0)
        try:
            with progress:
                progress.note("loading the task")
                latest = evaluate(
                    options,
                    open_policy=self._open_policy,
                    open_simulator=simulator_opener(flags, *address),
                    open_async_policy=open_async_policy,
                    policy_wait_s=flags.policy_wait_s,
                    ffmpeg=find_ffmpeg(),
                    command_line=without_tokens(sys.argv),
                    on_start=on_start,
                    on_episode=on_episode,
                    log=self._log and self._log.task(options.task),
                )
        except SpecMismatch as exc:
            raise ConfigurationError(str(exc)) from exc
        except (EvaluationStopped, ResultsNotWritten, KeyboardInterrupt):
            if latest:
                sys.stdout.write(report(latest, options.output_dir))
            raise
        sys.stdout.write(report(latest, options.output_dir))
        return latest


def policy_opener(flags: RunFlags, program: Program) -> Callable[[], PolicyClient | DirectPolicyClient]:
    """Return what opens sessions with the policy server, after it answered once.

    Raises:
        RobowireError: It does not answer: a wrong address is reported at once.
    """
    if flags.upstream is not None:
        return _upstream_opener(flags, program)

    def open_policy() -> PolicyClient:
        # Without retries of its own: the evaluation waits for the server, and must know that it was lost.
        return PolicyClient(
            flags.host,
            flags.port,
            timeout_s=flags.timeout_s,
            retries=0,
            token=flags.token,
            tls=tls,
            **flags.image_options(),
        )

    tls = flags.tls_context()

    def ping() -> None:
        with open_server_client(flags) as server:  # the one that waits for a server, where --wait_s is given
            server.ping()

    # A server with no place at this moment is waited for, as it is later.
    Outages(flags.policy_wait_s, threading.Event()).ask(ping, must_be_reachable=True)
    return open_policy


def _upstream_opener(flags: RunFlags, program: Program) -> Callable[[], DirectPolicyClient]:
    """Return what opens sessions with a server of another wire, which the program's table knows to ask."""
    if "remote" not in program.policies:
        raise ConfigurationError(
            f"address is {flags.upstream!r}: servers of other wires are asked by the checkout of robowire, "
            "not by the installed package"
        )
    told = {
        **flags.policy_options,
        "url": flags.upstream,
        "timeout_s": flags.timeout_s,
        **{name: getattr(flags, name) for name in ("token", "tls", "tls_ca", "tls_cert", "tls_key")},
    }
    options = PolicyOptions(extra={name: value for name, value in told.items() if value not in (None, False)})
    outages = Outages(max(flags.wait_s, 0.0), threading.Event())
    policy = outages.ask(
        lambda: load_policy("remote", options, program.policies), must_be_reachable=not flags.wait_s
    )
    return lambda: DirectPolicyClient(policy)


def simulator_opener(flags: EpisodeServersFlags, host: str, port: int) -> Callable[[], SimulatorClient]:
    """Return what opens sessions with the simulator server at this address."""
    tls = flags.simulator_tls_context()

    def open_simulator() -> SimulatorClient:
        return SimulatorClient(host, port, token=flags.simulator_token, tls=tls, wait_s=flags.wait_s)

    return open_simulator


def report(summary: dict[str, Any], folder: Path) -> str:
    """Return the table for a person, lines of text."""
    wanted, done, errors = summary["options"]["num_episodes"], summary["episodes"], summary["errors"]
    seeds = summary["seeds"]
    rows = [
        ("task", f"{summary['options']['task']} on {summary['options']['simulator']}"),
        ("policy", f"{summary['policy']['policy']}, {_acting(summary['options'])}"),
        ("episodes", f"{done} of {wanted}, seeds {seeds[0]} to {seeds[-1]}"),
    ]
    if done:
        low, high = summary["wilson_low"], summary["wilson_high"]
        mean = summary["mean_return"]
        rows += [
            ("successes", str(summary["successes"])),
            ("success rate", f"{summary['success_rate']:.3f} (95 % Wilson interval {low:.3f} to {high:.3f})"),
            ("mean return", "not finite" if mean is None else f"{mean:.3f}"),
            ("mean steps", f"{summary['mean_steps']:.1f}"),
        ]
    decision = summary.get("decision")
    if decision is not None:
        rows.append(
            (
                "decided",
                f"{summary['options']['stop_when']} is {'true' if decision['holds'] else 'false'} after "
                f"{decision['episodes']} episodes (95 % confidence sequence {decision['low']:.3f} to "
                f"{decision['high']:.3f})",
            )
        )
    if summary["inferences"]:
        rows.append(
            ("inference", f"p50 {summary['infer_ms_p50']:.1f} ms, p99 {summary['infer_ms_p99']:.1f} ms")
        )
    if summary["late_steps"]:
        total = round(summary["mean_steps"] * done)
        rows.append(("late steps", f"{summary['late_steps']} of {total}: they took longer than their period"))
    rows += [("wall time", f"{summary['wall_s']:.0f} s"), ("results", str(folder))]
    lines = [f"{name:<13}{value}" for name, value in rows]
    if errors:
        lines.append(
            f"ERRORS       {errors}: the simulator failed in {errors} of {done + errors} episodes, which are "
            f"not counted; {folder / 'episodes.jsonl'} says why"
        )
    return "".join(f"{line}\n" for line in lines)


def _acting(options: dict[str, Any]) -> str:
    if "mode" not in options:
        return f"{options['n_action_steps']} steps a chunk"
    virtual = options["clock"] == "virtual"
    when = ", virtual clock" if virtual else f" added, real time at {options['fps']:g} Hz"
    rtc = ", real-time chunking" if "rtc" in options else ""
    return f"async, {options['aggregate_fn_name']}{rtc}, latency {options['latency_ms']} ms{when}"


def _clock(flags: EvaluateFlags) -> AsyncClock | None:
    """Return the clock that the flags of the async mode describe.

    Raises:
        ConfigurationError: They are given in the mode sync, or cannot be used.
    """
    given = {
        name: getattr(flags, name)
        for name in ("clock", "latency_ms", "fps", *_RULES, "delay_error")
        if getattr(flags, name) is not None
    }
    if flags.mode == "sync":
        if given:
            names = ", ".join(f"--{name}" for name in given)
            raise ConfigurationError(f"only the mode async knows {names}: add --mode async")
        return None
    try:
        rules = {name: given[name] for name in _RULES if name in given}
        options = AsyncOptions(**rules, rtc_delay_error=given.get("delay_error", 0))
        load_aggregate_function(options.aggregate_fn_name)
        clock = _CLOCKS[given.get("clock", "real")]
        return clock(options, Latency.parse(given.get("latency_ms", "0")), given.get("fps"))
    except (ValueError, UnknownName) as exc:
        raise ConfigurationError(str(exc)) from exc


@contextmanager
def simulator_server(
    program: Program, flags: EpisodeServersFlags, simulator: str, *, num_envs: int
) -> Iterator[tuple[str, int]]:
    """Yield the address of a simulator server: the one that is named, or one that runs in this process.

    The latter is what the command ``simulator`` would start: ``ROBOWIRE_SIM_*`` count for it too.
    """
    if flags.simulator_address is not None:
        yield parse_address("simulator_address", flags.simulator_address, example="localhost:5555")
        return
    # The user's own: no other client can reach this server to name other code.
    own = (simulator,) if ":" in simulator else ()
    # Twice the environments: one whose simulator died selects another before the first is reaped.
    sessions = 2 * num_envs
    with simulator_server_of_environment(
        program.simulators,
        host="127.0.0.1",
        port=0,
        unix_socket=None,
        max_sessions=sessions,
        max_connections=sessions + _DASHBOARDS,
        drain_s=2.0,
        token=flags.simulator_token,
        # It is reached by the loopback only.
        tls_cert=None,
        tls_key=None,
        tls_client_ca=None,
        simulators=own,
    ) as server:
        yield server.address


def without_tokens(words: Sequence[str]) -> list[str]:
    """Return a command line that can be shown: results are shared, and tokens are secrets."""
    shown: list[str] = []
    for word in words:
        if shown and re.fullmatch(rf"--{_TOKEN}", shown[-1]):
            word = "..."
        shown.append(re.sub(rf"^(--{_TOKEN}=).*", r"\1...", word))
    return shown


def find_ffmpeg() -> str | None:
    """Return the program that encodes videos, or ``None``."""
    try:
        import imageio_ffmpeg  # an extra: needed only where a video is recorded
    except ModuleNotFoundError:
        return None
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:  # a package without a program, and none on PATH
        return None
