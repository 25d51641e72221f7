"""A running or finished evaluation, read from its folder: an episode is on disk as soon as it is finished."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from robowire.errors import ConfigurationError
from robowire.rollout.results import read_rows
from robowire.rollout.statistics import wilson_interval

__all__ = ["read_evaluation"]

# Most tasks that are looked for: a suite of LIBERO has 90.
_MAX_TASKS = 200
# Videos that a page offers, the latest ones.
_MAX_VIDEOS = 8
# Without those that are being written, whose names begin with a dot.
_VIDEOS = ("videos/episode_*.mp4", "*/videos/episode_*.mp4")


def read_evaluation(folder: Path, *, now: float | None = None) -> dict[str, Any]:
    """Return how far an evaluation is.

    Args:
        folder: Folder of one task, or of one folder for each task.
        now: Seconds since 1970; the time by default.

    Returns:
        ``folder``; ``tasks``, a row for each; ``total``, a row of all; ``videos``, paths relative to it.
        A row has ``task episodes wanted successes errors low high seconds_left mean_steps starved_steps``;
        ``seconds_left`` is ``None`` where it is not known.
    """
    now = time.time() if now is None else now
    summaries = [folder / "summary.json", *sorted(folder.glob("*/summary.json"))][: _MAX_TASKS + 1]
    tasks = [row for path in summaries if path.exists() and (row := _task(path, now)) is not None]
    videos = sorted(
        (path for pattern in _VIDEOS for path in folder.glob(pattern)),
        key=lambda path: path.stat().st_mtime if path.exists() else 0.0,
    )
    shown = [str(path.relative_to(folder)) for path in reversed(videos[-_MAX_VIDEOS:])]
    return {"folder": str(folder), "tasks": tasks, "total": _total(tasks), "videos": shown}


def _task(path: Path, now: float) -> dict[str, Any] | None:
    try:
        summary = json.loads(path.read_bytes())
        rows = read_rows(path.with_name("episodes.jsonl"))
        wanted = int(summary["options"]["num_episodes"])
        named = str(summary["options"]["task"])
        policy = str(summary["policy"]["policy"])
    except (OSError, ValueError, KeyError, TypeError, ConfigurationError):
        return None  # not written yet, or of another program
    done = [row for row in rows if row["error"] is None]
    successes = sum(row["success"] is True for row in done)
    left = max(wanted - len(done), 0)
    low, high = wilson_interval(successes, len(done))
    starved = [row["starved_steps"] for row in done if row.get("starved_steps") is not None]
    return {
        "task": named,
        "policy": policy,
        "wanted": wanted,
        "episodes": len(done),
        "successes": successes,
        "errors": len(rows) - len(done),
        "low": low,
        "high": high,
        "mean_steps": sum(row["steps"] for row in done) / len(done) if done else None,
        "starved_steps": sum(starved) if starved else None,
        "seconds_left": _seconds_left(path, summary, len(done), left, now),
    }


def _seconds_left(path: Path, summary: dict[str, Any], done: int, left: int, now: float) -> float | None:
    """Return the seconds that the rest takes, from the pace so far."""
    if not left:
        return 0.0
    wall_s = summary.get("wall_s")
    if not done or not wall_s:
        return None
    # The summary is as old as its file, and episodes run on.
    return max(float(wall_s) / done * left - max(now - path.stat().st_mtime, 0.0), 0.0)


def _total(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {name: sum(row[name] for row in tasks) for name in ("wanted", "episodes", "successes", "errors")}
    low, high = wilson_interval(sums["successes"], sums["episodes"])
    left = [row["seconds_left"] for row in tasks if row["episodes"] < row["wanted"]]
    known = [seconds for seconds in left if seconds is not None]
    seconds_left = sum(known) if len(known) == len(left) else None
    starved = [row["starved_steps"] for row in tasks if row["starved_steps"] is not None]
    return {
        **sums,
        "low": low,
        "high": high,
        "seconds_left": seconds_left,
        "starved_steps": sum(starved) if starved else None,
    }
