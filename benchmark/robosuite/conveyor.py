"""LiftConveyor: robosuite's Lift with the cube on a moving belt, a world that does not wait for the policy.

The belt is one heavy body on a slide joint without friction, which an episode starts at ``BELT_SPEED``. A
cube of 0.1 kg changes the speed of 1000 kg by nothing that shows, so no code runs while the belt moves, and
the physics state that a snapshot holds is all there is to save.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
from robosuite.environments.manipulation.lift import Lift
from robosuite.utils.placement_samplers import UniformRandomSampler

from benchmark.robosuite.conventions import BELT_SPEED

__all__ = ["BELT_TOP", "LiftConveyor"]

# Metres above the table: its underside does not touch the table, whose friction would stop it.
_GAP = 0.002
_HALF_HEIGHT = 0.004
# Metres from the table to the surface that carries the cube.
BELT_TOP = _GAP + 2 * _HALF_HEIGHT

# Half of the width and length, in metres. Within 10 s it moves 0.8 m, and still lies under the whole table.
_HALF_WIDTH, _HALF_LENGTH = 0.07, 1.25
_MASS = 1000.0
_STRIPE_GAP = 0.1

# Where the cube begins, in metres from the table's centre: upstream of the hand.
_X_RANGE, _Y_RANGE = (-0.03, 0.03), (-0.2, -0.14)


class LiftConveyor(Lift):  # type: ignore[misc]
    """Lift, with the cube on a belt along y at ``BELT_SPEED``; success is a cube lifted off the belt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        placement = UniformRandomSampler(
            name="ObjectSampler",
            x_range=list(_X_RANGE),
            y_range=list(_Y_RANGE),
            rotation=None,
            ensure_object_boundary_in_range=False,
            ensure_valid_placement=True,
            reference_pos=np.array((0, 0, 0.8)),  # Lift's table_offset
            z_offset=BELT_TOP + 0.001,
        )
        super().__init__(*args, placement_initializer=placement, **kwargs)

    def _load_model(self) -> None:
        super()._load_model()
        x, y, z = self.table_offset
        belt = ET.SubElement(
            self.model.worldbody, "body", name="belt", pos=f"{x} {y} {z + _GAP + _HALF_HEIGHT}"
        )
        ET.SubElement(belt, "joint", name="belt_slide", type="slide", axis="0 1 0", damping="0")
        size = f"{_HALF_WIDTH} {_HALF_LENGTH} {_HALF_HEIGHT}"
        shape = {"type": "box", "size": size, "rgba": "0.25 0.25 0.28 1"}
        # robosuite shows the geoms of group 1 and lets those of group 0 collide.
        solid = {"group": "0", "mass": str(_MASS), "friction": "1 0.005 0.0001"}
        shown = {"group": "1", "contype": "0", "conaffinity": "0", "mass": "0"}
        _add_geom(belt, "belt_collision", **solid, **shape)
        _add_geom(belt, "belt_visual", **shown, **shape)
        stripe = {"type": "box", "size": f"{_HALF_WIDTH} 0.004 0.0005", "rgba": "0.8 0.8 0.3 1"}
        for number, place in enumerate(np.arange(-_HALF_LENGTH, _HALF_LENGTH, _STRIPE_GAP)):
            where = f"0 {place:.3f} {_HALF_HEIGHT}"
            _add_geom(belt, f"belt_stripe{number}", pos=where, **shown, **stripe)

    def _reset_internal(self) -> None:
        super()._reset_internal()
        self.sim.data.set_joint_qpos("belt_slide", 0.0)
        self.sim.data.set_joint_qvel("belt_slide", BELT_SPEED)
        # The cube rides from the first instant: it would slip for a tenth of a second otherwise.
        self.sim.data.set_joint_qvel(self.cube.joints[0], np.array([0, BELT_SPEED, 0, 0, 0, 0]))

    def _check_success(self) -> bool:
        height = self.sim.data.body_xpos[self.cube_body_id][2]
        return bool(height > self.table_offset[2] + BELT_TOP + 0.04)  # Lift's margin, from the belt


def _add_geom(body: ET.Element, name: str, **attributes: str) -> None:
    ET.SubElement(body, "geom", {"name": name, **attributes})
