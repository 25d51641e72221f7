"""``client.py lerobot-eval``: an evaluation under LeRobot's flags, with a table of its tasks."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from robowire.address import join_address
from robowire.cli.evaluate import find_ffmpeg, simulator_server, without_tokens
from robowire.errors import ConfigurationError, UnknownName
from robowire.integrations.lerobot import EnvConfig, SimClient, SimClientConfig
from robowire.rollout.episodes import Episode
from robowire.rollout.statistics import wilson_interval

__all__ = ["LEROBOT_EVAL", "report", "totals"]

# Flags of LeRobot that ask for what is so anyway, is the server's to say, or is told in another place here.
_NOTED = {
    "policy_device": "the policy server was told its device when it was started",
    "client_device": "actions are numpy arrays here",
    "debug_visualize_queue_size": "episodes.jsonl has the queue's mean size, of each episode",
    "env.obs_type": "the policy server says what its policy needs",
    "env.render_mode": "the policy server says what its policy needs",
    "env.init_states": "LIBERO's initial states are taken in turn",
    "eval.use_async_envs": "every simulator has a process of its own",
    "videos_dir": "films are in the folder of the results",
}


def _add_options(parser: Any) -> None:
    add = parser.add_argument
    add("--env.type", type=str, default="libero", help="name of the simulator, or module:function")
    add("--env.task", type=str, default="libero_10", help="a task, a suite, or several with commas")
    add("--env.task_ids", type=list[int], help="of each suite, only these: [0,3]")
    add("--env.episode_length", type=int, help="steps after which an episode is over; default: the task's")
    add("--env.camera_name", type=str, help="cameras with commas; default: those that the policy names")
    add("--env.fps", type=float, help="the same as --fps")
    add("--policy_type", "--policy.type", type=str, required=True, help="compared with the server's policy")
    add(
        "--pretrained_name_or_path",
        "--policy.path",
        type=str,
        required=True,
        help="the last part of it is compared with the name of the server's checkpoint",
    )
    add("--server_address", type=str, help="host:port of the policy server, as --address")
    add("--task", type=str, default="", help="instruction for the policy; default: each task's own")
    add("--n_episodes", "--eval.n_episodes", type=int, default=10, help="of each task")
    add("--num_envs", "--eval.batch_size", type=int, default=1, help="simulators at one time")
    add("--seed", type=int, default=0, help="0 to 999; episode i is seed * 1000 + i to the simulator")
    add("--actions_per_chunk", type=int, help="use so many actions of each chunk; default: all")
    add("--chunk_size_threshold", type=float, default=0.5, help="ask when this share of a chunk is left")
    add("--aggregate_fn_name", type=str, default="weighted_average", help="how overlaps are merged")
    add("--fps", type=float, help="control steps a second; default: the simulator's control_hz")
    add("--clock", choices=["real", "virtual"], default="real", help="virtual: costs no waiting, and repeats")
    add("--latency_ms", type=str, default="0", help="80, normal:80,20 or recorded:FILE")
    add("--when_dry", choices=["hold", "zero", "wait"], default="hold", help="while the queue is empty")
    add("--save_videos", type=bool, default=False, help="true: film")
    add("--max_episodes_rendered", type=int, default=10, help="how many of the first episodes of each task")
    add("--output_dir", type=str, help="folder for the results; default: outputs/lerobot-eval/<date-time>")
    add("--overwrite", action="store_true", help="replace results that the folder holds")
    add("--resume", action="store_true", help="run what the folder lacks")
    add("--policy_wait_s", type=float, default=60.0, help="seconds that the policy server may be away")
    add("--simulator_address", type=str, help="host:port of a simulator server; default: one is started here")
    add("--simulator_token", type=str, help="shown to the simulator server, where it wants one")
    for name, why in _NOTED.items():
        add(f"--{name}", type=str, help=f"taken and noted: {why}")


def _run(flags: Any) -> int:
    """Return the exit code: 0; 1 where a server does not answer, or no episode was finished."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for name, why in _NOTED.items():
        if flags[name] is not None:
            sys.stderr.write(f"note: --{name} changes nothing: {why}\n")
    folder = Path(flags.output_dir or f"outputs/lerobot-eval/{time.strftime('%Y%m%d-%H%M%S')}")
    bar = tqdm(unit="episode", dynamic_ncols=True)

    def on_episode(task: str, episode: Episode, summary: dict[str, Any]) -> None:
        bar.set_description(task)
        bar.update()

    flags.simulator = flags.env.type
    with simulator_server(flags) as (host, port), bar, logging_redirect_tqdm():
        client = SimClient(
            _config(flags, folder, f"{host}:{port}"),
            ffmpeg=find_ffmpeg(),
            command_line=tuple(without_tokens(sys.argv)),
            on_episode=on_episode,
        )
        if not client.start():
            return 1
        bar.reset(len(client.tasks) * flags.n_episodes)
        try:
            client.control_loop()
        finally:
            client.stop()
            bar.close()
            if client.results:
                _write(folder, client.results)
                sys.stdout.write(report(client.results, folder))
    return 0 if totals(client.results)["episodes"] else 1


def _config(flags: Any, folder: Path, simulator_address: str) -> SimClientConfig:
    ids, env = flags.env.task_ids, flags.env
    try:
        return SimClientConfig(
            policy_type=flags.policy_type,
            pretrained_name_or_path=flags.pretrained_name_or_path,
            env=EnvConfig(
                env.type, env.task, None if ids is None else tuple(ids), env.episode_length, env.camera_name
            ),
            actions_per_chunk=flags.actions_per_chunk,
            task=flags.task,
            server_address=flags.server_address or join_address(flags.host, flags.port),
            chunk_size_threshold=flags.chunk_size_threshold,
            fps=flags.fps if flags.fps is not None else env.fps,
            aggregate_fn_name=flags.aggregate_fn_name,
            n_episodes=flags.n_episodes,
            seed=flags.seed,
            save_videos=flags.save_videos,
            max_episodes_rendered=flags.max_episodes_rendered,
            simulator_address=simulator_address,
            output_dir=str(folder),
            clock=flags.clock,
            latency_ms=flags.latency_ms,
            num_envs=flags.num_envs,
            when_dry=flags.when_dry,
            policy_wait_s=flags.policy_wait_s,
            overwrite=flags.overwrite,
            resume=flags.resume,
            token=flags.token,
            simulator_token=flags.simulator_token,
        )
    except (ValueError, UnknownName) as exc:
        raise ConfigurationError(str(exc)) from exc


def totals(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all tasks' episodes say together, under the names of a summary."""
    episodes, successes, errors = (
        sum(summary[name] for summary in results.values()) for name in ("episodes", "successes", "errors")
    )
    low, high = wilson_interval(successes, episodes)
    steps = sum(
        summary["mean_steps"] * summary["episodes"] for summary in results.values() if summary["episodes"]
    )
    return {
        "episodes": episodes,
        "successes": successes,
        "success_rate": successes / episodes if episodes else None,
        "wilson_low": low,
        "wilson_high": high,
        "mean_steps": steps / episodes if episodes else None,
        "errors": errors,
    }


def report(results: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Return a line for each task and one for all, lines of text."""
    rows = [("task", "episodes", "successes", "rate", "95 % Wilson interval", "mean steps", "errors")]
    for name, figures in [*results.items(), *([("all", totals(results))] if len(results) > 1 else [])]:
        rate, steps = figures["success_rate"], figures["mean_steps"]
        rows.append(
            (
                name,
                str(figures["episodes"]),
                str(figures["successes"]),
                "-" if rate is None else f"{rate:.3f}",
                f"{figures['wilson_low']:.3f} to {figures['wilson_high']:.3f}",
                "-" if steps is None else f"{steps:.1f}",
                str(figures["errors"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "".join(f"{line}\n" for line in [*lines, f"results  {folder}"])


def _write(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    names = ("episodes", "successes", "success_rate", "wilson_low", "wilson_high", "mean_steps", "errors")
    tasks = {task: {name: summary[name] for name in names} for task, summary in results.items()}
    (folder / "results.json").write_text(
        json.dumps({"tasks": tasks, "all": totals(results)}, indent=2) + "\n"
    )


# A row of client.py's table leads here; its class is the program's, and rooms import nothing from programs.
LEROBOT_EVAL = SimpleNamespace(add_options=_add_options, run=_run)
