"""How robosuite's numbers and pictures become MetaObs and MetaAction, and back. No simulator in here.

================  ===========================================  ============================================
what              robosuite                                    MetaObs, MetaAction
================  ===========================================  ============================================
picture           (height, width, 3), bottom row first         (3, height, width), top row first (upright)
gripper command   -1 open, +1 closed                           1 open, 0 closed
gripper state     joint positions of its fingers               1 open, 0 closed, and between
arm command       -1 to 1 of the controller's range            the same numbers
================  ===========================================  ============================================

The arm's command stays in the controller's input range, because that is what an action of robosuite means in
every data set: with OSC_POSE, 1.0 puts the goal 0.05 m or 0.5 rad (axis-angle) from where the hand is, in the
frame of the robot's base. The arm lags behind: it moves about a quarter of that in a control period of 50 ms.
robosuite cuts off what is beyond -1 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ARM_COMMANDS", "ArmCommand", "gripper_opening", "to_gripper_command", "upright"]


@dataclass(frozen=True)
class ArmCommand:
    """What a controller's input means.

    Attributes:
        layout: For ``action_layout``; ``{n}`` is the length of the command.
        ctrl_space: ``"ee"`` or ``"joint"``.
        ctrl_type: ``"absolute"`` or ``"delta"``.
    """

    layout: str
    ctrl_space: str
    ctrl_type: str


# robosuite's names, with the meaning its shipped configurations give them.
ARM_COMMANDS = {
    "OSC_POSE": ArmCommand("dpos(3) daxisangle(3)", "ee", "delta"),
    "OSC_POSITION": ArmCommand("dpos(3)", "ee", "delta"),
    "IK_POSE": ArmCommand("dpos(3) daxisangle(3)", "ee", "delta"),
    "JOINT_POSITION": ArmCommand("djoint_pos({n})", "joint", "delta"),
    "JOINT_VELOCITY": ArmCommand("joint_vel({n})", "joint", "absolute"),
    "JOINT_TORQUE": ArmCommand("joint_torque({n})", "joint", "absolute"),
}


def upright(picture: np.ndarray) -> np.ndarray:
    """Return robosuite's picture (..., height, width, channels) with the top row first; a view."""
    return picture[..., ::-1, :, :]


def to_gripper_command(opening: np.ndarray) -> np.ndarray:
    """Return robosuite's command, -1 open and +1 closed, for 1 open and 0 closed."""
    return 1.0 - 2.0 * opening


def gripper_opening(position: np.ndarray, *, closed: np.ndarray, opened: np.ndarray) -> float:
    """Return how far the gripper is open, from 0 to 1: the mean of its driven joints.

    Args:
        position: Of the driven joints, (n,), radians or metres.
        closed: The same where a closing command drives them.
        opened: The same where an opening command drives them.
    """
    return float(np.clip((position - closed) / (opened - closed), 0.0, 1.0).mean())
