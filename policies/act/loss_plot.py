"""The losses of a training as an image, written at each save next to the checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from policies.act.checkpoint import replace_file

__all__ = ["plot_losses"]

# Okabe and Ito's colours, which colour-blind people can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a PNG of every figure of the history but ``step`` over the steps, on a logarithmic axis."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [name for name in history[-1] if name != "step"]
    for name, color in zip(names, _COLORS, strict=False):
        rows = [(row["step"], row[name]) for row in history if (row.get(name) or 0) > 0]
        axes.plot([step for step, _ in rows], [value for _, value in rows], ".-", color=color, label=name)
    axes.set(xlabel="training step", ylabel="loss (normalised actions)", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    replace_file(path, buffer.getvalue())
