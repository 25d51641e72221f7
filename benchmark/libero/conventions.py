"""How LIBERO's numbers and images become MetaObs and MetaAction, and back. No simulator in here.

================  ===========================================  ==========================================
what              LIBERO                                       MetaObs, MetaAction
================  ===========================================  ==========================================
image             (height, width, 3), bottom row first         (3, height, width), turned by 180 degrees
gripper command   -1 open, +1 closed                           1 open, 0 closed
state             an array for each name                       ee_pos(3) ee_axisangle(3) gripper_qpos(2)
arm command       -1 to 1 of the controller's range            the same numbers
================  ===========================================  ==========================================

Images and state are those that published policies of LIBERO were trained on (OpenVLA, Octo, pi0, LeRobot's
data sets), so that one of them runs here unchanged. Turned by 180 degrees, the top row is first, and left and
right are exchanged: the mirror image of what a camera in the scene would see. ``render``, which is for
people, is not mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmark.arms.commands import to_gripper_command

__all__ = [
    "CENTER_NAMES",
    "CONTROLLERS",
    "STATE_LAYOUT",
    "axis_angle",
    "center_named",
    "dummy_action",
    "gripper_opening",
    "libero_named",
    "policy_state",
    "turned",
]

# Between the Panda's fingers, metres.
_WIDEST = 0.08

# What an older server of LIBERO (simulator_inference_center) called its observations, and what LIBERO does.
# It sent these only.
CENTER_NAMES = {
    "agentview_image": "agentview_image",
    "eye_in_hand_image": "robot0_eye_in_hand_image",
    "joint_positions": "robot0_joint_pos",
    "joint_velocities": "robot0_joint_vel",
    "ee_pos": "robot0_eef_pos",
    "ee_quat": "robot0_eef_quat",
    "gripper_position": "robot0_gripper_qpos",
    "gripper_velocity": "robot0_gripper_qvel",
}

STATE_LAYOUT = "ee_pos(3) ee_axisangle(3) gripper_qpos(2)"


# LIBERO's data and every published policy use the first. Of robosuite's others: those that stand still at 0.
CONTROLLERS = ("OSC_POSE", "OSC_POSITION", "JOINT_POSITION")


def turned(image: np.ndarray) -> np.ndarray:
    """Return LIBERO's image (height, width, 3) turned by 180 degrees, as policies take it; a view."""
    return image[::-1, ::-1]


def gripper_opening(position: np.ndarray) -> float:
    """Return how far the gripper is open, from 0 to 1, for the two positions of its fingers, metres."""
    return float(np.clip((position[0] - position[1]) / _WIDEST, 0.0, 1.0))


def dummy_action(action_dim: int) -> np.ndarray:
    """Return the action that waits: stand still, gripper open."""
    action = np.zeros(action_dim)
    action[-1] = to_gripper_command(1.0)
    return action


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of a unit quaternion (x, y, z, w); its length is 0 to 2 pi.

    Not brought to the shorter way round: LIBERO's hand points down, at an angle near pi, and policies know it
    as robosuite computes it, without a jump there.
    """
    w = min(1.0, max(-1.0, float(quaternion[3])))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3] * (2.0 * math.acos(w)) / sine)


def center_named(observation: Mapping[str, np.ndarray], cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """Return what :data:`CENTER_NAMES` names, and the images of ``cameras`` that have no name there."""
    named = {name: observation[own] for name, own in CENTER_NAMES.items() if own in observation}
    for own in (f"{camera}_image" for camera in cameras):
        if own not in CENTER_NAMES.values():
            named[own] = observation[own]
    return named


def libero_named(observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the observation under LIBERO's names, whichever it came under."""
    return {CENTER_NAMES.get(name, name): value for name, value in observation.items()}


def policy_state(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return float32 (8,), laid out as :data:`STATE_LAYOUT`; metres and radians."""
    parts = (
        observation["robot0_eef_pos"],
        axis_angle(observation["robot0_eef_quat"]),
        observation["robot0_gripper_qpos"],
    )
    return np.concatenate(parts).astype(np.float32)
