"""Plot of a sweep: success rate, steps to success and jumps of the action against latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "plot"]

# Okabe and Ito's, which people who confuse red and green can distinguish, without their yellow, which is too
# faint for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", ":", "-.")
_SYNC = "#333333"

# Points at one latency stand side by side, all of them within this share of the smallest gap between two.
_SPREAD = 0.3

Row = Mapping[str, Any]


def plot(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Write a PNG.

    A line is a function with a number of actions a chunk, and real-time chunking or none; bars are 95 %
    intervals. Several functions have a row of panels for each threshold, on the same axes. The mode sync, of
    which a latency changes no step, is a level of its own.

    Args:
        rows: Points, as in the sweep's tables.
        path: File to write.
        title: Title of the plot.
    """
    # A figure of its own, without pyplot: no display is looked for, and nothing is left behind.
    jumps = any(row.get("jump_at_borders") is not None for row in rows)
    parts = _parts(rows)
    figure = Figure(figsize=(14 if jumps else 10, 1.2 + 3.2 * len(parts)), dpi=110, layout="constrained")
    grid = figure.subplots(len(parts), 3 if jumps else 2, squeeze=False, sharey="col")
    for (left, right, *more), (threshold, members) in zip(grid, parts.items(), strict=True):
        _panel(left, members, "success_rate", "wilson_low", "wilson_high")
        left.set_ylim(0, 1.03)
        left.set_ylabel("success rate")
        _panel(right, members, "mean_steps_to_success", "steps_low", "steps_high")
        right.set_ylabel("mean steps to success")
        right.margins(y=0.12)
        for axes in more:
            _panel(axes, members, "jump_at_borders")
            axes.set_ylabel("jump of the action at a new chunk")
            axes.margins(y=0.3)
        if threshold is not None:
            left.set_title(f"chunk_size_threshold {threshold:g}", fontsize=10, loc="left")
    for axes in grid[:, 2:].flat:  # after all of them: the first limit that is set ends the common scale
        axes.set_ylim(bottom=0)
    figure.suptitle(title, fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)


def _parts(rows: Sequence[Row]) -> dict[float | None, list[Row]]:
    """Return the rows of each threshold, with sync's; all for ``None`` where one row of panels shows them."""
    measured = [row for row in rows if row["mode"] != "sync"]
    thresholds = sorted({row["chunk_size_threshold"] for row in measured})
    if len(thresholds) < 2 or len({_line(row)[::2] + _line(row)[3:] for row in measured}) < 2:
        return {None: list(rows)}
    return {
        threshold: [row for row in rows if row["mode"] == "sync" or row["chunk_size_threshold"] == threshold]
        for threshold in thresholds
    }


def _panel(axes: Axes, rows: Sequence[Row], value: str, low: str = "", high: str = "") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("latency (ms)")
    for row in rows:
        if row["mode"] == "sync" and row[value] is not None:
            axes.axhline(row[value], color=_SYNC, linewidth=1.2, linestyle=(0, (4, 3)), label="sync")
            if row.get(low) is not None:
                axes.axhspan(row[low], row[high], color=_SYNC, alpha=0.08, linewidth=0)
    points = [row for row in rows if row["mode"] != "sync" and row[value] is not None]
    ticks = sorted({row["latency_ms_mean"] for row in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in points:
        lines.setdefault(_line(row), []).append(row)
    gap = min((b - a for a, b in pairwise(ticks)), default=1.0)
    styles = _Styles(lines)
    for index, (line, members) in enumerate(lines.items()):
        members.sort(key=lambda row: row["latency_ms_mean"])
        shift = gap * _SPREAD * ((index + 0.5) / len(lines) - 0.5)
        ys = [row[value] for row in members]
        # A mean of one success has no interval, and shows none.
        below = [0.0 if row.get(low) is None else row[value] - row[low] for row in members]
        above = [0.0 if row.get(high) is None else row[high] - row[value] for row in members]
        axes.errorbar(
            [row["latency_ms_mean"] + shift for row in members],
            ys,
            yerr=[below, above],
            label=styles.label(line),
            markersize=4.5,
            linewidth=1.5,
            elinewidth=0.9,
            capsize=2,
            **styles.of(line),
        )


def _line(row: Row) -> tuple[Any, ...]:
    rtc = (row.get("rtc") or "none", row.get("delay_error") or 0)
    return row["aggregate_fn_name"], row["chunk_size_threshold"], row["actions_per_chunk"], rtc


class _Styles:
    """Styles of lines: colours for the first that differs of function, threshold, actions and chunking.

    Dashes and markers are for the others. In a plot of one function, thresholds have the colours.
    """

    def __init__(self, lines: Iterable[tuple[Any, ...]]) -> None:
        parts = [list(dict.fromkeys(part)) for part in zip(*lines, strict=True)] or [[], [], [], []]
        self._several = [len(values) > 1 for values in parts]
        self._colour = self._several.index(True) if any(self._several) else 0
        self._colours = dict(zip(parts[self._colour], cycle(COLOURS), strict=False))
        # Dashes are for real-time chunking where there is any, else for thresholds.
        self._dashed = 3 if self._several[3] and self._colour != 3 else 1
        dashes = _DASHES if self._colour != self._dashed else _DASHES[:1]
        self._dashes = dict(zip(parts[self._dashed], cycle(dashes), strict=False))
        self._marker = 2 if self._several[2] else self._colour
        self._markers = dict(zip(parts[self._marker], cycle(MARKERS), strict=False))

    def of(self, line: tuple[Any, ...]) -> dict[str, Any]:
        return {
            "color": self._colours[line[self._colour]],
            "linestyle": self._dashes[line[self._dashed]],
            "marker": self._markers[line[self._marker]],
        }

    def label(self, line: tuple[Any, ...]) -> str:
        """Return what distinguishes this line from the others."""
        function, threshold, actions, (rtc, error) = line
        label = str(function)
        if self._several[1]:
            label += f", threshold {threshold:g}"
        if self._several[2]:
            label += f", {'all actions' if actions is None else f'{actions} actions'}"
        if self._several[3]:
            label += ", no real-time chunking" if rtc == "none" else ", real-time chunking"
            label += f", delay {error:+d}" if error else ""
        return label
