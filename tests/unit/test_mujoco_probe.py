from __future__ import annotations

import os
import re

import numpy as np

from robowire.worker import mujoco_probe

os.environ.setdefault("MUJOCO_GL", "osmesa")  # MuJoCo binds it at its import, for all tests of this process

import mujoco
from OpenGL import GL


def test_a_fall_ends_the_same_way_each_time() -> None:
    digest = mujoco_probe.settle(mujoco)
    assert re.fullmatch(r"[0-9a-f]{16}", digest)
    assert mujoco_probe.settle(mujoco) == digest


def test_one_different_bit_of_the_physics_is_another_digest() -> None:
    class Heavier:
        """MuJoCo, but for the last bit of gravity."""

        MjData = mujoco.MjData
        mj_step = staticmethod(mujoco.mj_step)

        class MjModel:
            @staticmethod
            def from_xml_string(xml: str) -> mujoco.MjModel:
                model = mujoco.MjModel.from_xml_string(xml)
                model.opt.gravity[2] = np.nextafter(model.opt.gravity[2], -10)
                return model

    assert mujoco_probe.settle(Heavier) != mujoco_probe.settle(mujoco)


def test_the_image_shows_the_scene_upright() -> None:
    report = mujoco_probe.probe(mujoco)
    assert "problem" not in report
    frame = report["frame"]
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    assert frame[:50].mean() < frame[-50:].mean()  # the dark above, the lit floor below
    assert report["frame_ms"] > 0


def test_a_failed_rendering_is_reported_and_physics_is_still_there() -> None:
    class Blind:
        MjModel, MjData, mj_step = mujoco.MjModel, mujoco.MjData, staticmethod(mujoco.mj_step)

        @staticmethod
        def Renderer(*_: object) -> None:  # noqa: N802 - MuJoCo's name
            raise RuntimeError("no display")

    report = mujoco_probe.probe(Blind)
    assert report["problem"] == "RuntimeError: no display"
    assert report["physics"] == mujoco_probe.settle(mujoco)


def test_the_renderer_is_named_without_touching_the_contexts_of_this_thread() -> None:
    own = mujoco.GLContext(8, 8)
    own.make_current()
    try:
        report = mujoco_probe.gl_renderer(mujoco)
        assert report == ", ".join(GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION))
    finally:
        own.free()


def test_a_simulator_without_opengl_has_no_backend() -> None:
    class Headless:
        pass

    assert mujoco_probe.gl_backend(Headless) is None
    assert mujoco_probe.gl_renderer(Headless) is None
