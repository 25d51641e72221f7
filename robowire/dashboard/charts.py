"""Charts as SVG text, readable on a light and on a dark page. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["bars", "lines", "number"]

# Colours that colour-blind people can tell apart: M. Okabe and K. Ito, 2008.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
_WIDTH, _HEIGHT = 460, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34


def number(value: float) -> str:
    """Return three or four digits: ``12k``, ``1234``, ``12.3``, ``0.0123``."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def bars(values: Mapping[str, float], *, title: str, x: str, y: str) -> str:
    """Return a bar for each value, with its number above it.

    Args:
        values: Values, 0 or more, by label, in their order.
        title: What it shows.
        x: Name of the axis of labels.
        y: Name and unit of the axis of values.
    """
    if not values:
        return _figure(title, _words("nothing yet"), x, y, {})
    top = _round_up(max(values.values()))
    step = (_WIDTH - _LEFT - _RIGHT) / len(values)
    width = min(step * 0.7, 60)
    parts = [_grid(top)]
    for index, (label, value) in enumerate(values.items()):
        middle = _LEFT + step * (index + 0.5)
        height = (_HEIGHT - _TOP - _BOTTOM) * value / top
        base = _HEIGHT - _BOTTOM
        parts.append(
            f'<rect x="{middle - width / 2:.1f}" y="{base - height:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" fill="{_COLOURS[0]}"/>'
            f'<text x="{middle:.1f}" y="{base - height - 3:.1f}" text-anchor="middle">{number(value)}</text>'
            f'<text x="{middle:.1f}" y="{base + 13}" text-anchor="middle">{html.escape(label)}</text>'
        )
    return _figure(title, "".join(parts), x, y, {})


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, y: str) -> str:
    """Return a line for each series over the last minutes.

    Args:
        series: By name, pairs of seconds (0 is now, earlier ones are negative) and value.
        title: What it shows.
        y: Name and unit of the values.
    """
    drawn = {name: points for name, points in series.items() if points}
    axis = "minutes before now"
    if not drawn:
        return _figure(title, _words("nothing yet"), axis, y, {})
    top = _round_up(max(value for points in drawn.values() for _, value in points))
    span = max(60.0, *(-points[0][0] for points in drawn.values()))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = [_grid(top)]
    colours = dict(zip(drawn, _COLOURS * (len(drawn) // len(_COLOURS) + 1)))
    for name, points in drawn.items():
        path = " ".join(
            f"{_LEFT + width * (1 + seconds / span):.1f},{_TOP + height * (1 - value / top):.1f}"
            for seconds, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
    for minutes in range(math.floor(span / 60) + 1):
        place = _LEFT + width * (1 - minutes * 60 / span)
        parts.append(
            f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 13}" text-anchor="middle">{minutes}</text>'
        )
    return _figure(title, "".join(parts), axis, y, colours)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(scale * factor for factor in (1, 2, 5, 10) if value <= scale * factor * (1 + 1e-9))


def _grid(top: float) -> str:
    parts = []
    for share in (0.0, 0.5, 1.0):
        place = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 5}" y="{place + 4:.1f}" text-anchor="end">{number(top * share)}</text>'
        )
    return "".join(parts)


def _words(text: str) -> str:
    return f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">{html.escape(text)}</text>'


def _figure(title: str, body: str, x: str, y: str, colours: Mapping[str, str]) -> str:
    legend = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for name, colour in colours.items()
    )
    return (
        f'<figure class="chart"><figcaption><b>{html.escape(title)}</b> {legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">{body}'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{html.escape(x)}</text>"
        f'<text transform="translate(11 {(_HEIGHT - _BOTTOM + _TOP) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y)}</text></svg></figure>"
    )
