"""Merge folders of results: the parts of one evaluation that several machines ran."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Sequence

from robowire.errors import ConfigurationError
from robowire.progress import track
from robowire.rollout.results import ResultFolder, episode_of_row, read_rows
from robowire.rollout.statistics import summarise

__all__ = ["merge_results"]


def merge_results(parts: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write the episodes of all parts into a new folder and return its summary.

    Its status is ``"complete"`` where no episode is missing; else it can be resumed.

    Raises:
        ConfigurationError: A part is of another evaluation (names each difference), two parts hold the same
            finished episode (names both), or the new folder holds results.
    """
    folder = ResultFolder(output)
    summaries = [_summary(part) for part in parts]
    first = summaries[0]
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    for part, summary in zip(parts, summaries):
        _require_same(parts[0], first["fingerprint"], part, summary["fingerprint"])
        for row in read_rows(part / "episodes.jsonl"):
            number = row["episode"]
            if number in found and row["error"] is None and found[number][1]["error"] is None:
                raise ConfigurationError(
                    f"{found[number][0]} and {part} both hold episode {number}: merge one of them"
                )
            if number not in found or row["error"] is None:
                found[number] = part, row
    largest = max(summaries, key=lambda summary: int(summary["options"]["num_episodes"]))
    wanted = largest["options"]["num_episodes"]
    rows = [found[number][1] for number in sorted(found)]
    merged = {
        **largest,
        "status": "complete" if len(rows) == wanted else f"merged: {len(rows)} of {wanted} episodes",
        **summarise([episode_of_row(row) for row in rows]),
        "wall_s": round(sum(summary["wall_s"] for summary in summaries), 3),
        "options": {**largest["options"], "output_dir": str(output), "shard": None, "stop_when": None},
    }
    merged.pop("decision", None)
    folder.create(first["fingerprint"])
    try:
        for number in track(sorted(found), f"merging into {output}", unit="episode"):
            part, row = found[number]
            folder.append_row(row)
            if row["video"] is not None and (part / row["video"]).exists():
                folder.videos.mkdir(exist_ok=True)
                shutil.copyfile(part / row["video"], folder.path / row["video"])
        folder.write_summary(merged)
    except OSError as exc:
        raise ConfigurationError(f"cannot write results to {output}: {exc.strerror or exc}") from exc
    finally:
        folder.close()
    return merged


def _summary(part: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((part / "summary.json").read_bytes())
        if not isinstance(summary["fingerprint"], dict):
            raise TypeError("no fingerprint")
        int(summary["options"]["num_episodes"])
    except OSError as exc:
        raise ConfigurationError(f"cannot read {part / 'summary.json'}: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"{part} is not what client.py evaluate writes: {exc}") from exc
    return summary


def _require_same(first: Path, expected: dict[str, Any], part: Path, found: dict[str, Any]) -> None:
    differences = [
        f"{name} is {expected.get(name)!r} and {found.get(name)!r}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if differences:
        raise ConfigurationError(f"{first} and {part} are of two evaluations: {'; '.join(differences)}")
