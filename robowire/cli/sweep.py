"""``sweep``: the cost of latency for each aggregation of chunks, on a virtual clock.

Each point is an evaluation with a folder of results of its own under ``points/``. No finished episode is run
twice, so the same command, started again, continues where it stopped. The first point is the sync mode, the
reference for all latencies. ``sweep.json``, ``sweep.csv`` and ``sweep.png`` hold finished points.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from robowire.cli.command import Program
from robowire.cli.evaluate import (
    named_task,
    policy_opener,
    run_options,
    simulator_opener,
    simulator_server,
    without_tokens,
)
from robowire.cli.evaluation_flags import SweepFlags
from robowire.cli.output_folder import check_output_folder
from robowire.cli.paired import mean_interval
from robowire.cli.sweep_plot import plot
from robowire.client.action_queue import load_aggregate_function
from robowire.client.async_controller import AsyncOptions
from robowire.errors import ConfigurationError, SpecMismatch, UnknownName
from robowire.progress import Progress
from robowire.rollout.episodes import RolloutSimulator
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate
from robowire.rollout.loaded_simulators import LoadedSimulators
from robowire.rollout.results import finite, read_rows
from robowire.rollout.virtual_clock import Latency, VirtualClock

__all__ = ["Point", "figures", "latencies_of", "make_points", "report", "run"]


@dataclass(frozen=True)
class Point:
    """One evaluation of a sweep.

    Attributes:
        name: Name of its folder.
        clock: Latency and rules; ``None`` means the sync mode.
    """

    name: str
    clock: VirtualClock | None = None


def make_points(
    latencies: Iterable[str],
    aggregate_fn_names: Iterable[str],
    chunk_size_thresholds: Iterable[float],
    actions_per_chunk: Iterable[int | None],
    *,
    fps: float | None = None,
    on_empty_queue: str = "hold",
    rtc: Iterable[str] = ("none",),
    delay_errors: Iterable[int] = (),
) -> list[Point]:
    """Return the mode sync and every combination, all latencies of one combination after each other.

    Errors of the delay are combined with real-time chunking alone, after it without an error.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    points = [Point("sync")]
    read = [Latency.parse(text) for text in latencies]
    ways = [(way, error) for way in rtc for error in (0, *(delay_errors if way != "none" else ()))]
    if delay_errors and not any(error for _, error in ways):
        raise ConfigurationError("delay_error is for real-time chunking: add --rtc trained")
    try:
        for function in aggregate_fn_names:
            load_aggregate_function(function)
            for threshold, actions, (way, error) in product(chunk_size_thresholds, actions_per_chunk, ways):
                rules = AsyncOptions(
                    chunk_size_threshold=threshold,
                    actions_per_chunk=actions,
                    aggregate_fn_name=function,
                    on_empty_queue=on_empty_queue,
                    rtc=way,
                    rtc_delay_error=error,
                )
                for latency in read:
                    name = f"{function}_threshold_{threshold:g}_latency_{latency.text}"
                    name += "" if actions is None else f"_actions_{actions}"
                    name += "" if way == "none" else f"_rtc_{way}"
                    name += f"_delay_{error:+d}" if error else ""
                    # What is in the name of a function or a file may mean something in a path.
                    safe = re.sub(r"[^\w.,+-]", "-", name)
                    points.append(Point(safe, VirtualClock(rules, latency, fps)))
    except (ValueError, UnknownName) as exc:
        raise ConfigurationError(str(exc)) from exc
    return list({point.name: point for point in points}.values())


def figures(point: Point, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line of a point in the tables.

    ``mean_steps_to_success`` is over successes; its 95 % interval is Student's, ``None`` below two of them.
    """
    clock = point.clock
    steps = [float(row["steps"]) for row in rows if row["success"]]
    # The interval of one success is any number.
    mean, low, high = mean_interval(steps) or (steps[0] if steps else None, None, None)
    starved = [row["starved_steps"] for row in rows if "starved_steps" in row]
    return {
        "point": point.name,
        "mode": "sync" if clock is None else "async",
        "latency_ms": None if clock is None else clock.latency.text,
        "latency_ms_mean": None if clock is None else _mean_ms(clock.latency),
        "aggregate_fn_name": None if clock is None else clock.rules.aggregate_fn_name,
        "chunk_size_threshold": None if clock is None else clock.rules.chunk_size_threshold,
        "actions_per_chunk": None if clock is None else clock.rules.actions_per_chunk,
        "rtc": None if clock is None else clock.rules.rtc,
        "delay_error": None if clock is None else clock.rules.rtc_delay_error,
        **{
            name: summary[name]
            for name in ("episodes", "successes", "success_rate", "wilson_low", "wilson_high", "errors")
        },
        "mean_steps": summary["mean_steps"],
        "mean_steps_to_success": mean,
        "steps_low": low,
        "steps_high": high,
        "mean_return": summary["mean_return"],
        "mean_inferences": float(np.mean([row["inferences"] for row in rows])) if rows else None,
        "mean_starved_steps": float(np.mean(starved)) if starved else None,
        "jump_at_borders": _mean_of(rows, "jump_at_borders"),
        "jump_within_chunks": _mean_of(rows, "jump_within_chunks"),
        "wall_s": summary["wall_s"],
    }


def _mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def _mean_ms(latency: Latency) -> float:
    return float(np.mean(latency.recorded)) if latency.recorded else latency.mean


def report(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return the table for a person, lines of text."""
    head = ("", "latency ms", "successes", "95 % interval", "steps to success", "starved", "jump")
    table = [head]
    for row in rows:
        table.append(
            (
                _way(row),
                row["latency_ms"] or "",
                f"{row['successes']}/{row['episodes']}" + ("*" if row["errors"] else ""),
                f"{row['wilson_low']:.2f} to {row['wilson_high']:.2f}",
                _number(row["mean_steps_to_success"]),
                _number(row["mean_starved_steps"]),
                _number(row["jump_at_borders"], digits=3),
            )
        )
    widths = [max(len(cells[column]) for cells in table) for column in range(len(head))]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        for cells in table
    ]
    if any(row["errors"] for row in rows):
        lines.append("* the simulator failed in some episodes, which are not counted: run the command again")
    lines.append(f"results in {folder}: sweep.json, sweep.csv, sweep.png, points/")
    return "".join(f"{line}\n" for line in lines)


def _way(row: Mapping[str, Any]) -> str:
    if row["mode"] == "sync":
        return "sync"
    actions = "" if row["actions_per_chunk"] is None else f" of {row['actions_per_chunk']}"
    rtc = "" if row["rtc"] == "none" else ", rtc"
    error = f" {row['delay_error']:+d}" if row["delay_error"] else ""
    return f"{row['aggregate_fn_name']}, {row['chunk_size_threshold']:g}{actions}{rtc}{error}"


def _number(value: float | None, *, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def run(flags: SweepFlags, program: Program) -> int:
    """Evaluate every point, write tables and a plot, return the exit code: 1 where no episode was finished.

    Raises:
        ConfigurationError: A flag is unusable, or policy and simulator do not fit.
    """
    points = make_points(
        latencies_of(flags.latencies_ms),
        _words(flags.aggregate_fn_names),
        _numbers("chunk_size_thresholds", flags.chunk_size_thresholds, float),
        _numbers("actions_per_chunk", flags.actions_per_chunk, int, everything="all"),
        fps=flags.fps,
        on_empty_queue=flags.on_empty_queue,
        rtc=_words(flags.rtc),
        delay_errors=_numbers("delay_error", flags.delay_error, int),
    )
    simulator, task = named_task(flags, program)
    flags = replace(flags, simulator=simulator, task=task)
    default_dir = f"outputs/{time.strftime('%Y%m%d-%H%M%S')}-sweep-{task.replace('/', '-')}"
    folder = Path(flags.output_dir or default_dir)
    for point in points:
        check_output_folder(_options(flags, point, folder))
    sweep = _Sweep(flags, program, points, folder)
    served = simulator_server(program, flags, simulator, num_envs=flags.num_envs)
    try:
        with served as (host, port):
            sweep.run(simulator_opener(flags, host, port))
    except SpecMismatch as exc:
        raise ConfigurationError(str(exc)) from exc
    finally:
        if sweep.rows:
            plot(sweep.rows, sweep.folder / "sweep.png", title=sweep.title())
            sys.stdout.write(report(sweep.rows, sweep.folder))
    return 0 if any(row["episodes"] for row in sweep.rows) else 1


def _options(flags: SweepFlags, point: Point, folder: Path) -> EvaluateOptions:
    return EvaluateOptions(
        output_dir=folder / "points" / point.name,
        n_action_steps=flags.n_action_steps if point.clock is None else None,
        record_video="off",
        overwrite=flags.overwrite,
        resume=not flags.overwrite,
        asynchronous=point.clock,
        **run_options(flags, flags.simulator, str(flags.task)),
    )


class _Sweep:
    """A sweep that runs.

    Attributes:
        folder: Folder of the results.
        rows: :func:`figures` of the finished points.
    """

    def __init__(self, flags: SweepFlags, program: Program, points: Sequence[Point], folder: Path) -> None:
        self._flags = flags
        self._points = points
        self._policy: dict[str, Any] = {}
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self._open_policy = policy_opener(flags, program)

    def run(self, open_simulator: Callable[[], RolloutSimulator]) -> None:
        """Evaluate each point, or the episodes that its folder lacks."""
        total = len(self._points) * self._flags.num_episodes
        progress = Progress(str(self._flags.task), total, unit="episode", least_s=0)
        with LoadedSimulators(open_simulator) as pool, progress:
            for number, point in enumerate(self._points, 1):
                progress.note(f"point {number} of {len(self._points)}: {point.name}")
                self._evaluate(point, pool, progress)

    def title(self) -> str:
        """Return the title of the plot."""
        flags, policy = self._flags, self._policy
        checkpoint = f" ({policy['checkpoint']})" if policy.get("checkpoint") else ""
        return (
            f"{policy['policy']}{checkpoint} on {flags.simulator} {flags.task}, "
            f"{flags.num_episodes} episodes a point, seed {flags.seed}"
        )

    def _evaluate(self, point: Point, pool: LoadedSimulators, progress: Progress) -> None:
        flags = self._flags
        options = _options(flags, point, self.folder)
        summary = evaluate(
            options,
            open_policy=self._open_policy,
            open_simulator=pool.open,
            policy_wait_s=flags.policy_wait_s,
            command_line=without_tokens(sys.argv),
            on_start=lambda summary: progress.skip(summary["episodes"]),
            on_episode=lambda episode, summary: progress.update(),
        )
        self._policy = summary["policy"]
        self.rows.append(figures(point, summary, read_rows(options.output_dir / "episodes.jsonl")))
        self._write()

    def _write(self) -> None:
        flags = self._flags
        written = {
            "complete": len(self.rows) == len(self._points),
            "simulator": flags.simulator,
            "task": flags.task,
            "policy": self._policy,
            "seed": flags.seed,
            "num_episodes": flags.num_episodes,
            "command_line": without_tokens(sys.argv),
            "points": self.rows,
        }
        (self.folder / "sweep.json").write_text(json.dumps(finite(written), indent=2) + "\n")
        with (self.folder / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def latencies_of(given: Sequence[str]) -> list[str]:
    """Return the latencies of a list with commas; the one in ``normal:80,20`` belongs to it."""
    return [text for entry in given for text in re.findall(r"normal:[^,]*,[^,]*|[^,]+", entry)]


def _words(given: Sequence[str]) -> list[str]:
    return [word for entry in given for word in entry.split(",") if word]


def _numbers(
    name: str, given: Sequence[str], kind: Callable[[str], Any], *, everything: str | None = None
) -> list[Any]:
    """Return numbers, and ``None`` for the word that means all."""
    words = _words(given)
    try:
        return [None if word == everything else kind(word) for word in words]
    except ValueError:
        hint = f", or {everything}" if everything else ""
        raise ConfigurationError(f"{name} is {','.join(words)!r}, expected numbers{hint}") from None
