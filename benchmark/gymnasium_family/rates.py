"""How many actions a second an environment takes: its own number, which nobody else may choose."""

from __future__ import annotations

from typing import Any

import gymnasium

from robowire.errors import InvalidParams

__all__ = ["rate_of", "require_rate"]

_RATE_DIGITS = 6  # 1 / 0.0125 is 80, not 79.99999999999999


def rate_of(env: gymnasium.Env[Any, Any]) -> float | None:
    """Return actions per second of episode time: by the environment's time step, else by its videos' rate."""
    step = getattr(env.unwrapped, "dt", None)
    if isinstance(step, (int, float)) and step > 0:
        return round(1.0 / step, _RATE_DIGITS)
    rate = env.metadata.get("render_fps")
    return float(rate) if rate else None


def require_rate(task_name: str, asked: float | None, rate: float | None) -> None:
    """Refuse another rate than the environment's.

    Raises:
        InvalidParams: It is another one.
    """
    if asked is not None and asked != rate:
        own = "does not say its rate" if rate is None else f"runs at {rate:g}"
        raise InvalidParams(f"control_hz is {asked:g}, but {task_name} {own}: leave it out")
