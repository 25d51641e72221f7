"""Results of several tasks: a line for each and one for all, on the screen and in ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robowire.rollout.results import finite
from robowire.rollout.statistics import wilson_interval

__all__ = ["report", "totals", "write_results"]


def totals(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of all tasks together, under the names of a summary."""
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


def report(
    results: Mapping[str, Mapping[str, Any]],
    folder: Path,
    suites: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return a line for each task and one for all, lines of text.

    Args:
        results: Summaries by task.
        folder: Where they are.
        suites: Tasks of each suite that gets a line of its own.
    """
    rows = [("task", "episodes", "successes", "rate", "95 % Wilson interval", "mean steps", "errors")]
    lines_of = dict(results)
    for suite, tasks in (suites or {}).items():
        found = {task: results[task] for task in tasks if task in results}
        if len(found) > 1:
            lines_of[f"suite {suite}"] = totals(found)
    if len(results) > 1:
        lines_of["all"] = totals(results)
    for name, figures in lines_of.items():
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


def write_results(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``results.json``: the figures of each task and of all."""
    names = ("episodes", "successes", "success_rate", "wilson_low", "wilson_high", "mean_steps", "errors")
    tasks = {task: {name: summary[name] for name in names} for task, summary in results.items()}
    (folder / "results.json").write_text(
        json.dumps(finite({"tasks": tasks, "all": totals(results)}), indent=2) + "\n"
    )
