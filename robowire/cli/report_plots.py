"""Plots of a report: rates, lengths, returns and inference times of runs, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullFormatter

from robowire.cli.sweep_plot import COLOURS, MARKERS
from robowire.rollout.statistics import wilson_interval

__all__ = ["distribution_plot", "histogram", "rates_plot"]

# Lines of a plot are told apart by dashes too, for a print without colours.
_DASHES = ("-", "--", "-.", ":")
_MAX_BINS = 25
_ROW_INCHES = 0.42


def rates_plot(rates: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """Return the success rates by task as points with 95 % Wilson intervals, one colour a run.

    Args:
        rates: By name of the run and name of the task: successes and episodes.
    """
    tasks = list(dict.fromkeys(task for by_task in rates.values() for task in by_task))
    figure, axes = _figure(height=1.3 + _ROW_INCHES * len(tasks) * max(len(rates) / 2, 1))
    for index, (run, by_task) in enumerate(rates.items()):
        # Runs of one task stand below each other, within half of the task's row.
        shift = 0.5 * ((index + 0.5) / len(rates) - 0.5)
        shown = [(row, *by_task[task]) for row, task in enumerate(tasks) if task in by_task]
        values = [successes / episodes if episodes else np.nan for _, successes, episodes in shown]
        bounds = [wilson_interval(successes, episodes) for _, successes, episodes in shown]
        axes.errorbar(
            values,
            [row + shift for row, *_ in shown],
            xerr=[
                [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)],
                [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)],
            ],
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            markersize=6,
            capsize=3,
            label=run,
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel("success rate (95 % Wilson interval)")
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    return _svg(figure, axes, runs=len(rates))


def histogram(values: Mapping[str, Sequence[float]], *, label: str) -> str:
    """Return the histogram of one number of every episode, in the same bins for every run.

    Args:
        values: By name of the run; entries that are not finite are left out.
        label: Name of the number, with its unit.
    """
    finite = {run: np.asarray(items, float)[np.isfinite(items)] for run, items in values.items()}
    every = np.concatenate([np.empty(0), *finite.values()])
    figure, axes = _figure()
    bins = _bins(every).tolist()
    for index, (run, items) in enumerate(finite.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.hist(items, bins, histtype="stepfilled", color=colour, alpha=0.15)
        axes.hist(
            items, bins, histtype="step", color=colour, label=run, linestyle=_DASHES[index % len(_DASHES)]
        )
    axes.set_xlabel(label)
    axes.set_ylabel("episodes")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, axes, runs=len(finite))


def distribution_plot(values: Mapping[str, Sequence[float]], *, label: str) -> str:
    """Return the share of values below each value, on a logarithmic axis.

    Args:
        values: By name of the run, above 0.
        label: Name of the number, with its unit.
    """
    figure, axes = _figure()
    for index, (run, items) in enumerate(values.items()):
        ordered = np.sort([item for item in items if item > 0])
        if ordered.size:
            axes.step(
                ordered,
                np.arange(1, ordered.size + 1) / ordered.size,
                where="post",
                color=COLOURS[index % len(COLOURS)],
                linestyle=_DASHES[index % len(_DASHES)],
                label=run,
            )
    axes.set_xscale("log")
    # 1, 2 and 5 of each decade: a range of less than a decade has labels too.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(9, 9)))
    # Its labels are written between ours where the axis is short.
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(label)
    axes.set_ylabel("share of inferences")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    return _svg(figure, axes, runs=len(values))


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the edges of bins; of counts, whole numbers of them around each."""
    if not values.size:
        return np.array([0.0, 1.0])
    edges = np.histogram_bin_edges(values, bins="auto")
    count = min(len(edges) - 1, _MAX_BINS)
    low, high = values.min(), values.max()
    if np.array_equal(values, np.rint(values)):
        width = max(int(np.ceil((high - low + 1) / count)), 1)
        return np.arange(low - 0.5, high + width + 0.5, width)
    return np.histogram_bin_edges(values, bins=count)


def _figure(*, height: float = 3.2) -> tuple[Figure, Axes]:
    # A figure of its own, without pyplot: no display is looked for, and nothing is left behind.
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, axes: Axes, *, runs: int) -> str:
    if runs > 1:
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=1 if runs > 4 else 2,
            frameon=False,
            fontsize=9,
        )
    text = io.StringIO()
    # Without a date and with a fixed salt the same results give the same file.
    with rc_context({"svg.hashsalt": "robowire"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
