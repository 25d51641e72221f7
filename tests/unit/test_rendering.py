"""Images of models that are rebuilt: textures and meshes are loaded again only where they are others."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("MUJOCO_GL", "osmesa")  # MuJoCo binds it at its import, for all tests of this process

MODEL = """
<mujoco>
  <visual><quality shadowsize="64"/><headlight ambient="{light} {light} {light}"/></visual>
  <asset>
    <texture name="check" type="2d" builtin="checker" rgb1="{red} .2 .3" rgb2=".2 .3 .4"
      width="64" height="64"/>
    <material name="check" texture="check" texrepeat="{repeat} 4"/>
    <mesh name="wedge" vertex="0 0 0  {tall} 0 0  0 .2 0  0 0 .3"/>
  </asset>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="view" pos="0 -1.5 1" xyaxes="1 0 0 0 .6 .8"/>
    <geom name="floor" type="plane" size="{floor} 1 .1" material="check"/>
    <geom name="wedge" type="mesh" mesh="wedge" pos=".2 0 .1" rgba=".8 .2 .2 1"/>
    <body pos="-.2 0 .2">
      <freejoint/>
      <geom name="cube" type="box" size="{cube} .1 .1" rgba="{green} .9 .2 1"/>
    </body>
  </worldbody>
</mujoco>
"""
PLAIN = {
    **{"light": 0.3, "red": 0.9, "repeat": 4, "tall": 0.4, "floor": 1},
    **{"cube": 0.1, "green": 0.2},
}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, False),
        ({"green": 0.9}, False),
        ({"cube": 0.15}, None),  # the extent may change with it, and the fog with that
        ({"red": 0.1}, True),
        ({"repeat": 9}, True),
        ({"tall": 0.2}, True),
        ({"floor": 0.5}, True),
        ({"light": 0.6}, True),
    ],
)
def test_a_model_that_was_rebuilt_is_drawn_as_by_a_new_renderer(
    changes: dict[str, float], again: bool | None
) -> None:
    mujoco = pytest.importorskip("mujoco")
    from benchmark.arms.rendering import Renderer

    def built(values: dict[str, float]) -> tuple[object, object]:
        model = mujoco.MjModel.from_xml_string(MODEL.format(**values))
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        return model, data

    kept, fresh = (Renderer(48, 64, hidden_groups=(), shadows=False) for _ in range(2))
    before = kept.render(*built(PLAIN), "view", height=48, width=64)
    context = kept._context
    model, data = built({**PLAIN, **changes})
    image = kept.render(model, data, "view", height=48, width=64)
    np.testing.assert_array_equal(image, fresh.render(model, data, "view", height=48, width=64))
    assert (image != before).any() == bool(changes)
    if again is not None:
        assert (kept._context is not context) is again
    kept.close()
    fresh.close()
