"""Images of a MuJoCo model, without touching its simulation.

robosuite's own renderer runs ``mj_forward`` when it is made. One that leaves the physics alone can be made
late, or not at all, without changing an episode by a bit.
"""

from __future__ import annotations

import mujoco
import numpy as np

__all__ = ["RENDERING", "Renderer"]

# On a CPU this is 3 to 4 times faster than robosuite's reflections and 4 samples a pixel (29 steps/s instead
# of 8 with two cameras). Images differ slightly, so it is one choice for recording and evaluation alike.
RENDERING = "reflections off, multisampling off"

# Of a scene; robosuite's own limit.
_MAX_GEOMS = 1000

# What `mjr_makeContext` reads of a model: textures, materials, meshes, skins and height fields, planes, and
# the settings below. A context is good for every model that has the same.
_ASSETS = ("tex_", "mat_", "mesh_", "skin_", "hfield_")
_GEOMS = ("geom_type", "geom_dataid", "geom_matid")


class Renderer:
    """One OpenGL context; follows the model it is given, which robosuite rebuilds at every reset.

    Textures and meshes are loaded again only where they are others: on a CPU that takes 0.4 s for those of a
    Panda, and to compare them 15 ms.

    Args:
        height: Pixels of the largest image.
        width: Pixels of the largest image.
        hidden_groups: Groups of geoms that are not drawn; robosuite's collision shapes are group 0.
        shadows: Whether lights cast them; on a CPU they can cost more than all else.
    """

    def __init__(
        self, height: int, width: int, *, hidden_groups: tuple[int, ...] = (0,), shadows: bool = True
    ) -> None:
        self._shadows = shadows
        self._height = height
        self._width = width
        self._gl: mujoco.GLContext | None = None
        self._context: mujoco.MjrContext | None = None
        self._model: mujoco.MjModel | None = None
        self._options = mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera_name: str, *, height: int, width: int
    ) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, the bottom row first, as OpenGL gives it. A fresh array."""
        if model is not self._model:
            self._load(model)
        assert self._gl is not None
        self._gl.make_current()  # another simulator of this process may have made its own current
        self._camera.fixedcamid = model.camera(camera_name).id
        mujoco.mjv_updateScene(
            model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image

    def close(self) -> None:
        """Free the OpenGL context; a later ``render`` makes a new one."""
        if self._gl is not None:
            self._gl.make_current()
            if self._context is not None:
                self._context.free()
            self._gl.free()
        self._gl = self._context = self._model = None

    def _load(self, model: mujoco.MjModel) -> None:
        if self._gl is None:
            self._gl = mujoco.GLContext(self._width, self._height)
        self._gl.make_current()
        model.vis.quality.offsamples = 0
        model.vis.global_.offheight = self._height
        model.vis.global_.offwidth = self._width
        if self._context is None or self._model is None or not _same_assets(self._model, model):
            if self._context is not None:
                self._context.free()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        if not self._shadows:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._model = model


def _same_assets(first: mujoco.MjModel, second: mujoco.MjModel) -> bool:
    """Return whether an OpenGL context that was made for the first model draws the second one too."""
    if first.stat.extent != second.stat.extent or first.ngeom != second.ngeom:
        return False
    for group in _fields(first.vis):
        settings, others = getattr(first.vis, group), getattr(second.vis, group)
        for name in _fields(settings):
            if not np.array_equal(getattr(settings, name), getattr(others, name)):
                return False
    names = [name for name in _fields(first) if name.startswith(_ASSETS)]
    if any(not np.array_equal(getattr(first, name), getattr(second, name)) for name in [*_GEOMS, *names]):
        return False
    planes = first.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    return np.array_equal(first.geom_size[planes], second.geom_size[planes])


def _fields(value: object) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]
