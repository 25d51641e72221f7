"""A scripted expert for Lift, and the disturbances under which it demonstrates.

The expert reads the cube's pose, as an expert may. It decides from the present alone, without phases or
clocks, so that a policy which sees joints and pictures can learn every decision, and it recovers from
wherever it is put.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Disturbance", "DisturbanceOptions", "lift_action"]

# The step of an action of 1.0 with OSC_POSE.
_METRES = 0.05
_RADIANS = 0.5

# Of the distance, per control period, before the limits: higher gains overshoot the cube.
_GAIN = 1.0
_TURN_GAIN = 0.5
_MAX_SPEED = 0.6
_MAX_TURN = 0.4

# The gripper opens 0.08 m and the cube's edge is 0.040 to 0.044 m, so it may be off by 0.018 m.
_HELD_WIDTH = 0.047
_OPEN_WIDTH = 0.07
_NEAR_ENOUGH = 0.010
_STILL_NEAR = 0.018
_TURNED_ENOUGH = 0.2
# Fingers this high above the cube's middle pass over it.
_CLEARANCE = 0.06


def lift_action(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what to do next, float32 (7,): OSC_POSE in -1 to 1, then the gripper, 1 open and 0 closed.

    Args:
        observation: robosuite's, of Lift with a Panda.
    """
    hand, cube = observation["robot0_eef_pos"], observation["cube_pos"]
    fingers = observation["robot0_gripper_qpos"]
    width = float(fingers[0] - fingers[1])
    offset = cube - hand
    aside, above = float(np.hypot(*offset[:2])), float(-offset[2])
    turn = _to_nearest_face(_yaw(observation["cube_quat"]) - _yaw(observation["robot0_eef_quat"]))

    closing = width < _OPEN_WIDTH
    near = _STILL_NEAR if closing else _NEAR_ENOUGH
    between = aside < near and abs(above) < near and abs(turn) < _TURNED_ENOUGH
    if between and width < _HELD_WIDTH:
        rise, opening = _METRES, 0.0
    elif between:
        rise, opening = float(offset[2]), 0.0
    else:
        # Down a funnel: the farther aside, the higher; and not between closed fingers onto the cube.
        clearance = min(4.0 * max(0.0, aside - _NEAR_ENOUGH) + 0.1 * max(0.0, abs(turn) - 0.1), _CLEARANCE)
        if closing and aside < 2 * _CLEARANCE:
            clearance = _CLEARANCE
        rise, opening = float(offset[2]) + clearance, 1.0

    step = _GAIN * np.array([offset[0], offset[1], rise]) / _METRES
    step *= min(1.0, _MAX_SPEED / max(float(np.linalg.norm(step)), 1e-9))
    spin = np.clip(_TURN_GAIN * turn / _RADIANS, -_MAX_TURN, _MAX_TURN)
    return np.array([*step, 0.0, 0.0, spin, opening], np.float32)


@dataclass(frozen=True)
class DisturbanceOptions:
    """How far the executed action strays from the expert's, which is the recorded one.

    As in DART (arXiv 1703.09327): the cloned policy has then seen the states that its own errors lead to.

    Attributes:
        noise: Standard deviation of the hand's motion, in the action's units; its rotation has a third.
        push: Size of a push, a wrong motion held for several steps, in the same units.
        push_share: Share of the steps at which a push begins.
        start_share: Share of the episodes that begin with a push of up to 12 steps, gripper included.
    """

    noise: float = 0.15
    push: float = 0.6
    push_share: float = 0.03
    start_share: float = 0.5


class Disturbance:
    """Turns the expert's actions into those that are executed.

    Args:
        options: How much.
        seed: Of everything random in it.
    """

    def __init__(self, options: DisturbanceOptions, seed: int) -> None:
        self._options = options
        self._random = np.random.default_rng(seed)
        self._scale = np.array([options.noise] * 3 + [options.noise / 3] * 3)
        self._drift = np.zeros(6)
        self._push = np.zeros(6)
        self._push_left = 0

    def start(self) -> np.ndarray:
        """Return the actions to execute before the demonstration begins, float32 (n, 7); perhaps none."""
        if self._random.random() >= self._options.start_share:
            return np.zeros((0, 7), np.float32)
        push = self._random.uniform(-1, 1, 6) * self._options.push * [1, 1, 0.5, 0.1, 0.1, 0.5]
        opening = float(self._random.integers(2))
        return np.tile(np.array([*push, opening], np.float32), (int(self._random.integers(1, 13)), 1))

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return the action to execute, float32 (7,); the gripper's command stays."""
        # Correlated over a few steps, because white noise averages out before the arm has moved.
        self._drift = 0.8 * self._drift + 0.6 * self._scale * self._random.normal(size=6)
        if self._push_left == 0 and self._random.random() < self._options.push_share:
            self._push_left = int(self._random.integers(3, 8))
            self._push = self._random.uniform(-1, 1, 6) * self._options.push * [1, 1, 1, 0, 0, 0.5]
        executed = action.copy()
        executed[:6] += self._drift
        if self._push_left:
            self._push_left -= 1
            executed[:6] += self._push
        executed[:6] = np.clip(executed[:6], -1, 1)
        return executed


def _yaw(quaternion: np.ndarray) -> float:
    """Return the angle of the body's x axis in the horizontal plane; the quaternion is (x, y, z, w)."""
    x, y, z, w = (float(value) for value in quaternion)
    return math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))


def _to_nearest_face(angle: float) -> float:
    """Return the turn that puts the fingers onto two faces of the cube: -pi/4 to pi/4."""
    return (angle + math.pi / 4) % (math.pi / 2) - math.pi / 4
