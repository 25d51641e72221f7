"""A scripted expert for Lift. It sees the cube's pose, which the policies trained from it never do."""

from __future__ import annotations

from typing import Any

import numpy as np

from robowire.errors import InvalidParams

__all__ = ["LiftExpert"]

# Metres that OSC_POSE moves in one step for a command of 1.
_METRES_PER_COMMAND = 0.05
# Share of the way to the target commanded in one step; more overshoots, since the arm lags its target.
_GAIN_XY, _GAIN_Z = 0.5, 0.4

# The gripper opens 8 cm and the cube is at most 4.4 cm wide, 6.2 cm along its diagonal: nearer than this any
# of its turns fits between the fingers.
_ALIGNED_M = 0.012
_AT_HEIGHT_M = 0.008
# Above the cube's centre until aligned, so that fingers come down beside it and not on it.
_HOVER_M = 0.06
# The fingers need five steps to close on the cube.
_CLOSING_STEPS = 6
_LIFT_COMMAND = 0.6


class LiftExpert:
    """Go above the cube, come down around it, close, lift. One episode an object.

    Its commands depend on where gripper and cube are, and on time only while the fingers close, so that a
    policy without memory can learn them; and they bring a gripper that strayed back on its way.

    Args:
        env: robosuite's Lift with one arm and OSC_POSE.
    """

    def __init__(self, env: Any) -> None:
        if not hasattr(env, "cube_body_id"):
            raise InvalidParams(f"the scripted expert lifts the cube of Lift; {type(env).__name__} has none")
        self._env = env
        self._closing = 0  # steps since the fingers began to close

    def action(self, gripper_position: np.ndarray) -> np.ndarray:
        """Return the next action, float32 (7,), in MetaAction's convention: gripper 1 open, 0 closed.

        Args:
            gripper_position: (3,), metres, in the world's frame.
        """
        cube = np.asarray(self._env.sim.data.body_xpos[self._env.cube_body_id])
        way = cube - gripper_position
        off_axis = float(np.linalg.norm(way[:2]))
        aligned = off_axis < _ALIGNED_M
        if aligned and abs(way[2]) < _AT_HEIGHT_M:
            self._closing = max(self._closing, 1)

        action = np.zeros(7, np.float32)
        if not self._closing:
            if not aligned:
                way[2] += _HOVER_M + min(off_axis, 0.05)
            gains = np.array([_GAIN_XY, _GAIN_XY, _GAIN_Z])
            action[:3] = np.clip(way * gains / _METRES_PER_COMMAND, -1.0, 1.0)
            action[6] = 1.0
        else:
            if self._closing > _CLOSING_STEPS:
                action[2] = _LIFT_COMMAND
            self._closing += 1
        return action
