"""Images that change nothing: what an environment computes in order to draw itself is taken back."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

__all__ = ["Drawing"]


class Drawing:
    """Draws an environment without changing its episode, and ends it with what it draws with."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self._own: Any = env.unwrapped
        self._kept: Any = None  # of an environment of MuJoCo: memory for its state
        if type(getattr(self._own, "data", None)).__name__ == "MjData":
            import mujoco

            own: Any = self._own
            self._kept = mujoco.MjData(own.model)

    def draw(self) -> np.ndarray:
        """Return uint8 (height, width, 3)."""
        if self._kept is None:
            return np.asarray(self._env.render())
        import mujoco

        # gymnasium-robotics moves the mark of a goal and computes forward before it draws. The next step
        # would start from other numbers: its mocap bodies read positions that MuJoCo leaves a substep behind.
        # Where the mark is stays in the model: nothing but the next image asks.
        own = self._own
        mujoco.mj_copyData(self._kept, own.model, own.data)
        viewer = self._viewer()
        if viewer is not None:
            viewer.make_context_current()  # another simulator of this process may have drawn since
        try:
            return np.asarray(self._env.render())
        finally:
            mujoco.mj_copyData(own.data, own.model, self._kept)

    def close(self) -> None:
        """End the environment."""
        viewer = self._viewer()
        if viewer is not None:
            # Python would free it at any later time, in the context that is current then.
            viewer.make_context_current()
            viewer.con.free()
        self._env.close()

    def _viewer(self) -> Any:
        return getattr(getattr(self._own, "mujoco_renderer", None), "viewer", None)
