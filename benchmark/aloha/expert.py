"""Scripted experts for both tasks, and how what they execute strays from what they show.

They read the objects' positions, as an expert may; the policies trained from them see joints and images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from benchmark.aloha.kinematics import ArmKinematics
from benchmark.aloha.package import models_folder
from benchmark.aloha.tasks import TASKS

__all__ = ["EXPERTS", "Disturbance", "Expert", "InsertionExpert", "JointExpert", "TransferExpert"]

# How far a commanded pose moves in 20 ms, metres and radians: the arms follow it closely.
_SPEED_M, _SPEED_RAD = 0.007, 0.045
# And how far it may be ahead of the gripper: an arm that strayed is fetched from where it is.
_MAX_LEAD_M = 0.05

_OPEN, _CLOSED = 1.0, 0.0
# An opening below it means that the fingers are closed around a cube of 4 cm.
_HOLDING = 0.67
_WIDE = 0.85

# The right gripper points 60 degrees down, turned about y; the left one is level, turned a quarter about x so
# that its fingers take the faces that the right one's leave free.
_RIGHT_TILT = np.deg2rad(-60.0)
_RIGHT_QUAT = np.array((np.cos(_RIGHT_TILT / 2), 0.0, np.sin(_RIGHT_TILT / 2), 0.0))
_LEFT_QUAT = np.array((np.cos(np.pi / 4), np.sin(np.pi / 4), 0.0, 0.0))

# Metres: where the cube is handed over, where the right gripper goes then, where the left one waits before.
_MEETING = np.array((0.02, 0.5, 0.25))
_LEAVING = np.array((0.12, 0.5, 0.39))
_WAITING = np.array((-0.11, 0.5, 0.25))

# Of the right gripper, from the cube's centre: its fingertips end 2 cm ahead of its point.
_GRASP = np.array((0.0, 0.0, 0.008))
_HOVER_M = 0.07

_ALIGNED_M, _AT_HEIGHT_M, _MET_M = 0.010, 0.010, 0.012

# The insertion. Both grippers point 60 degrees down and lean away from each other.
_INSERTION_QUATS = (_RIGHT_QUAT * (1, 1, -1, 1), _RIGHT_QUAT)
# Of either gripper, from the middle of what it takes. Lower, its fingers rub on the table.
_INSERTION_GRASP = np.array((0.0, 0.0, 0.012))
# Openings below them mean that the fingers are closed around socket and peg.
_INSERTION_HOLDING = (0.72, 0.42)
# Metres: where the middle of the socket is held, and how far the peg's middle is from it along x: apart,
# where the peg begins to enter, and where it presses on the pin, which it touches at 0.1.
_SOCKET_GOAL = np.array((-0.07, 0.5, 0.18))
_APART_M, _ENTERING_M, _INSERTED_M = 0.16, 0.125, 0.098
# How far from the socket's axis the peg may begin to enter, and how far it can be in there: it has 8 mm on
# each side.
_ON_AXIS_M, _INSIDE_M = 0.005, 0.011
# The arms sag by millimetres, so what they hold is sent further than it has to go. With 3 they swing.
_GAIN = 1.5


class _Commands:
    """The last commanded poses of both grippers, from which the next ones go on."""

    def __init__(self) -> None:
        self._commanded: list[np.ndarray] = []

    def toward(self, arm: int, pose: np.ndarray, position: np.ndarray, quat: np.ndarray) -> np.ndarray:
        """Return the pose to command, (7,): one step further from the last one to the goal."""
        if len(self._commanded) <= arm:
            self._commanded.append(pose)
        last = self._commanded[arm]
        ahead = last[:3] - pose[:3]
        start = pose[:3] + ahead * min(1.0, _MAX_LEAD_M / max(float(np.linalg.norm(ahead)), 1e-9))
        way = position - start
        moved = start + way * min(1.0, _SPEED_M / max(float(np.linalg.norm(way)), 1e-9))
        self._commanded[arm] = np.concatenate([moved, _turned(last[3:], quat)])
        return self._commanded[arm]


class Expert(Protocol):
    """Says what to do, from an observation of the simulator."""

    def action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what to do next, (16,): pose and opening of the left gripper, then of the right one."""


class TransferExpert:
    """Take the cube with the right arm, carry it to the left one, which takes it; let go, draw back.

    Which way to go depends on where grippers and cube are and how far the grippers are open, and on nothing
    before, so that a policy without memory can learn it, and arms that strayed find back. It remembers only
    the last commanded poses.
    """

    def __init__(self) -> None:
        self._commands = _Commands()

    def action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what to do next; see :class:`Expert`."""
        cube = observation["env_state"][:3]
        left, right = observation["gripper_pose"]
        left_opening, right_opening = observation["qpos"][6], observation["qpos"][13]
        left_at_cube = float(np.linalg.norm(cube - left[:3])) < _MET_M + 0.008
        left_holds = left_at_cube and left_opening < _HOLDING

        left_target, left_command = _WAITING, _OPEN
        if left_holds:
            left_target, left_command = _MEETING, _CLOSED
            right_target, right_command = _MEETING + _GRASP, _OPEN
            if right_opening > 0.9:
                right_target = _LEAVING
        elif _holds(right, right_opening, cube + _GRASP, _HOLDING):
            right_target, right_command = _MEETING + _GRASP, _CLOSED
            if np.linalg.norm(right[:3] - right_target) < _MET_M:
                left_target = cube
                if left_at_cube:
                    left_command = _CLOSED
        else:
            right_target, right_command = _fetch(right, right_opening, cube + _GRASP)
        return np.concatenate(
            [
                self._commands.toward(0, left, left_target, _LEFT_QUAT),
                (left_command,),
                self._commands.toward(1, right, right_target, _RIGHT_QUAT),
                (right_command,),
            ]
        )


class InsertionExpert:
    """Take the socket with the left arm and the peg with the right one, hold them in a row, push together.

    It depends on the instant alone, as :class:`TransferExpert` does.
    """

    def __init__(self) -> None:
        self._commands = _Commands()

    def action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what to do next; see :class:`Expert`."""
        peg, socket = observation["env_state"][:3], observation["env_state"][7:10]
        poses, openings = observation["gripper_pose"], observation["qpos"][[6, 13]]
        objects = (socket, peg)
        held = [
            _holds(pose, opening, place + _INSERTION_GRASP, holding)
            for pose, opening, place, holding in zip(
                poses, openings, objects, _INSERTION_HOLDING, strict=True
            )
        ]
        row, ahead = _SOCKET_GOAL, _APART_M
        if all(held) and float(np.linalg.norm(socket - _SOCKET_GOAL)) < _MET_M:
            away, off_axis = float(peg[0] - socket[0]), float(np.linalg.norm((peg - socket)[1:]))
            enters = off_axis < (_ON_AXIS_M if away > _ENTERING_M else _INSIDE_M)
            row, ahead = socket, _INSERTED_M if enters else max(away, _ENTERING_M)
        goals = (_SOCKET_GOAL, row + ahead * np.array((1.0, 0.0, 0.0)))
        parts: list[np.ndarray] = []
        for arm, pose in enumerate(poses):
            if held[arm]:
                target, command = pose[:3] + _GAIN * (goals[arm] - objects[arm]), _CLOSED
            else:
                target, command = _fetch(pose, openings[arm], objects[arm] + _INSERTION_GRASP)
            parts += [self._commands.toward(arm, pose, target, _INSERTION_QUATS[arm]), np.array([command])]
        return np.concatenate(parts)


def _holds(pose: np.ndarray, opening: float, place: np.ndarray, holding: float) -> bool:
    """Return whether a gripper is at the place and closed up to what it takes hold of."""
    way = place - pose[:3]
    return bool(opening < holding and np.linalg.norm(way[:2]) < 0.025 and abs(way[2]) < 0.025)


def _fetch(pose: np.ndarray, opening: float, place: np.ndarray) -> tuple[np.ndarray, float]:
    """Return where to go and what the fingers shall do, to take hold from above of what is at ``place``."""
    way = place - pose[:3]
    target, command = place.copy(), _OPEN
    off_axis = float(np.linalg.norm(way[:2]))
    if off_axis > _ALIGNED_M or (opening < _WIDE and way[2] < -0.5 * _HOVER_M):
        target[2] += min(_HOVER_M, 3 * off_axis)
    elif abs(way[2]) < _AT_HEIGHT_M:
        command = _CLOSED
    return target, command


def _turned(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the rotation one step further on the way from ``start`` to ``goal``; quaternions."""
    if start @ goal < 0:
        start = -start
    angle = 2 * float(np.arccos(np.clip(start @ goal, -1.0, 1.0)))
    # Between quaternions a quarter turn apart a straight line is near enough to the arc.
    turned = start + min(1.0, _SPEED_RAD / max(angle, 1e-9)) * (goal - start)
    return np.asarray(turned / np.linalg.norm(turned))


# By task.
EXPERTS: Mapping[str, Callable[[], Expert]] = {"transfer_cube": TransferExpert, "insertion": InsertionExpert}


class JointExpert:
    """The same as a joint action: joint positions that bring the grippers to the expert's poses.

    Args:
        task: A name in ``EXPERTS``.
    """

    def __init__(self, task: str) -> None:
        self._expert = EXPERTS[task]()
        path = models_folder() / TASKS[task].model
        self._arms = [ArmKinematics(path, arm) for arm in (0, 1)]

    def action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what to do next, (14,): joints and opening of the left arm, then of the right one."""
        action, qpos = self._expert.action(observation), observation["qpos"]
        parts: list[np.ndarray] = []
        for arm, kinematics in enumerate(self._arms):
            pose, opening = action[8 * arm : 8 * arm + 7], action[8 * arm + 7]
            parts += [kinematics.joints(pose, qpos[7 * arm : 7 * arm + 6]), np.array([opening])]
        return np.concatenate(parts)


class Disturbance:
    """Makes the executed motion stray from the expert's, which is what a demonstration records.

    A policy cloned from such demonstrations has seen the states that its own errors lead to, and how to come
    back (DART, arXiv 1703.09327). One episode in four is left alone. What is added to the joints changes
    slowly: the arms would follow nothing of what changes with every step.

    Args:
        seed: Of the episode; decides everything random here.
        noise: Standard deviation of joints, in radians.
        stray: Standard deviation of joints of the motion that takes the arms away from where episodes begin.
    """

    def __init__(self, seed: int, *, noise: float, stray: float) -> None:
        self._random = np.random.default_rng(seed)
        self._noise = noise if seed % 4 else 0.0
        self._stray = stray if seed % 4 else 0.0
        self._added = np.zeros(14)

    def start(self, qpos: np.ndarray) -> np.ndarray:
        """Return actions to execute before the demonstration, (n, 14): one push, for up to 10 steps."""
        push = qpos + self._drawn(self._stray)
        steps = int(self._random.integers(2, 11)) if self._stray else 0
        return np.tile(push, (steps, 1))

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return the action to execute, of the same shape; the grippers' commands stay."""
        if not self._noise:
            return action
        kept = 0.9
        self._added = kept * self._added + self._drawn(self._noise * (1 - kept**2) ** 0.5)
        return action + self._added

    def _drawn(self, deviation: float) -> np.ndarray:
        drawn = self._random.normal(0.0, deviation, 14)
        drawn[[6, 13]] = 0.0
        return drawn
