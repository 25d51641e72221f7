"""LIBERO's cameras: what one sees is noted when LIBERO would draw it, and drawn when somebody asks.

Noting takes microseconds, drawing most of a step's time, and the image is the same, bit for bit: nobody
waits for those of a scene that settles, or of the steps within a chunk.

LIBERO would draw 2 ms into a control period, so what was seen can't be computed from the state at its end: a
saved state holds the images.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

__all__ = ["Camera"]

# Of a scene; robosuite's own limit.
_MAX_GEOMS = 1000


class Camera:
    """One camera of a simulation that keeps its model; draws in robosuite's OpenGL context.

    Args:
        sim: robosuite's simulation, with an offscreen renderer.
        name: The camera's.
        height: Pixels.
        width: Pixels.
    """

    def __init__(self, sim: Any, name: str, *, height: int, width: int) -> None:
        self._sim = sim
        self._height = height
        self._width = width
        self._scene = mujoco.MjvScene(sim.model._model, maxgeom=_MAX_GEOMS)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = sim.model.camera_name2id(name)
        self._image: np.ndarray | None = None  # of what was seen last, once drawn

    def look(self) -> None:
        """Note what is seen now."""
        self._image = None
        drawing = self._sim._render_context_offscreen
        mujoco.mjv_updateScene(
            self._sim.model._model,
            self._sim.data._data,
            drawing.vopt,
            drawing.pert,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )

    def draw(self) -> np.ndarray:
        """Return what was seen last, uint8 (height, width, 3), RGB, the bottom row first. A fresh array."""
        if self._image is None:
            self._image = self._drawn()
        return self._image.copy()

    def put_back(self, image: np.ndarray) -> None:
        """Let this be what was seen last."""
        self._image = image.copy()

    def _drawn(self) -> np.ndarray:
        drawing = self._sim._render_context_offscreen
        drawing.gl_ctx.make_current()  # another simulator of this process may have made its own current
        if self._width > drawing.con.offWidth or self._height > drawing.con.offHeight:
            drawing.update_offscreen_size(
                max(self._width, drawing.con.offWidth), max(self._height, drawing.con.offHeight)
            )
        viewport = mujoco.MjrRect(0, 0, self._width, self._height)
        mujoco.mjr_render(viewport, self._scene, drawing.con)
        image = np.empty((self._height, self._width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, drawing.con)
        return image
