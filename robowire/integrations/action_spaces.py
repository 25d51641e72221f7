"""The action space that a task's ``action_layout`` declares. Pure."""

from __future__ import annotations

import re
from typing import Any, Sequence

import numpy as np
from gymnasium import spaces

from robowire.specs import SimulatorSpec

__all__ = ["action_space"]

# "box(1) in -2..2, beyond is cut off" or "choice(2) in 0..1 0..2": what environments of Gymnasium declare.
_PART = re.compile(r"(?:^|(?<=[ ,]))(box|choice)\((\d+)\) in ((?:[^\s,]+\.\.[^\s,]+ ?)+)")


def action_space(
    spec: SimulatorSpec,
    low: float | Sequence[float] | None = None,
    high: float | Sequence[float] | None = None,
) -> spaces.Space[Any]:
    """Return the action space of a task: its own where it is declared, else a ``Box`` of -1 to 1.

    One choice is ``Discrete``, several are ``MultiDiscrete``, all else is a float32 ``Box`` (action_dim,).

    Args:
        spec: Of the loaded task.
        low: Bounds of the ``Box`` in the place of the declared ones: one number, or ``action_dim``.
        high: The same.
    """
    shape = (spec.action_dim or 0,)
    parts = _parts(spec)
    if parts and low is None and high is None and {kind for kind, _, _ in parts} == {"choice"}:
        start = np.concatenate([least for _, least, _ in parts]).astype(np.int64)
        count = np.concatenate([most for _, _, most in parts]).astype(np.int64) - start + 1
        if shape == (1,):
            return spaces.Discrete(int(count[0]), start=int(start[0]))
        return spaces.MultiDiscrete(count, start=start)
    lows = np.concatenate([least for _, least, _ in parts]) if parts else -1.0
    highs = np.concatenate([most for _, _, most in parts]) if parts else 1.0
    return spaces.Box(
        np.broadcast_to(np.asarray(lows if low is None else low, dtype=np.float32), shape),
        np.broadcast_to(np.asarray(highs if high is None else high, dtype=np.float32), shape),
        dtype=np.float32,
    )


def _parts(spec: SimulatorSpec) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return kind, least and most of each part; none where the layout does not declare every number."""
    parts = []
    for kind, length, ranges in _PART.findall(spec.action_layout or ""):
        try:
            bounds = np.array([list(map(float, told.split(".."))) for told in ranges.split()])
            low, high = np.broadcast_to(bounds, (int(length), 2)).T
        except ValueError:
            return []
        parts.append((kind, low, high))
    return parts if sum(len(low) for _, low, _ in parts) == spec.action_dim else []
