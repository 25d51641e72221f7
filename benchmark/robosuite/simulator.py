"""robosuite behind the contract of a simulator. What its numbers mean is in ``conventions.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from benchmark.arms import snapshots
from benchmark.arms.commands import ARM_COMMANDS, command_units, control_rate, own_action, upright
from benchmark.arms.rendering import RENDERING, Renderer
from benchmark.robosuite import environments
from benchmark.robosuite.conventions import gripper_opening
from robowire.errors import InvalidParams, NoTaskLoaded, TaskNotFound
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import nearest
from robowire.specs import SimulatorSpec, layout_names, layout_words
from robowire.worker.simulator_input import advance_chunk, checked_action, chosen_seed, positive

__all__ = ["RobosuiteSimulator"]

DEFAULT_ROBOT = "Panda"  # two of them where a task is for two arms
DEFAULT_CONTROLLER = "OSC_POSE"
# The cube of Lift is 7 pixels wide in "agentview" then, and a convolution costs half of what it does at 128.
DEFAULT_IMAGE_SIZE = 96

# 500 is the horizon of robosuite's own benchmark. A policy lifts the cube in 3 s, so one that has not after
# 10 s has failed.
_DEFAULT_HORIZON = 500
_HORIZONS = {"Lift": 200, "LiftConveyor": 200}
_CENTER_HORIZON = 1000

# What ``render`` gives is for people, who see little in 96 pixels.
_RENDER_MIN_SIZE = 256
_BEST_VIEW = "frontview"

_INSTRUCTIONS = {
    "Door": "open the door",
    "Lift": "lift the red cube",
    "LiftConveyor": "lift the red cube off the belt",
    "NutAssembly": "put both nuts on their pegs",
    "NutAssemblyRound": "put the round nut on the round peg",
    "NutAssemblySingle": "put the nut on its peg",
    "NutAssemblySquare": "put the square nut on the square peg",
    "PickPlace": "put each object in its bin",
    "PickPlaceBread": "put the bread in its bin",
    "PickPlaceCan": "put the can in its bin",
    "PickPlaceCereal": "put the cereal in its bin",
    "PickPlaceMilk": "put the milk in its bin",
    "PickPlaceSingle": "put the object in its bin",
    "Stack": "put the red cube on the green cube",
    "ToolHang": "hang the tool on the frame",
    "TwoArmHandover": "hand the hammer over to the other arm",
    "TwoArmLift": "lift the pot by both handles",
    "TwoArmPegInHole": "put the peg into the hole",
    "TwoArmTransport": "bring the hammer to the other table",
    "Wipe": "wipe the table",
}


class RobosuiteSimulator:
    """One robosuite environment; implements :class:`robowire.interfaces.Simulator`.

    Observations carry robosuite's own names. They are read again at the end of each step, so that they do not
    depend on the clocks of robosuite's observables.
    """

    def __init__(self) -> None:
        self._env: Any = None
        self._spec: SimulatorSpec | None = None
        self._renderer: Renderer | None = None
        self._arms: list[environments.Arm] = []
        self._choices: dict[str, str] = {}  # options that the spec does not show
        self._steps = 0
        self._center = False  # whether names and ends of episodes are those of simulator_inference_center

    @property
    def names(self) -> tuple[str, ...]:
        """The simulator's own, and ``"center"``: as simulator_inference_center serves robosuite.

        With ``"center"`` an observation has nothing that robosuite does not name, and an episode ends at its
        horizon alone: terminated where it is successful then, else truncated. The controller is by default
        each robot's own, and the horizon 1000.
        """
        return ("raw", "center")

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the environments for one arm and for two; robosuite has no suites.

        Raises:
            InvalidParams: A suite is asked for.
        """
        if suite is not None:
            raise InvalidParams(f"robosuite has no suites, so suite must be None, not {suite!r}")
        return environments.tasks()

    def prepare(self, task_name: str, options: TaskOptions) -> None:
        """Import, compile and read once what a task needs; most of it is numba's registries and meshes.

        Without cameras no OpenGL context is made.
        """
        self.load_task(task_name, replace(options, camera_names=()))
        self.close()

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task, closing the one before; returns its spec.

        Raises:
            TaskNotFound: robosuite has no such task.
            InvalidParams: An option does not suit it; names the option and what is known.
        """
        known = environments.tasks()
        if task_name not in known:
            raise TaskNotFound(
                f"robosuite has no task {task_name!r}.{nearest(task_name, known)} Known: {', '.join(known)}"
            )
        robots = _robots(task_name, options.robot)
        center = options.names == "center"
        own_controller = center and options.controller is None  # with the robot's own gains
        controller = environments.own_controller() if own_controller else _controller(options.controller)
        control_hz = control_rate(options.control_hz)
        height = positive("image_height", options.image_height, DEFAULT_IMAGE_SIZE)
        width = positive("image_width", options.image_width, DEFAULT_IMAGE_SIZE)
        horizon = positive("horizon", options.horizon, _HORIZONS.get(task_name, _DEFAULT_HORIZON))
        if center:
            horizon = options.horizon or _CENTER_HORIZON

        self.close()
        self._center = center
        self._env = environments.build(
            task_name,
            robots=robots,
            controller=None if own_controller else controller,
            control_hz=control_hz,
            reward_shaping=bool(options.reward_shaping),
        )
        self._arms = environments.arms_of(self._env)
        cameras = options.camera_names
        if cameras is None:
            cameras = ("agentview", *(f"{arm.prefix}eye_in_hand" for arm in self._arms))
        cameras = tuple(cameras)
        try:
            for camera in cameras:
                self._require_camera(camera)
        except InvalidParams:
            self.close()
            raise
        self._renderer = Renderer(max(height, _RENDER_MIN_SIZE), max(width, _RENDER_MIN_SIZE))
        self._choices = {
            "robot": ",".join(robots),
            "controller": "default" if own_controller else controller,
            "reward_shaping": str(bool(options.reward_shaping)),
        }

        command = ARM_COMMANDS[controller]
        state_layout = _state_layout(self._arms)
        action_layout = _action_layout(self._arms, command.layout)
        joints = {"joint_pos": "rad", "gripper_open": "closed0_open1"}
        self._spec = SimulatorSpec(
            camera_names=cameras,
            image_height=height if cameras else None,
            image_width=width if cameras else None,
            state_dim=sum(_length(arm.joints) + bool(arm.gripper) for arm in self._arms),
            state_layout=state_layout,
            action_dim=int(self._env.action_dim),
            action_layout=action_layout,
            ctrl_space=command.ctrl_space,
            ctrl_type=command.ctrl_type,
            control_hz=control_hz,
            action_hold=_action_hold(self._arms, int(self._env.action_dim), command.hold),
            state_names=layout_names(state_layout),
            action_names=layout_names(action_layout),
            state_units=tuple(joints[word] for word in layout_words(state_layout) or ()),
            action_units=command_units(action_layout),
            simulator="robosuite",
            task=task_name,
            instruction=_INSTRUCTIONS.get(task_name) or _words(task_name),
            max_episode_steps=horizon,
            rendering=RENDERING if cameras else None,
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode and return its first observation.

        Args:
            seed: The same one gives the same episode, bit for bit. From 0 to 2**32 - 1; ``None`` draws one.
            init_state: robosuite numbers none, so it must be ``None``.

        Raises:
            InvalidParams: ``seed`` is out of range, or an ``init_state`` is asked for.
        """
        self._loaded()
        if init_state is not None:
            raise InvalidParams(
                f"robosuite numbers no initial states, so init_state must be None, not {init_state}"
            )
        seed = chosen_seed(seed)
        environments.reset(self._env, seed)
        self._steps = 0
        return self._named(self._observation())

    def step(self, action: np.ndarray) -> StepResult:
        """Execute robosuite's own action, float (action_dim,), for one control period.

        Success ends the episode, as does a task that ends itself (Wipe, where it was told to end early).

        Raises:
            InvalidParams: The action has another shape or holds something not finite.
        """
        result = self._advance(action)
        self._add_images(result.observation)
        return replace(result, observation=self._named(result.observation))

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        """Do as :meth:`step` for each action, up to the end of the episode, but render after the last only.

        Returns:
            The reward of every action that was executed, and what the last one gave.
        """
        rewards, result = advance_chunk(self._advance, actions)
        self._add_images(result.observation)
        return rewards, replace(result, observation=self._named(result.observation))

    def _advance(self, action: np.ndarray) -> StepResult:
        """Do as :meth:`step`, but for the images."""
        spec = self._loaded()
        action = checked_action(action, spec.action_dim)
        _, reward, done, _ = self._env.step(action)
        self._steps += 1
        success = bool(self._env._check_success())
        terminated, truncated = success or bool(done), self._steps >= spec.max_episode_steps
        if self._center:
            terminated, truncated = truncated and success, truncated and not success
        return StepResult(
            observation=self._numbers(),
            reward=float(reward),
            terminated=terminated,
            truncated=truncated,
            info={"success": success},
        )

    def save_state(self) -> dict[str, Any]:
        """Return the whole state of the episode, as plain data; see ``snapshots.py``."""
        self._loaded()
        return {"steps": self._steps, **snapshots.save(self._env)}

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go to an instant of an episode of the same task and return its observation.

        Raises:
            SnapshotMismatch: The state does not fit the task's model.
        """
        self._loaded()
        snapshots.restore(self._env, state)
        self._steps = int(state["steps"])
        observation = self._observation()
        snapshots.restore_objects(self._env, state)
        return self._named(observation)

    def fingerprint(self) -> dict[str, str]:
        """Return what a saved state depends on, in addition to the spec."""
        self._loaded()
        return {**snapshots.versions(), **self._choices, "model": snapshots.model_digest(self._env)}

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright; at least 256 pixels high and wide.

        Args:
            camera_name: ``None`` means ``"frontview"``, where the whole robot is seen.

        Raises:
            InvalidParams: The model has no such camera.
        """
        spec = self._loaded()
        camera = camera_name or _BEST_VIEW
        self._require_camera(camera)
        return np.ascontiguousarray(
            upright(
                self._render(
                    camera,
                    max(spec.image_height or 0, _RENDER_MIN_SIZE),
                    max(spec.image_width or 0, _RENDER_MIN_SIZE),
                )
            )
        )

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return what a robot sees: joints, the gripper's opening, images; never an object's pose."""
        spec = self._loaded()
        if self._center:
            observation = {**self._numbers(), **observation}
        state: list[Any] = []
        state_ee: list[Any] = []
        state_joint: list[Any] = []
        for arm in self._arms:
            joints = observation[arm.joint_pos][arm.joints]
            opening: list[float] = []
            if arm.gripper is not None:
                fingers = observation[f"{arm.prefix}gripper_qpos"][arm.gripper.driven]
                opening = [gripper_opening(fingers, closed=arm.gripper.closed, opened=arm.gripper.opened)]
            state += [joints, opening]
            state_ee += [observation[f"{arm.prefix}eef_pos"], observation[f"{arm.prefix}eef_quat"], opening]
            state_joint.append(joints)
        images = [upright(observation[f"{camera}_image"]) for camera in spec.camera_names or ()]
        return MetaObs(
            state=np.concatenate(state).astype(np.float32),
            state_ee=np.concatenate(state_ee).astype(np.float32),
            state_joint=np.concatenate(state_joint).astype(np.float32),
            image=np.stack(images).transpose(0, 3, 1, 2).copy() if images else None,
            raw_lang=spec.instruction,
            timestep=self._steps,
        )

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return robosuite's own action, float32 (action_dim,).

        Raises:
            SpecMismatch: ``ctrl_space``, ``ctrl_type`` or the length is not the loaded task's.
        """
        grippers = [i for arm in self._arms for i in _indices(arm.gripper_command)]
        return own_action(action, self._loaded(), grippers)

    def close(self) -> None:
        """Free the environment and the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
        self._env = self._spec = self._renderer = None
        self._arms = []

    @property
    def spec(self) -> SimulatorSpec:
        """What the loaded task gives and takes."""
        return self._loaded()

    def _loaded(self) -> SimulatorSpec:
        if self._spec is None:
            raise NoTaskLoaded("load_task must come first")
        return self._spec

    def _require_camera(self, camera: str) -> None:
        known = [name for name in self._env.sim.model.camera_names if name is not None]
        _known("camera", camera, known)

    def _named(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the entries of an observation that were asked for."""
        if not self._center:
            return observation
        added = {f"{robot.robot_model.naming_prefix}joint_pos" for robot in self._env.robots}
        return {name: value for name, value in observation.items() if name not in added and np.ndim(value)}

    def _observation(self) -> dict[str, np.ndarray]:
        observation = self._numbers()
        self._add_images(observation)
        return observation

    def _numbers(self) -> dict[str, np.ndarray]:
        """Return all but the images. Called after every step: some numbers are made of the ones before."""
        own = self._env._get_observations(force_update=True)
        observation = {name: np.array(value) for name, value in own.items()}
        # 1.4 gives sines and cosines only, which do not say how often a joint has turned.
        for robot in self._env.robots:
            observation[f"{robot.robot_model.naming_prefix}joint_pos"] = np.array(robot._joint_positions)
        return observation

    def _add_images(self, observation: dict[str, np.ndarray]) -> None:
        spec = self._loaded()
        for camera in spec.camera_names or ():
            observation[f"{camera}_image"] = self._render(camera, spec.image_height, spec.image_width)

    def _render(self, camera: str, height: int | None, width: int | None) -> np.ndarray:
        assert self._renderer is not None
        assert height is not None
        assert width is not None
        sim = self._env.sim
        return self._renderer.render(sim.model._model, sim.data._data, camera, height=height, width=width)


def _known(kind: str, name: str, known: Iterable[str]) -> None:
    known = sorted(known)
    if name not in known:
        choices = f"{nearest(name, known)} Known: {', '.join(known)}"
        raise InvalidParams(f"robosuite has no {kind} {name!r}.{choices}")


def _robots(task: str, option: str | None) -> list[str]:
    """Return the robots of a task: ``"Panda"``, or ``"Panda,Panda"`` or ``"Baxter"`` for two arms."""
    two = environments.takes_two_arms(task)
    single, double = environments.robots(arms=1), environments.robots(arms=2)
    if option is None:
        return [DEFAULT_ROBOT] * (2 if two else 1)
    names = [name.strip() for name in option.split(",")]
    for name in names:
        _known("robot", name, single + double)
    if sum(2 if name in double else 1 for name in names) != (2 if two else 1):
        fitting = (
            f"two arms, such as 'Panda,Panda' or {double[0]!r}" if two else f"one arm: {', '.join(single)}"
        )
        raise InvalidParams(f"robot is {option!r}, but {task} is for {fitting}")
    return names


def _controller(option: str | None) -> str:
    chosen = DEFAULT_CONTROLLER if option is None else option
    _known("controller", chosen, environments.controllers())
    lacking = environments.lacks(chosen)
    if lacking is not None:
        raise InvalidParams(f"controller {chosen!r} needs {lacking!r}, which is not installed")
    return chosen


def _state_layout(arms: Sequence[environments.Arm]) -> str:
    return _labelled(
        (arm.name, f"joint_pos({_length(arm.joints)})" + (" gripper_open(1)" if arm.gripper else ""))
        for arm in arms
    )


def _action_layout(arms: Sequence[environments.Arm], layout: str) -> str:
    parts = [(arm.command, arm.name, layout.format(n=_length(arm.command))) for arm in arms]
    parts += [
        (arm.gripper_command, arm.name, f"gripper({_length(arm.gripper_command)})")
        for arm in arms
        if arm.gripper
    ]
    parts.sort(key=lambda part: part[0].start)
    return _labelled((name, words) for _, name, words in parts)


def _action_hold(arms: Sequence[environments.Arm], action_dim: int, hold: str) -> tuple[str, ...]:
    """Return what each number of an action is while there is no new one."""
    entries = ["unknown"] * action_dim
    for arm in arms:
        entries[arm.command] = [hold] * _length(arm.command)
        entries[arm.gripper_command] = ["last"] * _length(arm.gripper_command)
    return tuple(entries)


def _labelled(parts: Iterable[tuple[str, str]]) -> str:
    """Return the words, with the names of the arms before theirs where there are several."""
    groups = [
        (name, " ".join(words for _, words in group)) for name, group in groupby(parts, lambda part: part[0])
    ]
    if len(groups) == 1:
        return groups[0][1]
    return "; ".join(f"{name}: {words}" for name, words in groups)


def _indices(numbers: slice) -> range:
    return range(numbers.start, numbers.stop)


def _length(numbers: slice) -> int:
    return len(_indices(numbers))


def _words(name: str) -> str:
    return " ".join(re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)).lower()
