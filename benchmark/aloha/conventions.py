"""How ALOHA's numbers become MetaObs and MetaAction, and back. No simulator in here.

=================  ============================================  ===========================================
what               gym-aloha                                     MetaObs, MetaAction
=================  ============================================  ===========================================
arm                6 joint positions, radians                    the same
gripper            position of its left finger, metres           1 open, 0 closed, as gym-aloha normalises
joint action       left arm (6), gripper, right arm, gripper     the same; ``joint``, ``absolute``
end-effector       for each arm position (3, metres, world),     the same; ``ee``, ``absolute``
action             quaternion (4, w first), gripper (1)
gripper pose       of the point that such an action moves        ``state_ee``: the same, and the opening
image              (height, width, 3), top row first             (3, height, width), top row first
=================  ============================================  ===========================================

The pose of a gripper is that of the point between its fingertips, :data:`TOOL_OFFSET` from the model's link.
Where a gripper is level and its fingers lie apart along y, it is no rotation, for either arm: the left one
points along x then, the right one against it. gym-aloha's models weld the grippers to such poses.

A gripper's opening runs a little beyond 0 to 1: the fingers stop at 0.057 m (0.97) and 0.021 m (0.06), and a
policy's target may lie beyond either end, which presses the fingers together.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "CONTROL_HZ",
    "GRIPPER_CLOSED_M",
    "GRIPPER_OPEN_M",
    "JOINT_NAMES",
    "PHYSICS_STEPS",
    "START_FINGER_M",
    "START_QPOS",
    "STATE_NAMES",
    "TOOL_OFFSET",
    "TOOL_QUATS",
    "finger_position",
    "gripper_opening",
]

CONTROL_HZ = 50.0
# The models are integrated at 500 Hz.
PHYSICS_STEPS = 10

_ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
# In the order of a state and a joint action.
JOINT_NAMES = tuple(f"{side}_arm_{joint}" for side in ("left", "right") for joint in _ARM_JOINTS)

# As data sets of LeRobot name the motors of ALOHA, in the order of the state and of a joint action.
STATE_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM_JOINTS)

# In the frame of the model's gripper link, metres; and the link's rotation where the tool has none, w first.
TOOL_OFFSET = np.array((0.134706, 0.0, -0.00205))
TOOL_QUATS = np.array(((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))

# Position of a left finger where the gripper counts as closed and as open, in metres.
GRIPPER_CLOSED_M, GRIPPER_OPEN_M = 0.01844, 0.058

# Both arms' joints at the start of an episode, and the fingers of both grippers.
_START_ARM = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
START_FINGER_M = 0.02239
START_QPOS = np.array((*_START_ARM, START_FINGER_M, -START_FINGER_M) * 2)


def gripper_opening(finger_m: np.ndarray | float) -> np.ndarray | float:
    """Return how far a gripper is open: 0 closed, 1 open; not clipped."""
    return (finger_m - GRIPPER_CLOSED_M) / (GRIPPER_OPEN_M - GRIPPER_CLOSED_M)


def finger_position(opening: np.ndarray | float) -> np.ndarray | float:
    """Return the position of the left finger in metres, of an opening."""
    return opening * (GRIPPER_OPEN_M - GRIPPER_CLOSED_M) + GRIPPER_CLOSED_M
