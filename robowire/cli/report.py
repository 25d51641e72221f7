"""``report DIR [DIR ...]``: one HTML file that shows runs, with everything it needs inside.

A folder is one that ``client.py evaluate`` left, one whose folders are, or one of ``client.py sweep``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from robowire.cli.command import Program
from robowire.cli.compare import Results, compare, read_results
from robowire.cli.compare import report as comparison_text
from robowire.cli.evaluate import find_ffmpeg
from robowire.cli.evaluation_flags import ReportFlags
from robowire.cli.report_plots import distribution_plot, histogram, rates_plot
from robowire.cli.report_videos import data_url, last_image
from robowire.cli.task_table import totals
from robowire.errors import ConfigurationError
from robowire.progress import Progress
from robowire.rollout.results import read_rows
from robowire.version import __version__

__all__ = ["render", "run", "write_report"]

# Images on a contact sheet, for each folder; failed episodes come first.
_MAX_IMAGES = 24


@dataclass(frozen=True)
class Subject:
    """One folder of the command line: what is reported under one name.

    Attributes:
        name: Shortest name that tells it from the others.
        results: Outcomes, for the paired comparison.
        rows: Rows of ``episodes.jsonl`` by folder of the run.
        summaries: ``summary.json`` by folder of the run.
    """

    name: str
    results: Results
    rows: Mapping[Path, Sequence[Mapping[str, Any]]]
    summaries: Mapping[Path, Mapping[str, Any]]

    def finished(self) -> list[Mapping[str, Any]]:
        """Return the episodes that the simulator finished."""
        return [row for rows in self.rows.values() for row in rows if row["error"] is None]


def run(flags: ReportFlags, program: Program) -> int:
    """Write the report and print where it is."""
    output = Path(flags.output)
    write_report([Path(path) for path in flags.dirs], output, title=flags.title, max_videos=flags.max_videos)
    sys.stdout.write(f"report {output} ({output.stat().st_size / 1e6:.1f} MB)\n")
    return 0


def write_report(folders: Sequence[Path], output: Path, *, title: str = "", max_videos: int = 6) -> None:
    """Write the report of folders of results to a file.

    Args:
        folders: Each is one subject; two are compared by pairs of episodes.
        output: The file; its folder is made.
        title: Heading; by default the tasks.
        max_videos: Most videos of failed episodes to include, for each folder.

    Raises:
        ConfigurationError: A folder holds no results, or the file can't be written.
    """
    page = render(folders, title=title, max_videos=max_videos)
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page)
        partial.replace(output)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write {output}: {exc.strerror or exc}") from exc


def render(folders: Sequence[Path], *, title: str = "", max_videos: int = 6) -> str:
    """Return the report of folders of results as HTML.

    Raises:
        ConfigurationError: A folder holds no results.
    """
    sweeps = [folder for folder in folders if (folder / "sweep.json").exists()]
    subjects = _subjects([folder for folder in folders if folder not in sweeps])
    tasks = sorted({task for subject in subjects for _, task in subject.results.summaries})
    environment = Environment(
        loader=PackageLoader("robowire.cli", ""), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html").render(
        title=title or ", ".join(tasks) or "Sweep of latencies",
        version=__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        subjects=[_overview(subject) for subject in subjects],
        plots=_plots(subjects),
        comparison=_comparison(subjects),
        fingerprint=_fingerprint(subjects),
        media=_media(subjects, max_videos),
        sweeps=[_sweep(folder) for folder in sweeps],
    )


def _subjects(folders: Sequence[Path]) -> list[Subject]:
    subjects: list[Subject] = []
    if not folders:
        return subjects
    for name, folder in zip(_names(folders), folders, strict=True):
        results = read_results(folder)
        runs = {path: summary for by_run in results.summaries.values() for path, summary in by_run.items()}
        rows = {path: read_rows(path / "episodes.jsonl") for path in runs}
        subjects.append(Subject(name, results, rows, runs))
    return subjects


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the end of each path that tells it from the others."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    doubled = next(str(path) for path in folders if folders.count(path) > 1)
    raise ConfigurationError(f"{doubled} is given twice: name each folder once")


def _by_task(subject: Subject) -> dict[str, dict[str, Any]]:
    """Return the figures of each task, over all its runs."""
    return {
        task: totals({str(path): summary for path, summary in runs.items()})
        for (_, task), runs in sorted(subject.results.summaries.items())
    }


def _overview(subject: Subject) -> dict[str, Any]:
    by_task = _by_task(subject)
    rows = dict(by_task)
    if len(by_task) > 1:
        rows["all"] = totals(by_task)
    first = next(iter(subject.summaries.values()))
    inferences = [value for row in subject.finished() for value in row["infer_ms"]]
    return {
        "name": subject.name,
        "policy": first["policy"].get("policy"),
        "model_name": first["policy"].get("model_name"),
        "rows": rows,
        "inferences": len(inferences),
        "unfinished": [
            f"{path}: status {summary['status']!r}"
            for path, summary in subject.summaries.items()
            if summary["status"] not in ("complete", "decided")
        ],
        "errors": [
            f"{path.name}, episode {row['episode']}: {row['error']}"
            for path, rows in subject.rows.items()
            for row in rows
            if row["error"] is not None
        ],
    }


def _plots(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """Return heading and image of each plot."""
    if not any(subject.finished() for subject in subjects):
        return []
    rates = {
        subject.name: {
            task: (figures["successes"], figures["episodes"]) for task, figures in _by_task(subject).items()
        }
        for subject in subjects
    }
    episodes = {subject.name: subject.finished() for subject in subjects}
    found = [
        ("Success rate", rates_plot(rates)),
        (
            "Episode length",
            histogram(
                {name: [row["steps"] for row in rows] for name, rows in episodes.items()},
                label="length (steps)",
            ),
        ),
        (
            "Return",
            histogram(
                {
                    name: [row["return"] for row in rows if row["return"] is not None]
                    for name, rows in episodes.items()
                },
                label="return (sum of rewards)",
            ),
        ),
    ]
    times = {name: [ms for row in rows for ms in row["infer_ms"]] for name, rows in episodes.items()}
    if any(times.values()):
        found.append(("Inference time", distribution_plot(times, label="time to a reply (ms)")))
    return [(heading, data_url(svg.encode(), "image/svg+xml")) for heading, svg in found]


def _comparison(subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """Return the paired comparison of two subjects; where they have no episode in common, why not."""
    if len(subjects) != 2:
        return None
    first, second = subjects
    try:
        result = compare(first.results, second.results)
    except ConfigurationError as exc:
        return {"reason": str(exc)}
    return {"reason": None, "text": comparison_text(result), "a": first.name, "b": second.name}


def _fingerprint(subjects: Sequence[Subject]) -> dict[str, list[tuple[str, list[str]]]]:
    """Return what the episodes depend on, by name: what differs between runs, and what is equal."""
    columns = [
        {name: value for summary in subject.summaries.values() for name, value in _facts(summary).items()}
        for subject in subjects
    ]
    names = sorted({name for column in columns for name in column})
    found: dict[str, list[tuple[str, list[str]]]] = {"differing": [], "equal": []}
    for name in names:
        values = [_text(column.get(name)) for column in columns]
        found["differing" if len(set(values)) > 1 else "equal"].append((name, values))
    return found


def _facts(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    return summary.get("fingerprint") or {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _media(subjects: Sequence[Subject], max_videos: int) -> list[dict[str, Any]]:
    """Return the contact sheet of each subject, and the videos of its failures."""
    ffmpeg = find_ffmpeg()
    videos = {subject.name: _videos(subject) for subject in subjects}
    images = sum(min(len(found), _MAX_IMAGES) for found in videos.values())
    with Progress("report: images of videos", images, unit="video") as progress:
        return [_media_of(name, found, max_videos, ffmpeg, progress) for name, found in videos.items()]


def _media_of(
    name: str,
    videos: Sequence[tuple[Path, Mapping[str, Any]]],
    max_videos: int,
    ffmpeg: str | None,
    progress: Progress,
) -> dict[str, Any]:
    sheet = []
    for path, row in videos[:_MAX_IMAGES] if ffmpeg else ():
        image = last_image(path, ffmpeg=str(ffmpeg))
        progress.update()
        if image is not None:
            sheet.append({**_caption(row), "image": data_url(image, "image/jpeg")})
    failures = [(path, row) for path, row in videos if not row["success"]]
    shown = [
        {**_caption(row), "video": data_url(path.read_bytes(), "video/mp4")}
        for path, row in failures[:max_videos]
    ]
    left_out = [str(path) for path, _ in failures[max_videos:]]
    return {"name": name, "sheet": sheet, "videos": len(videos), "failures": shown, "left_out": left_out}


def _videos(subject: Subject) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the videos that exist with the rows of their episodes, failures first."""
    found = [
        (folder / row["video"], row)
        for folder, rows in subject.rows.items()
        for row in rows
        if row["video"] and (folder / row["video"]).exists()
    ]
    return sorted(found, key=lambda item: bool(item[1]["success"]))


def _caption(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("episode", "seed", "steps", "success")}


def _sweep(folder: Path) -> dict[str, Any]:
    image = folder / "sweep.png"
    try:
        rows = json.loads((folder / "sweep.json").read_text())
        return {
            "name": folder.name,
            "image": data_url(image.read_bytes(), "image/png") if image.exists() else None,
            "rows": rows["points"],
        }
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"{folder} is not what client.py sweep writes: {exc}") from exc
