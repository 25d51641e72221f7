"""Probe of MuJoCo: what it computes and renders here. The caller passes the imported module.

A simulator's process may run Python 3.8, so this file uses its grammar.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
import time
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

__all__ = ["draw", "gl_backend", "gl_renderer", "probe", "settle"]

# Shapes that fall on each other and come to rest, and a driven pendulum: contacts, friction, a joint with
# damping and a motor, the solver. The fall is chaotic, so that one different bit gives a different end.
_SCENE = """
<mujoco>
  <option timestep="0.002"/>
  <visual><global offwidth="256" offheight="256"/></visual>
  <worldbody>
    <light pos="0.5 -0.5 2" dir="-0.2 0.2 -1"/>
    <camera name="view" pos="0 -1.6 0.9" xyaxes="1 0 0 0 0.5 0.87"/>
    <geom type="plane" size="1 1 0.1" rgba="0.8 0.8 0.8 1"/>
    <body pos="0 0 0.3" euler="20 35 10">
      <freejoint/><geom type="box" size="0.06 0.05 0.04" rgba="0.8 0.2 0.2 1"/>
    </body>
    <body pos="0.03 0.02 0.5" euler="70 10 40">
      <freejoint/><geom type="capsule" size="0.04 0.08" rgba="0.2 0.6 0.3 1"/>
    </body>
    <body pos="-0.02 0.01 0.7"><freejoint/><geom type="sphere" size="0.06" rgba="0.2 0.3 0.8 1"/></body>
    <body pos="0.4 0 0.5">
      <joint name="hinge" axis="0 1 0" damping="0.05"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.03" rgba="0.9 0.7 0.2 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" gear="0.5"/></actuator>
</mujoco>
"""
_STEPS = 500  # 1 s: fallen, and nearly at rest
_PIXELS = 256


def probe(mujoco: Any) -> dict[str, Any]:
    """Return what :func:`settle` and :func:`draw` return, with their times, or why there is no image."""
    begun = time.perf_counter()
    report: dict[str, Any] = {"physics": settle(mujoco), "physics_ms": (time.perf_counter() - begun) * 1e3}
    try:
        image, seconds = draw(mujoco)
    except Exception as exc:  # drivers raise anything, as below
        _log.debug("no image", exc_info=True)
        return {**report, "problem": f"{type(exc).__name__}: {exc}"}
    return {**report, "frame": image, "frame_ms": seconds * 1e3}


def settle(mujoco: Any) -> str:
    """Return a digest of the state after one second of simulation, 16 hexadecimal digits; in 10 ms."""
    _, data = _settled(mujoco)
    state = np.concatenate([[data.time], data.qpos, data.qvel, data.qacc]).astype("<f8")
    return hashlib.sha256(state.tobytes()).hexdigest()[:16]


def draw(mujoco: Any) -> tuple[np.ndarray, float]:
    """Return uint8 (256, 256, 3), RGB, upright, of the same scene at rest; and the seconds that it took.

    Raises:
        Exception: Anything that MuJoCo, OpenGL and the driver raise where they cannot draw.
    """
    model, data = _settled(mujoco)
    renderer = mujoco.Renderer(model, _PIXELS, _PIXELS)
    try:
        renderer.update_scene(data, camera="view")
        renderer.render()  # compiles shaders
        begun = time.perf_counter()
        image: np.ndarray = renderer.render()
        return image, time.perf_counter() - begun
    finally:
        renderer.close()


def gl_backend(mujoco: Any) -> str | None:
    """Return MuJoCo's rendering backend: ``osmesa``, ``egl``, ``glfw``, ``cgl``, or ``None``."""
    context = getattr(mujoco, "GLContext", None)
    return None if context is None else str(context.__module__).rpartition(".")[2]


def gl_renderer(mujoco: Any) -> str | None:
    """Return name and version of the renderer, as OpenGL reports them; ``None`` if it does not."""
    if gl_backend(mujoco) not in ("egl", "osmesa"):
        return None  # a window system's contexts belong to the main thread
    found: list[str] = []

    def ask() -> None:
        try:
            # PyOpenGL, a dependency of MuJoCo, chooses its library at the first import, which is MuJoCo's.
            gl = importlib.import_module("OpenGL.GL")
            context = mujoco.GLContext(8, 8)
            try:
                context.make_current()
                found.append(
                    ", ".join(gl.glGetString(name).decode() for name in (gl.GL_RENDERER, gl.GL_VERSION))
                )
            finally:
                context.free()
        except Exception:  # drivers raise anything; then the renderer is unknown
            _log.debug("OpenGL does not name the renderer", exc_info=True)

    # A context is current in one thread: the simulator's own stays current in this one.
    thread = threading.Thread(target=ask, name="gl-renderer")
    thread.start()
    thread.join()
    return found[0] if found else None


def _settled(mujoco: Any) -> Any:
    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    for step in range(_STEPS):
        data.ctrl[0] = 1.0 if step % 100 < 50 else -1.0
        mujoco.mj_step(model, data)
    return model, data
