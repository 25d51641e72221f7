"""The folder of an evaluation's results: ``summary.json``, ``episodes.jsonl``, ``videos/``.

It holds episodes of one evaluation only. ``summary.json`` is there before the first episode and has a
``fingerprint``, all that decides what episodes are; a later evaluation may add episodes if its own is equal.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, Mapping

from robowire.errors import ConfigurationError, ResultsNotWritten, VideoFailed
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.statistics import percentile

__all__ = ["ResultFolder", "episode_of_row", "episode_row", "finite", "read_rows"]

# Of AsyncStatistics.summary.
_ASYNC_FIGURES = (
    "starved_steps",
    "queue_size_mean",
    "observation_age_ms_p50",
    "observation_age_ms_p95",
    "aggregated_steps",
    "jump_at_borders",
    "jump_within_chunks",
)


class ResultFolder:
    """One evaluation's files. Nothing is created before :meth:`create`.

    Args:
        path: The folder.
        overwrite: Whether results that are there may be replaced.
        resume: Whether they may be added to. Where there are none, it means nothing.

    Raises:
        ConfigurationError: The folder holds results and both are false, or the path is no folder.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = path
        self.summary = path / "summary.json"
        self.episodes = path / "episodes.jsonl"
        self.videos = path / "videos"
        self._lock: int | None = None
        if path.exists() and not path.is_dir():
            raise ConfigurationError(f"output_dir {path} is a file, expected a folder")
        self._holds_results = self.summary.exists() or self.episodes.exists()
        if self._holds_results and not (overwrite or resume):
            raise ConfigurationError(
                f"{path} holds results already: choose another --output_dir, --resume or --overwrite them"
            )
        self._resume = resume

    def create(self, fingerprint: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float]:
        """Make the folder, without what an earlier evaluation left; resumed, with its finished episodes.

        An episode that ended with an error is no result: its row is dropped, as is a last line that a killed
        process left torn. From here to :meth:`close` no other process can do the same.

        Args:
            fingerprint: What decides what the episodes are, by name; JSON values.

        Returns:
            The rows that stay, and the seconds that they took by the clock.

        Raises:
            ConfigurationError: It cannot be written to, another process is at it, or what is to be resumed is
                of another fingerprint; names each difference with both values.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            if self._resume and self._holds_results:
                return self._finished(fingerprint)
            for path in [self.summary, *self.videos.glob("episode_*.mp4")]:
                path.unlink(missing_ok=True)
            _replace(self.episodes, "")
        except OSError as exc:
            raise ConfigurationError(f"cannot write results to {self.path}: {exc.strerror or exc}") from exc
        return [], 0.0

    def close(self) -> None:
        """Let other processes write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self) -> None:
        # A lock on the folder itself leaves no file behind, and ends with the process however that ends.
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another evaluation is writing to {self.path}: wait for its end, or stop it"
            ) from None

    def _finished(self, fingerprint: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float]:
        try:
            summary = json.loads(self.summary.read_bytes())
            earlier = summary["fingerprint"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"{self.summary} does not tell what the episodes there are of, so they cannot be resumed: "
                "choose another --output_dir, or --overwrite them"
            ) from None
        differences = [
            f"{name} was {earlier.get(name)!r}, is {fingerprint.get(name)!r}"
            for name in sorted({*earlier, *fingerprint})
            if earlier.get(name) != fingerprint.get(name)
        ]
        if differences:
            raise ConfigurationError(
                f"{self.path} holds episodes of another evaluation: {'; '.join(differences)}. "
                "Choose another --output_dir, or --overwrite them"
            )
        rows = [row for row in read_rows(self.episodes) if row["error"] is None]
        _replace(self.episodes, "".join(_json(row) + "\n" for row in rows))
        return rows, float(summary["wall_s"])

    def append(self, episode: EpisodeResult) -> None:
        """Add one line; it is on the disk when this returns, so not even a power cut loses the episode.

        Raises:
            ResultsNotWritten: The disk is full or failed; what was written of the line is removed.
        """
        self.append_row(episode_row(episode))

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add one line of plain data, as :meth:`append` does."""
        line = (_json(row) + "\n").encode()
        try:
            with self.episodes.open("ab", buffering=0) as rows:
                end = rows.seek(0, os.SEEK_END)
                try:
                    _write(rows, line)
                except OSError:
                    # Else the next row would continue this one. A device that cannot be cut has kept nothing.
                    with suppress(OSError):
                        rows.truncate(end)
                    raise
        except OSError as exc:
            raise self._not_written(exc) from exc

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace ``summary.json``: a reader sees the whole old file or the whole new one.

        Raises:
            ResultsNotWritten: The disk is full or failed; the old file is kept.
        """
        try:
            _replace(self.summary, _json(summary, indent=2) + "\n")
        except OSError as exc:
            raise self._not_written(exc) from exc

    def write_last_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json`` for the last time, on a full disk too.

        Where there is no space for a second file, the old one is overwritten, without indentation so that it
        needs no more space than it has.

        Raises:
            ResultsNotWritten: That was refused as well.
        """
        try:
            self.write_summary(summary)
        except ResultsNotWritten:
            try:
                with self.summary.open("r+b", buffering=0) as file:
                    _write(file, (_json(summary) + "\n").encode())
                    file.truncate()
            except OSError as exc:
                raise self._not_written(exc) from exc

    def _not_written(self, exc: OSError) -> ResultsNotWritten:
        return ResultsNotWritten(f"cannot write results to {self.path}: {exc.strerror or exc}")

    def video(self, episode: int, *, success: bool) -> Path:
        """Return the path of an episode's video; its folder exists from now on."""
        try:
            self.videos.mkdir(exist_ok=True)
        except OSError as exc:
            raise VideoFailed(f"cannot make {self.videos}: {exc.strerror or exc}") from exc
        return self.videos / f"episode_{episode:03d}_{'success' if success else 'failure'}.mp4"


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the whole old one or the whole new one, even after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb", buffering=0) as file:
            _write(file, text.encode())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _write(file: RawIOBase, data: bytes) -> None:
    """Write all of it, to the disk."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make names in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Return plain data without what JSON cannot hold: NaN and infinities become ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an ``episodes.jsonl``, in the order of their numbers; none where there is no file.

    A last line without an end is left out: its writer was killed.

    Raises:
        ConfigurationError: A line is no episode.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["episode"]] = row
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigurationError(f"{path}, line {number} is no episode: {line[:80]!r}") from exc
    return [rows[number] for number in sorted(rows)]


def episode_row(episode: EpisodeResult) -> dict[str, Any]:
    """Return an episode as plain data. Asynchronous ones also tell how their queue did."""
    row = {
        "episode": episode.episode,
        "seed": episode.seed,
        "init_state": episode.init_state,
        "mode": episode.mode,
        "success": episode.success,
        "steps": episode.steps,
        "return": episode.total_reward,
        "error": episode.error,
        "inferences": len(episode.infer_ms),
        "infer_ms_p50": percentile(episode.infer_ms, 50),
        "infer_ms_max": max(episode.infer_ms, default=None),
        "infer_ms": list(episode.infer_ms),
        "seconds": round(episode.seconds, 3),
        "video": episode.video,
    }
    if episode.statistics is not None:
        figures = episode.statistics.summary()
        row |= {name: figures[name] for name in _ASYNC_FIGURES}
    if episode.late_steps is not None:
        row["late_steps"] = episode.late_steps
    return row


def episode_of_row(row: Mapping[str, Any]) -> EpisodeResult:
    """Return the episode that a row is of, without its ``statistics``."""
    return EpisodeResult(
        episode=row["episode"],
        seed=row["seed"],
        success=row["success"],
        steps=row["steps"],
        total_reward=math.nan if row["return"] is None else row["return"],  # JSON has no NaN
        error=row["error"],
        infer_ms=tuple(row["infer_ms"]),
        seconds=row["seconds"],
        video=row["video"],
        init_state=row["init_state"],
        mode=row["mode"],
        late_steps=row.get("late_steps"),
    )
