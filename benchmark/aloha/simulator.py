"""ALOHA's arms behind the contract of a simulator. What its numbers mean is in ``conventions.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from benchmark.aloha.conventions import (
    CONTROL_HZ,
    START_QPOS,
    STATE_NAMES,
    finger_position,
    gripper_opening,
)
from benchmark.aloha.package import PACKAGE, models_folder
from benchmark.aloha.physics import Physics
from benchmark.aloha.tasks import SUCCESS_REWARD, TASKS, Task
from benchmark.arms.commands import numbers_of
from benchmark.arms.rendering import Renderer
from robowire.errors import InvalidParams, NoTaskLoaded, SnapshotMismatch, TaskNotFound
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import nearest
from robowire.specs import SimulatorSpec, layout_names
from robowire.worker.simulator_input import advance_chunk, checked_action, chosen_seed, positive

__all__ = ["AlohaSimulator"]

DEFAULT_CAMERAS = ("top",)
# The cube is 3 pixels wide in "top" then, which shows its place to some millimetres.
DEFAULT_IMAGE_HEIGHT, DEFAULT_IMAGE_WIDTH = 96, 128

# With the models' shadows an image takes 88 ms on a CPU, without 12 ms.
_RENDERING = "shadows off, reflections off, multisampling off"

# What ``render`` gives is for people; the original's size.
_RENDER_HEIGHT, _RENDER_WIDTH = 480, 640
_BEST_VIEW = "angle"

_STATE_LAYOUT = "left: joint_pos(6) gripper_open(1); right: joint_pos(6) gripper_open(1)"
_ACTION_LAYOUTS = {
    "joint": "left: joint_pos(6) gripper(1); right: joint_pos(6) gripper(1)",
    "ee": "left: pos(3) quat(4) gripper(1); right: pos(3) quat(4) gripper(1)",
}
_ACTION_UNITS = {
    "joint": (("rad",) * 6 + ("closed0_open1",)) * 2,
    "ee": (("m",) * 3 + ("quaternion",) * 4 + ("closed0_open1",)) * 2,
}
_ACTION_DIMS = {"joint": 14, "ee": 16}

# Of one arm's joints in qpos and qvel: six joints, then the left finger and the right one.
_ARM_QPOS = 8


class AlohaSimulator:
    """One ALOHA task; implements :class:`robowire.interfaces.Simulator`.

    Raw observations have gym-aloha's names: ``qpos`` and ``qvel`` (14,), ``env_state`` (7 * objects,), the
    objects' poses; and ``gripper_pose`` (2, 7), position and quaternion (w first) of both grippers.
    """

    def __init__(self) -> None:
        self._physics: Physics | None = None
        self._task: Task | None = None
        self._spec: SimulatorSpec | None = None
        self._renderer: Renderer | None = None  # of an observation's size: a larger one takes twice as long
        self._large_renderer: Renderer | None = None
        self._steps = 0

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the tasks; there are no suites.

        Raises:
            InvalidParams: A suite is asked for.
        """
        if suite is not None:
            raise InvalidParams(f"aloha has no suites, so suite must be None, not {suite!r}")
        return sorted(TASKS)

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task, closing the one before; returns its spec.

        Raises:
            TaskNotFound: There is no such task.
            InvalidParams: An option does not suit it; names the option and what is known.
        """
        if task_name not in TASKS:
            raise TaskNotFound(
                f"aloha has no task {task_name!r}.{nearest(task_name, TASKS)} "
                f"Known: {', '.join(sorted(TASKS))}"
            )
        for option in ("robot", "controller", "reward_shaping"):
            if getattr(options, option) is not None:
                raise InvalidParams(
                    f"{option} is {getattr(options, option)!r}, but a task of aloha has only its own: leave "
                    "it out"
                )
        if options.control_hz not in (None, CONTROL_HZ):
            raise InvalidParams(f"control_hz is {options.control_hz}, but aloha runs at {CONTROL_HZ:g} alone")
        task = TASKS[task_name]
        height = positive("image_height", options.image_height, DEFAULT_IMAGE_HEIGHT)
        width = positive("image_width", options.image_width, DEFAULT_IMAGE_WIDTH)
        horizon = positive("horizon", options.horizon, task.max_episode_steps)
        cameras = DEFAULT_CAMERAS if options.camera_names is None else tuple(options.camera_names)

        self.close()
        physics = Physics(models_folder() / task.model, task.shapes)
        for camera in cameras:
            _require_camera(physics, camera)
        self._task, self._physics = task, physics
        self._renderer = Renderer(height, width, hidden_groups=(), shadows=False)
        self._large_renderer = Renderer(
            max(height, _RENDER_HEIGHT), max(width, _RENDER_WIDTH), hidden_groups=(), shadows=False
        )
        action_dim = _ACTION_DIMS[task.ctrl_space]
        self._spec = SimulatorSpec(
            camera_names=cameras,
            image_height=height if cameras else None,
            image_width=width if cameras else None,
            state_dim=14,
            state_layout=_STATE_LAYOUT,
            action_dim=action_dim,
            action_layout=_ACTION_LAYOUTS[task.ctrl_space],
            ctrl_space=task.ctrl_space,
            ctrl_type="absolute",
            control_hz=CONTROL_HZ,
            action_hold=("last",) * action_dim,
            state_names=STATE_NAMES,
            action_names=STATE_NAMES
            if task.ctrl_space == "joint"
            else layout_names(_ACTION_LAYOUTS[task.ctrl_space]),
            state_units=_ACTION_UNITS["joint"],
            action_units=_ACTION_UNITS[task.ctrl_space],
            state_signs=(1,) * 14,
            action_signs=(1,) * action_dim,
            simulator="aloha",
            task=task_name,
            instruction=task.instruction,
            max_episode_steps=horizon,
            rendering=_RENDERING if cameras else None,
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode and return its first observation.

        Args:
            seed: The same one gives the same episode, bit for bit, and the one that gym-aloha begins with it.
                From 0 to 2**32 - 1; ``None`` draws one.
            init_state: aloha numbers none, so it must be ``None``.

        Raises:
            InvalidParams: ``seed`` is out of range, or an ``init_state`` is asked for.
        """
        task, physics, _ = self._loaded()
        if init_state is not None:
            raise InvalidParams(
                f"aloha numbers no initial states, so init_state must be None, not {init_state}"
            )
        physics.reset(task.start_poses(chosen_seed(seed)))
        self._steps = 0
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Execute a joint action, float (14,), or an end-effector action, float (16,), for 20 ms.

        The reward is 0 to 4, and 4 is success and ends the episode.

        Raises:
            InvalidParams: The action has another shape, holds something not finite, or a quaternion of zeros.
        """
        result = self.step_unseen(action)
        self._add_images(result.observation)
        return result

    def step_unseen(self, action: np.ndarray) -> StepResult:
        """Do as :meth:`step`, but draw no images."""
        task, physics, spec = self._loaded()
        action = checked_action(action, spec.action_dim)
        if task.ctrl_space == "joint":
            physics.data.ctrl[:] = _joint_command(action)
        else:
            _follow(physics, action)
        physics.advance()
        self._steps += 1
        reward = task.reward(physics.touching)
        success = reward == SUCCESS_REWARD
        return StepResult(
            observation=self._numbers(),
            reward=float(reward),
            terminated=success,
            truncated=self._steps >= spec.max_episode_steps,
            info={"success": success},
        )

    def images(self) -> dict[str, np.ndarray]:
        """Return the images of this instant alone, as an observation has them."""
        images: dict[str, np.ndarray] = {}
        self._add_images(images)
        return images

    def pixel(self, camera: str, point: np.ndarray) -> np.ndarray:
        """Return where an image of ``camera`` shows a point, (2,): column and row, as continuous numbers.

        The middle of the first pixel is (0.5, 0.5). What hides the point does not count.

        Args:
            camera: Its name; one that does not move with an arm.
            point: Metres, in the world, (3,).
        """
        _, physics, spec = self._loaded()
        height, width = spec.image_height or DEFAULT_IMAGE_HEIGHT, spec.image_width or DEFAULT_IMAGE_WIDTH
        return physics.pixel(camera, point, height=height, width=width)

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        """Do as :meth:`step` for each action, up to the end of the episode, but render after the last only.

        Returns:
            The reward of every action that was executed, and what the last one gave.
        """
        rewards, result = advance_chunk(self.step_unseen, actions)
        self._add_images(result.observation)
        return rewards, result

    def save_state(self) -> dict[str, Any]:
        """Return the whole state of the episode, as plain data.

        Nothing is random after the reset and the model never changes, so it is MuJoCo's integration state,
        with the solver's warm start, and the number of steps.
        """
        _, physics, _ = self._loaded()
        return {"steps": self._steps, "integration": physics.save()}

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go to an instant of an episode of the same task and return its observation.

        Raises:
            SnapshotMismatch: The state does not fit the task's model.
        """
        _, physics, _ = self._loaded()
        try:
            steps, integration = int(state["steps"]), state["integration"]
        except (KeyError, TypeError, ValueError) as exc:
            raise SnapshotMismatch(
                "the state is not one of an aloha task: no steps, or no integration"
            ) from exc
        physics.restore(integration)
        self._steps = steps
        return self.observe()

    def fingerprint(self) -> dict[str, str]:
        """Return what a saved state depends on, in addition to the spec."""
        _, physics, _ = self._loaded()
        versions = {name: metadata.version(name) for name in ("mujoco", "numpy", PACKAGE)}
        return {**versions, "model": physics.digest()}

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright; at least 480 pixels high and 640 wide.

        Args:
            camera_name: ``None`` means ``"angle"``, where both arms and the table are seen.

        Raises:
            InvalidParams: The model has no such camera.
        """
        _, physics, spec = self._loaded()
        camera = camera_name or _BEST_VIEW
        _require_camera(physics, camera)
        height = max(spec.image_height or 0, _RENDER_HEIGHT)
        width = max(spec.image_width or 0, _RENDER_WIDTH)
        return _image(self._large_renderer, physics, camera, height, width)

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return what the robot sees: joints, the grippers' openings, images; never an object's pose."""
        _, _, spec = self._loaded()
        qpos = np.asarray(observation["qpos"])
        poses = np.asarray(observation["gripper_pose"])
        images = [observation[f"{camera}_image"] for camera in spec.camera_names or ()]
        return MetaObs(
            state=qpos.astype(np.float32),
            state_ee=np.concatenate([*poses[0], qpos[6], *poses[1], qpos[13]], axis=None).astype(np.float32),
            state_joint=np.delete(qpos, (6, 13)).astype(np.float32),
            image=np.stack(images).transpose(0, 3, 1, 2).copy() if images else None,
            raw_lang=spec.instruction,
            timestep=self._steps,
        )

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the same numbers, float32 (action_dim,): they are the task's own.

        Raises:
            SpecMismatch: ``ctrl_space``, ``ctrl_type`` or the length is not the loaded task's.
        """
        _, _, spec = self._loaded()
        return numbers_of(action, spec)

    def close(self) -> None:
        """Free the model and the OpenGL context."""
        for renderer in (self._renderer, self._large_renderer):
            if renderer is not None:
                renderer.close()
        self._task = self._physics = self._spec = self._renderer = self._large_renderer = None

    @property
    def spec(self) -> SimulatorSpec:
        """What the loaded task gives and takes."""
        return self._loaded()[2]

    def _loaded(self) -> tuple[Task, Physics, SimulatorSpec]:
        if self._task is None or self._physics is None or self._spec is None:
            raise NoTaskLoaded("load_task must come first")
        return self._task, self._physics, self._spec

    def observe(self) -> dict[str, np.ndarray]:
        """Return the observation of this instant."""
        observation = self._numbers()
        self._add_images(observation)
        return observation

    def _numbers(self) -> dict[str, np.ndarray]:
        _, physics, _ = self._loaded()
        data = physics.data
        return {
            "qpos": _per_arm(data.qpos, gripper_opening),
            "qvel": _per_arm(data.qvel, _opening_speed),
            "env_state": np.array(data.qpos[len(START_QPOS) :]),
            "gripper_pose": physics.tool_poses(),
        }

    def _add_images(self, observation: dict[str, np.ndarray]) -> None:
        _, physics, spec = self._loaded()
        for camera in spec.camera_names or ():
            observation[f"{camera}_image"] = _image(
                self._renderer, physics, camera, spec.image_height or 0, spec.image_width or 0
            )


def _image(renderer: Renderer | None, physics: Physics, camera: str, height: int, width: int) -> np.ndarray:
    """Return uint8 (height, width, 3), upright."""
    assert renderer is not None
    image = renderer.render(physics.model, physics.data, camera, height=height, width=width)
    return np.ascontiguousarray(image[::-1])


def _require_camera(physics: Physics, camera: str) -> None:
    known = sorted(physics.model.camera(number).name for number in range(physics.model.ncam))
    if camera not in known:
        raise InvalidParams(
            f"aloha has no camera {camera!r}.{nearest(camera, known)} Known: {', '.join(known)}"
        )


def _per_arm(values: np.ndarray, gripper: Any) -> np.ndarray:
    """Return (14,) of qpos or qvel: for each arm its joints, and ``gripper`` of its left finger's number."""
    parts = [values[:_ARM_QPOS], values[_ARM_QPOS : 2 * _ARM_QPOS]]
    return np.concatenate([(*arm[:6], gripper(arm[6])) for arm in parts])


def _opening_speed(finger_m_s: float) -> float:
    """Return a gripper's speed, in openings a second."""
    return float(gripper_opening(finger_m_s) - gripper_opening(0.0))


def _joint_command(action: np.ndarray) -> np.ndarray:
    """Return MuJoCo's controls (16,) of a joint action (14,)."""
    parts: list[np.ndarray] = []
    for arm in (action[:7], action[7:]):
        finger = finger_position(arm[6])
        parts += [arm[:6], np.array((finger, -finger))]
    return np.concatenate(parts)


def _follow(physics: Physics, action: np.ndarray) -> None:
    """Put what the grippers follow where an end-effector action (16,) says, and command the fingers."""
    fingers = []
    for number, arm in enumerate((action[:8], action[8:])):
        length = np.linalg.norm(arm[3:7])
        if length < 1e-6:  # MuJoCo would take it for no rotation
            raise InvalidParams(f"the quaternion of the {('left', 'right')[number]} arm is zero")
        physics.data.mocap_pos[number] = arm[:3]
        physics.data.mocap_quat[number] = arm[3:7]
        finger = finger_position(arm[7])
        fingers += [finger, -finger]
    physics.data.ctrl[:] = fingers
