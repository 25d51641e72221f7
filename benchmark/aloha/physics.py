"""MuJoCo under ALOHA's tasks: reset, control periods, contacts, and the whole state.

The order of calls is dm_control's, which gym-aloha runs on, so that episodes equal gym-aloha's bit for bit:
a control period ends after the positions' half of a step, with contacts of the newest positions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import mujoco
import numpy as np

from benchmark.aloha.conventions import GRIPPER_CLOSED_M, PHYSICS_STEPS, START_QPOS, TOOL_OFFSET, TOOL_QUATS
from robowire.errors import SnapshotMismatch

__all__ = ["Physics"]

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
ROBOT_QPOS = len(START_QPOS)

_LINKS = ("vx300s_left/gripper_link", "vx300s_right/gripper_link")


class Physics:
    """One model with its state.

    Args:
        path: The MuJoCo model.
        shapes: Names of geoms that :meth:`touching` is asked about.
    """

    def __init__(self, path: Path, shapes: tuple[str, ...]) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(path))
        self.data = mujoco.MjData(self.model)
        self._shapes = {name: self.model.geom(name).id for name in shapes}
        self._contacts: frozenset[tuple[int, int]] | None = None

    def reset(self, object_poses: np.ndarray) -> None:
        """Begin with both arms at their start and the free objects at their poses, (7 * objects,)."""
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        data.qpos[:ROBOT_QPOS] = START_QPOS
        data.qpos[ROBOT_QPOS:] = object_poses
        if model.nmocap:
            # Where the grippers are, so that they stay. gym-aloha begins with the place of the gripper links,
            # 13 cm behind, but builds no environment of these tasks.
            mujoco.mj_kinematics(model, data)
            poses = self.tool_poses()
            data.mocap_pos[:], data.mocap_quat[:] = poses[:, :3], poses[:, 3:]
            data.ctrl[:] = np.array((GRIPPER_CLOSED_M, -GRIPPER_CLOSED_M) * 2)
        else:
            data.ctrl[:] = START_QPOS
        # As dm_control does after a reset: accelerations without actuation.
        flags = model.opt.disableflags
        model.opt.disableflags = flags | mujoco.mjtDisableBit.mjDSBL_ACTUATION
        mujoco.mj_forward(model, data)
        model.opt.disableflags = flags
        self._contacts = None

    def advance(self) -> None:
        """Integrate one control period."""
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step(self.model, self.data, PHYSICS_STEPS - 1)
        mujoco.mj_step1(self.model, self.data)
        self._contacts = None

    def tool_poses(self) -> np.ndarray:
        """Return the poses of both grippers, (2, 7): metres, and quaternions, w first."""
        poses = np.empty((2, 7))
        for number, name in enumerate(_LINKS):
            link = self.data.body(name)
            mujoco.mju_rotVecQuat(poses[number, :3], TOOL_OFFSET, link.xquat)
            poses[number, :3] += link.xpos
            back = TOOL_QUATS[number] * (1, -1, -1, -1)
            mujoco.mju_mulQuat(poses[number, 3:], link.xquat, back)
        return poses

    def touching(self, first: tuple[str, ...], second: tuple[str, ...]) -> bool:
        """Return whether any shape of ``first`` is in contact with any of ``second``."""
        if self._contacts is None:
            self._contacts = frozenset(
                (int(min(pair)), int(max(pair))) for pair in self.data.contact.geom.tolist()
            )
        ids = self._shapes
        return any(
            (min(ids[one], ids[other]), max(ids[one], ids[other])) in self._contacts
            for one in first
            for other in second
        )

    def pixel(self, camera: str, point: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Return column and row of a point (3,) in an image of this size, (2,), as continuous numbers."""
        view, fixed = self.data.camera(camera), self.model.camera(camera)
        right, up, back = (point - view.xpos) @ view.xmat.reshape(3, 3)
        focal = height / 2 / np.tan(np.deg2rad(float(fixed.fovy[0])) / 2)
        return np.array((width / 2 - focal * right / back, height / 2 + focal * up / back))

    def save(self) -> np.ndarray:
        """Return the integration state with the solver's warm start, float64 (n,). A fresh array."""
        state = np.empty(mujoco.mj_stateSize(self.model, _INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, _INTEGRATION)
        return state

    def restore(self, state: np.ndarray) -> None:
        """Go to a state of :meth:`save`.

        Raises:
            SnapshotMismatch: It has another length.
        """
        size = mujoco.mj_stateSize(self.model, _INTEGRATION)
        if np.shape(state) != (size,):
            raise SnapshotMismatch(f"the state has shape {np.shape(state)}, but the model's is ({size},)")
        # What was left over of another episode: nothing may depend on it.
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, np.asarray(state, np.float64), _INTEGRATION)
        # All that the next half step reads; it leaves the warm start as it is.
        mujoco.mj_step1(self.model, self.data)
        self._contacts = None

    def digest(self) -> str:
        """Return a digest of the model's sizes, shapes and constants."""
        buffer = np.empty(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, buffer)
        return hashlib.sha256(buffer.data).hexdigest()
