"""Pictures that change nothing: what an environment computes in order to draw itself is taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

__all__ = ["drawer"]


def drawer(env: gymnasium.Env[Any, Any]) -> Callable[[], np.ndarray]:
    """Return what draws an environment, uint8 (height, width, 3), without changing the episode."""

    def draw() -> np.ndarray:
        return np.asarray(env.render())

    own: Any = env.unwrapped
    if not (hasattr(own, "model") and hasattr(own, "data") and type(own.data).__name__ == "MjData"):
        return draw
    import mujoco

    # gymnasium-robotics moves the mark of a goal and computes forward before it draws. The next step would
    # start from other numbers: its mocap bodies read positions that MuJoCo leaves one substep behind.
    kept = mujoco.MjData(own.model)

    def draw_and_restore() -> np.ndarray:
        mujoco.mj_copyData(kept, own.model, own.data)
        marks = own.model.site_pos.copy()
        try:
            return draw()
        finally:
            own.model.site_pos[:] = marks
            mujoco.mj_copyData(own.data, own.model, kept)

    return draw_and_restore
