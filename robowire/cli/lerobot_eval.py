"""``lerobot-eval``: an evaluation with the flags of LeRobot, and a table of its tasks."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from robowire.address import join_address
from robowire.cli.command import Program
from robowire.cli.evaluate import find_ffmpeg, simulator_server, without_tokens
from robowire.cli.evaluation_flags import IGNORED_BY_LEROBOT_EVAL, LerobotEvalFlags
from robowire.cli.output_folder import check_writable
from robowire.cli.task_table import report, totals, write_results
from robowire.errors import ConfigurationError, UnknownName
from robowire.integrations.lerobot import EnvConfig, SimClient, SimClientConfig
from robowire.progress import Progress
from robowire.rollout.episodes import EpisodeResult

__all__ = ["report", "run", "totals"]


def run(flags: LerobotEvalFlags, program: Program) -> int:
    """Evaluate, print a table, return the exit code: 1 where a server fails or no episode was finished."""
    for name, reason in IGNORED_BY_LEROBOT_EVAL.items():
        if getattr(flags, name.replace(".", "_")) is not None:
            sys.stderr.write(f"note: --{name} changes nothing: {reason}\n")
    folder = Path(flags.output_dir or f"outputs/lerobot-eval/{time.strftime('%Y%m%d-%H%M%S')}")
    check_writable(folder)
    progress = Progress("starting", unit="episode", least_s=0)

    def on_episode(task: str, episode: EpisodeResult, summary: dict[str, Any]) -> None:
        progress.rename(task)
        progress.update()

    with simulator_server(program, flags, flags.env_type, num_envs=flags.num_envs) as (host, port):
        client = SimClient(
            _config(flags, folder, f"{host}:{port}"),
            ffmpeg=find_ffmpeg(),
            command_line=tuple(without_tokens(sys.argv)),
            on_episode=on_episode,
        )
        try:
            with progress:
                if not client.start():
                    return 1
                progress.set_total(len(client.tasks) * flags.n_episodes)
                client.control_loop()
        finally:
            client.stop()
            if client.results:
                write_results(folder, client.results)
                sys.stdout.write(report(client.results, folder))
    return 0 if totals(client.results)["episodes"] else 1


def _config(flags: LerobotEvalFlags, folder: Path, simulator_address: str) -> SimClientConfig:
    try:
        return SimClientConfig(
            policy_type=flags.policy_type,
            pretrained_name_or_path=flags.pretrained_name_or_path,
            env=EnvConfig(
                flags.env_type,
                flags.env_task,
                flags.env_task_ids,
                flags.env_episode_length,
                flags.env_camera_name,
            ),
            actions_per_chunk=flags.actions_per_chunk,
            task=flags.task,
            server_address=flags.server_address or join_address(flags.host, flags.port),
            chunk_size_threshold=flags.chunk_size_threshold,
            fps=flags.fps if flags.fps is not None else flags.env_fps,
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
            on_empty_queue=flags.on_empty_queue,
            policy_wait_s=flags.policy_wait_s,
            overwrite=flags.overwrite,
            resume=flags.resume,
            token=flags.token,
            simulator_token=flags.simulator_token,
            tls=flags.tls_context(),
            simulator_tls=flags.simulator_tls_context(),
            wait_s=flags.wait_s,
        )
    except (ValueError, UnknownName) as exc:
        raise ConfigurationError(str(exc)) from exc
