"""Joint positions that bring ALOHA's grippers to given poses: damped least squares on the task's own model.

Buss 2004, "Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped least squares
methods", section 5.
"""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from benchmark.aloha.conventions import TOOL_OFFSET, TOOL_QUATS

__all__ = ["ArmKinematics"]

_ARM_QPOS = 8  # six joints and two fingers
# Of the damping: metres and radians a radian. Larger loses accuracy, smaller runs wild near singular poses.
_DAMPING = 0.03
_ITERATIONS = 10
# How readily each joint moves. Near a straight wrist the forearm would turn to the end of its range, and the
# waist swing with it.
_READINESS = np.array((1.0, 1.0, 1.0, 0.1, 1.0, 1.0))
# Radians a joint moves in one iteration.
_MAX_MOVE = 0.3
_FOREARM_ROLL, _MAX_ROLL = 3, 1.0


class ArmKinematics:
    """Inverse kinematics of one arm.

    Args:
        path: The MuJoCo model.
        arm: 0 for the left arm, 1 for the right one.
    """

    def __init__(self, path: Path, arm: int) -> None:
        self._model = mujoco.MjModel.from_xml_path(str(path))
        self._data = mujoco.MjData(self._model)
        self._first = arm * _ARM_QPOS
        self._link = self._model.body(("vx300s_left", "vx300s_right")[arm] + "/gripper_link").id
        self._tool_quat = TOOL_QUATS[arm]
        ranges = self._model.jnt_range[self._first : self._first + 6]
        self._lowest, self._highest = ranges[:, 0].copy(), ranges[:, 1].copy()
        # Near a straight wrist half a turn of the forearm is as good as none: without a limit 40 of 106
        # demonstrations turned it, and a policy that learns both does neither.
        self._lowest[_FOREARM_ROLL], self._highest[_FOREARM_ROLL] = -_MAX_ROLL, _MAX_ROLL

    def joints(self, pose: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return joint positions (6,), radians, that bring the gripper near ``pose`` in ten iterations.

        Args:
            pose: (7,), metres and a quaternion, w first.
            start: (6,), where the search begins.
        """
        model, data = self._model, self._data
        numbers = slice(self._first, self._first + 6)
        wanted = np.empty(4)
        mujoco.mju_mulQuat(wanted, pose[3:], self._tool_quat)
        joints = np.array(start, np.float64)
        position, rotation = np.empty((3, model.nv)), np.empty((3, model.nv))
        offset, error, inverse, turn = np.empty(3), np.empty(6), np.empty(4), np.empty(4)
        for _ in range(_ITERATIONS):
            data.qpos[numbers] = joints
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mju_rotVecQuat(offset, TOOL_OFFSET, data.xquat[self._link])
            tool = data.xpos[self._link] + offset
            error[:3] = pose[:3] - tool
            mujoco.mju_negQuat(inverse, data.xquat[self._link])
            mujoco.mju_mulQuat(turn, wanted, inverse)
            mujoco.mju_quat2Vel(error[3:], turn, 1.0)
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jac(model, data, position, rotation, tool, self._link)
            jacobian = np.concatenate([position[:, numbers], rotation[:, numbers]])
            weighted = jacobian * _READINESS
            square = weighted @ jacobian.T + _DAMPING**2 * np.eye(6)
            move = weighted.T @ np.linalg.solve(square, error)
            joints += move * min(1.0, _MAX_MOVE / max(np.abs(move).max(), 1e-9))
            joints = joints.clip(self._lowest, self._highest)
        return joints
