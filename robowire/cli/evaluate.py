"""``client.py evaluate``: the loop of :mod:`robowire.rollout` with a progress bar and a table."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from benchmark.registry import SIMULATORS
from robowire import AsyncPolicyClient, PolicyClient, SimulatorClient
from robowire.address import parse_address
from robowire.client.action_queue import AGGREGATE_FUNCTIONS, load_aggregate_function
from robowire.client.async_controller import WHEN_DRY, AsyncOptions
from robowire.errors import ConfigurationError, EvaluationStopped, SpecMismatch, UnknownName
from robowire.registry import entries, family_and_task
from robowire.rollout.episodes import Episode
from robowire.rollout.evaluation import EvaluateOptions, evaluate
from robowire.rollout.real_clock import RealClock
from robowire.rollout.virtual_clock import AsyncClock, Latency, VirtualClock

__all__ = [
    "EVALUATE",
    "add_run_options",
    "find_ffmpeg",
    "policy_opener",
    "report",
    "run_options",
    "simulator_server",
    "skip",
    "without_tokens",
]

_CLOCKS: dict[str, type[AsyncClock]] = {clock.name: clock for clock in (RealClock, VirtualClock)}

# A policy server that is started anew imports torch and reads its weights, which takes seconds; one that a
# person has to notice and start takes longer.
_POLICY_WAIT_S = 60.0

# More late steps than these, and a latency costs fewer steps than it says.
_LATE_SHARE = 0.05


def add_run_options(parser: Any) -> None:
    """Add the flags that say which episodes are run, and where: those of every command that runs some."""
    defaults = EvaluateOptions(Path())
    add = parser.add_argument
    add(
        "--simulator",
        type=str,
        default=defaults.simulator,
        help="name of the simulator, with a task (gymnasium:FetchReach-v4) or without, or module:function",
    )
    add("--task", type=str, help=f"one of its tasks; default: the one named with it, else {defaults.task}")
    add("--num_episodes", type=int, default=defaults.num_episodes, help="episodes to run, at most 1000")
    add("--num_envs", type=int, default=defaults.num_envs, help="simulators at one time, a process each")
    add(
        "--seed",
        type=int,
        default=defaults.seed,
        help="0 to 999; episode i is seed * 1000 + i to the simulator",
    )
    add(
        "--n_action_steps",
        type=int,
        help="actions executed of each chunk; default: what the policy server says, else the whole chunk",
    )
    add("--max_episode_steps", type=int, help="steps after which an episode is over; default: the task's own")
    add("--robot", type=str, help="such as Panda; default: the simulator's")
    add("--controller", type=str, help="such as OSC_POSE; default: the simulator's")
    add("--camera_names", type=str, nargs="+", help="the simulator's cameras, in the order of the policy's")
    add(
        "--policy_wait_s",
        type=float,
        default=_POLICY_WAIT_S,
        help="seconds that the policy server may be away once the evaluation has begun, each time",
    )
    add("--simulator_address", type=str, help="host:port of a simulator server; default: one is started here")
    add("--simulator_token", type=str, help="shown to the simulator server, where it wants one")


def name_task(flags: Any) -> None:
    """Set the simulator and the task that the flags name, ``--simulator gymnasium:FetchReach-v4`` both."""
    flags.simulator, named = family_and_task(flags.simulator, entries("simulator", SIMULATORS))
    flags.task = flags.task or named or EvaluateOptions.task


def run_options(flags: Any) -> dict[str, Any]:
    """Return what these flags say, as arguments of :class:`EvaluateOptions`."""
    return {
        "simulator": flags.simulator,
        "task": flags.task,
        "num_episodes": flags.num_episodes,
        "num_envs": flags.num_envs,
        "seed": flags.seed,
        "max_episode_steps": flags.max_episode_steps,
        "robot": flags.robot,
        "controller": flags.controller,
        "camera_names": _names(flags.camera_names),
    }


def _add_options(parser: Any) -> None:
    """Add the flags of the command to those of the connection with the policy server."""
    add_run_options(parser)
    add = parser.add_argument
    add(
        "--mode",
        choices=["sync", "async"],
        default="sync",
        help="sync: the simulator waits for each chunk; async: it goes on, with what is left of the last one",
    )
    # Without defaults of their own: in the mode sync they mean nothing, and are refused.
    add(
        "--clock",
        choices=list(_CLOCKS),
        help="async: real time at --fps (real, the default), or latencies as numbers of steps, which cost no "
        "waiting and repeat (virtual)",
    )
    add(
        "--latency_ms",
        type=str,
        help="async: 0 (default), 80, normal:80,20 (mean, std) or recorded:FILE; the whole latency on the "
        "virtual clock, added to the real one in real time",
    )
    add("--fps", type=float, help="async: control steps a second; default: the simulator's control_hz")
    add(
        "--chunk_size_threshold",
        type=float,
        help="async: ask when this share of a chunk is left, or less (0.5)",
    )
    add("--actions_per_chunk", type=int, help="async: use so many actions of each chunk; default: all")
    functions = ", ".join(AGGREGATE_FUNCTIONS)
    add("--aggregate_fn_name", type=str, help=f"async: {functions}, or module:function (weighted_average)")
    add("--when_dry", choices=list(WHEN_DRY), help="async: what to execute while the queue is empty (hold)")
    add("--output_dir", type=str, help="folder for the results; default: outputs/<date-time>-<task>")
    add("--overwrite", action="store_true", help="replace results that the folder holds")
    add(
        "--resume",
        action="store_true",
        help="keep what the folder holds, run the episodes that are missing or ended with an error",
    )
    add(
        "--record_video",
        type=str,
        default=EvaluateOptions(Path()).record_video,
        help="off, failures, all, or how many of the first episodes to film",
    )


def _run(flags: Any) -> int:
    """Return the exit code: 0; 1 where no episode was finished; 2 where policy and simulator do not fit."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    name_task(flags)
    default_dir = f"outputs/{time.strftime('%Y%m%d-%H%M%S')}-{flags.task.replace('/', '-')}"
    if flags.resume and flags.output_dir is None:
        raise ConfigurationError("resume needs --output_dir, the folder with the episodes that there are")
    options = EvaluateOptions(
        output_dir=Path(flags.output_dir or default_dir),
        n_action_steps=flags.n_action_steps,
        record_video=flags.record_video,
        overwrite=flags.overwrite,
        resume=flags.resume,
        asynchronous=_clock(flags),
        **run_options(flags),
    )
    open_policy = policy_opener(flags)

    def open_async_policy(rules: AsyncOptions, added_s: Callable[[int], float]) -> AsyncPolicyClient:
        return AsyncPolicyClient(
            flags.host,
            flags.port,
            rules,
            timeout_s=flags.timeout_s,
            patience_s=max(flags.policy_wait_s, 1e-3),  # 0 would mean never to look
            token=flags.token,
            added_latency_s=added_s,
        )

    latest: dict[str, Any] = {}  # what is known when something ends the evaluation early

    def on_start(summary: dict[str, Any]) -> None:
        latest.update(summary)
        tqdm.write(
            f"{summary['policy']['policy']} at {flags.host}:{flags.port} runs {options.task} on "
            f"{options.simulator}; results go to {options.output_dir}"
        )
        if summary["episodes"]:
            tqdm.write(f"{summary['episodes']} of {options.num_episodes} episodes were there")
            skip(bar, summary["episodes"])

    def on_episode(episode: Episode, summary: dict[str, Any]) -> None:
        latest.update(summary)
        bar.update()
        done, successes, errors = (summary[key] for key in ("episodes", "successes", "errors"))
        rate = f"{successes}/{done} = {successes / done:.0%}" if done else "none"
        bar.set_postfix_str(f"successes {rate}" + (f", ERRORS {errors}" if errors else ""))
        if (episode.late_steps or 0) > _LATE_SHARE * episode.steps and not late:
            late.append(episode.episode)
            tqdm.write(
                f"WARNING: {episode.late_steps} of {episode.steps} steps of episode {episode.episode} were "
                f"late: this machine does not hold {summary['options']['fps']:g} steps a second with "
                f"{options.num_envs} environments, so latencies cost fewer steps than they should. Use fewer "
                "--num_envs, a lower --fps, or --clock virtual",
                file=sys.stderr,
            )

    late: list[int] = []

    bar = tqdm(total=options.num_episodes, unit="episode", desc=options.task, dynamic_ncols=True)
    with simulator_server(flags) as (host, port), bar, logging_redirect_tqdm():
        try:
            latest = evaluate(
                options,
                open_policy=open_policy,
                open_simulator=lambda: SimulatorClient(host, port, token=flags.simulator_token),
                open_async_policy=open_async_policy,
                policy_wait_s=flags.policy_wait_s,
                ffmpeg=find_ffmpeg(),
                command_line=without_tokens(sys.argv),
                on_start=on_start,
                on_episode=on_episode,
            )
        except SpecMismatch as exc:
            bar.close()
            sys.stderr.write(f"client.py evaluate: {exc}\n")
            return 2
        except (EvaluationStopped, KeyboardInterrupt):
            bar.close()
            if latest:
                sys.stdout.write(report(latest, options.output_dir))
            raise
    sys.stdout.write(report(latest, options.output_dir))
    return 0 if latest["episodes"] else 1


def policy_opener(flags: Any) -> Callable[[], PolicyClient]:
    """Return what opens sessions with the policy server, after it answered once.

    Raises:
        RobowireError: It does not answer: a wrong address is told at once.
    """

    def open_policy() -> PolicyClient:
        # Without repetitions of its own: the evaluation waits for the server, and must know of its loss.
        return PolicyClient(flags.host, flags.port, timeout_s=flags.timeout_s, retries=0, token=flags.token)

    with open_policy() as policy:
        policy.ping()
    return open_policy


def skip(bar: Any, episodes: int) -> None:
    """Move a bar past episodes that were there before: they tell nothing of how fast others will be."""
    bar.initial += episodes
    bar.last_print_n += episodes
    bar.n += episodes
    bar.refresh()


def report(summary: dict[str, Any], folder: Path) -> str:
    """Return the table a person reads at the end, lines of text."""
    wanted, done, errors = summary["options"]["num_episodes"], summary["episodes"], summary["errors"]
    seeds = summary["seeds"]
    rows = [
        ("task", f"{summary['options']['task']} on {summary['options']['simulator']}"),
        ("policy", f"{summary['policy']['policy']}, {_acting(summary['options'])}"),
        ("episodes", f"{done} of {wanted}, seeds {seeds[0]} to {seeds[-1]}"),
    ]
    if done:
        low, high = summary["wilson_low"], summary["wilson_high"]
        rows += [
            ("successes", str(summary["successes"])),
            ("success rate", f"{summary['success_rate']:.3f} (95 % Wilson interval {low:.3f} to {high:.3f})"),
            ("mean return", f"{summary['mean_return']:.3f}"),
            ("mean steps", f"{summary['mean_steps']:.1f}"),
        ]
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
    return f"async, {options['aggregate_fn_name']}, latency {options['latency_ms']} ms{when}"


def _clock(flags: Any) -> AsyncClock | None:
    """Return what the flags of the mode async say.

    Raises:
        ConfigurationError: They are given in the mode sync, or cannot be used.
    """
    rules = ("chunk_size_threshold", "actions_per_chunk", "aggregate_fn_name", "when_dry")
    given = {
        name: getattr(flags, name)
        for name in ("clock", "latency_ms", "fps", *rules)
        if getattr(flags, name) is not None
    }
    if flags.mode == "sync":
        if given:
            names = ", ".join(f"--{name}" for name in given)
            raise ConfigurationError(f"only the mode async knows {names}: add --mode async")
        return None
    try:
        options = AsyncOptions(**{name: given[name] for name in rules if name in given})
        load_aggregate_function(options.aggregate_fn_name)
        clock = _CLOCKS[given.get("clock", "real")]
        return clock(options, Latency.parse(given.get("latency_ms", "0")), given.get("fps"))
    except (ValueError, UnknownName) as exc:
        raise ConfigurationError(str(exc)) from exc


@contextmanager
def simulator_server(flags: Any) -> Iterator[tuple[str, int]]:
    """Yield the address of the named simulator server, or of one that runs in this process meanwhile.

    The latter is what ``server.py simulator`` would be: ``ROBOWIRE_SIM_*`` count for it too.
    """
    if flags.simulator_address is not None:
        yield parse_address("simulator_address", flags.simulator_address, example="localhost:5555")
        return
    # The user's own: nobody else can reach this server to name other code.
    own = (flags.simulator,) if ":" in flags.simulator else ()
    # Twice the environments: one whose simulator died asks for another before the first is reaped.
    sessions = 2 * flags.num_envs
    with flags.simulator_server(
        host="127.0.0.1",
        port=0,
        max_sessions=sessions,
        max_connections=sessions,
        drain_s=2.0,
        auth_token=flags.simulator_token,
        simulators=own,
    ) as server:
        yield server.address


def without_tokens(words: Sequence[str]) -> list[str]:
    """Return a command line that can be shown: results are shared, and tokens are secrets."""
    shown: list[str] = []
    for word in words:
        if shown and re.fullmatch(r"--(simulator_)?token", shown[-1]):
            word = "..."
        shown.append(re.sub(r"^(--(simulator_)?token=).*", r"\1...", word))
    return shown


def _names(given: list[str] | None) -> tuple[str, ...] | None:
    """Return names given as words, as a list with commas, or both: what the server's flag takes too."""
    return tuple(name for entry in given for name in entry.split(",") if name) if given else None


def find_ffmpeg() -> str | None:
    """Return the program that makes films, or ``None``."""
    try:
        import imageio_ffmpeg  # an extra: it is missed only where something is to be filmed
    except ModuleNotFoundError:
        return None
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:  # a package without a program, and none on PATH
        return None


# A row of client.py's table leads here; its class is the program's, and rooms import nothing from programs.
EVALUATE = SimpleNamespace(add_options=_add_options, run=_run)
