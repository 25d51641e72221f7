"""The folder an evaluation leaves: ``summary.json``, ``episodes.jsonl``, ``videos/``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robowire.errors import ConfigurationError
from robowire.rollout.episodes import Episode
from robowire.rollout.statistics import percentile

__all__ = ["ResultFolder", "episode_row"]

# Of AsyncStatistics.summary.
_ASYNC_FIGURES = (
    "starved_steps",
    "queue_size_mean",
    "observation_age_ms_p50",
    "observation_age_ms_p95",
    "aggregated_steps",
)


class ResultFolder:
    """One evaluation's files. Nothing is created before :meth:`create`.

    Args:
        path: The folder.
        overwrite: Whether results that are there may be replaced.

    Raises:
        ConfigurationError: The folder holds results and ``overwrite`` is false, or the path is no folder.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.summary = path / "summary.json"
        self.episodes = path / "episodes.jsonl"
        self.videos = path / "videos"
        if path.exists() and not path.is_dir():
            raise ConfigurationError(f"output_dir {path} is a file, expected a folder")
        if not overwrite and (self.summary.exists() or self.episodes.exists()):
            raise ConfigurationError(
                f"{path} holds results already: choose another --output_dir, or --overwrite them"
            )

    def create(self) -> None:
        """Make the folder, without what an earlier evaluation left in it.

        Raises:
            ConfigurationError: It cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in [self.summary, *self.videos.glob("episode_*.mp4")]:
                path.unlink(missing_ok=True)
            self.episodes.write_text("")
        except OSError as exc:
            raise ConfigurationError(f"cannot write results to {self.path}: {exc.strerror or exc}") from exc

    def append(self, episode: Episode) -> None:
        """Add one line; it is in the file when this returns, so a crash later loses no episode."""
        with self.episodes.open("a") as lines:
            lines.write(json.dumps(episode_row(episode)) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace ``summary.json``: a reader sees the whole old file or the whole new one."""
        partial = self.summary.with_name(".summary.json.partial")
        partial.write_text(json.dumps(summary, indent=2) + "\n")
        os.replace(partial, self.summary)

    def video(self, episode: int, *, success: bool) -> Path:
        """Return where the film of an episode goes; its folder exists from now on."""
        self.videos.mkdir(exist_ok=True)
        return self.videos / f"episode_{episode:03d}_{'success' if success else 'failure'}.mp4"


def episode_row(episode: Episode) -> dict[str, Any]:
    """Return an episode as plain data. Asynchronous ones say so, and how their queue did."""
    row = {
        "episode": episode.episode,
        "seed": episode.seed,
        "init_state": episode.init_state,
        "success": episode.success,
        "steps": episode.steps,
        "return": episode.total_reward,
        "error": episode.error,
        "inferences": len(episode.infer_ms),
        "infer_ms_p50": percentile(episode.infer_ms, 50),
        "infer_ms_max": max(episode.infer_ms, default=None),
        "seconds": round(episode.seconds, 3),
        "video": episode.video,
    }
    if episode.statistics is not None:
        told = episode.statistics.summary()
        row |= {"mode": "async", **{name: told[name] for name in _ASYNC_FIGURES}}
    return row
