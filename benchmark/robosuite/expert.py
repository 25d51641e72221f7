"""Scripted experts for Lift and LiftConveyor, and how what it executes strays from what it shows.

The expert reads the cube's position, as an expert may; the policies trained from it see joints and images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmark.robosuite.conventions import BELT_SPEED

__all__ = ["ConveyorExpert", "Disturbance", "LiftExpert"]

# Metres that OSC_POSE moves in one step for a command of 1.
_METRES_PER_COMMAND = 0.05
# Share of the way to the target commanded in one step; more overshoots, since the arm lags its target.
_GAINS = np.array([0.5, 0.5, 0.4])

# The gripper opens 8 cm and the cube is at most 4.4 cm wide, 6.2 cm along its diagonal: this near, it fits
# between the fingers whichever way it is turned, so the expert never turns the hand. (One that turns to the
# nearest face has two answers for a cube at 45 degrees, and a policy that learns both turns to neither.)
_ALIGNED_M = 0.012
_AT_HEIGHT_M = 0.008
# Above the cube's centre until aligned, so that fingers come down at its sides and not on it.
_HOVER_M = 0.06
_MAX_EXTRA_HOVER_M = 0.05
# The fingers need five steps to close on the cube.
_CLOSING_STEPS = 6
_LIFT_COMMAND = 0.6


class LiftExpert:
    """Go above the cube, come down around it, close, lift. One object an episode.

    Its commands depend on where gripper and cube are, and on time only while the fingers close, so that a
    policy without memory can learn them; and they bring a hand that strayed back on its way.
    """

    # Metres ahead of the object at which the hand aims, so that it is there when it arrives.
    _lead_m = np.zeros(3)
    # Command that moves the hand as the object moves, while the fingers close on it.
    _follow = np.zeros(3, np.float32)

    def __init__(self) -> None:
        self._closing = 0  # steps since the fingers began to close

    def action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what to do next, float32 (7,): OSC_POSE in -1 to 1, then the gripper, 1 open and 0 closed.

        Args:
            observation: robosuite's, of Lift with one arm.
        """
        way = observation["cube_pos"] - observation["robot0_eef_pos"]
        lead = self._lead_m
        off_axis = float(np.linalg.norm(way[:2]))
        aligned = off_axis < _ALIGNED_M
        if aligned and abs(way[2]) < _AT_HEIGHT_M:
            self._closing = max(self._closing, 1)

        action = np.zeros(7, np.float32)
        if self._closing:
            if self._closing > _CLOSING_STEPS:
                action[2] = _LIFT_COMMAND
            else:
                action[:3] = self._follow
            self._closing += 1
            return action
        if not aligned:
            way[2] += _HOVER_M + min(off_axis, _MAX_EXTRA_HOVER_M)
        action[:3] = np.clip((way + lead) * _GAINS / _METRES_PER_COMMAND, -1.0, 1.0)
        action[6] = 1.0
        return action


class ConveyorExpert(LiftExpert):
    """The same for a cube on the belt: aim ahead of it, and go along with it while the fingers close."""

    # A hand that is sent a share of its way in each step follows a moving target at a distance: 3.4 cm,
    # measured. Sent there, it keeps up.
    _lead_m = np.array([0.0, BELT_SPEED * 0.42, 0.0])
    _follow = np.array(_lead_m * _GAINS / _METRES_PER_COMMAND, np.float32)


class Disturbance:
    """Makes the executed motion stray from the expert's, which is what a demonstration records.

    A policy cloned from such demonstrations has seen the states that its own errors lead to, and how to come
    back (DART, arXiv 1703.09327). One episode in four is left alone, and one in four gets twice the noise.

    Args:
        seed: Of the episode; decides everything random here.
        noise: Standard deviation of the hand's motion, in the action's units.
        stray: Standard deviation of the motion that takes the hand away from where episodes begin.
    """

    def __init__(self, seed: int, *, noise: float, stray: float) -> None:
        self._random = np.random.default_rng(seed)
        self._noise = noise * (0.0, 1.0, 1.0, 2.0)[seed % 4]
        self._stray = stray if seed % 4 else 0.0

    def start(self) -> np.ndarray:
        """Return actions to execute before the demonstration, float32 (n, 7): one push, for up to 5 steps."""
        push = np.zeros(7, np.float32)
        push[:3] = np.clip(self._random.normal(0.0, self._stray, 3), -1.0, 1.0)
        push[6] = 1.0
        steps = int(self._random.integers(2, 6)) if self._stray else 0
        return np.tile(push, (steps, 1))

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return the action to execute, float32 (7,); the gripper's command stays."""
        executed = action.copy()
        executed[:3] = np.clip(action[:3] + self._random.normal(0.0, self._noise, 3), -1.0, 1.0)
        return executed
