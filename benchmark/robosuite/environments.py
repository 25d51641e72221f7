"""What the installed robosuite, 1.4 or 1.5, offers, and how one of its environments is built.

Whatever differs between the two releases is in this file.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import robosuite
import robosuite.controllers
from robosuite.environments.base import REGISTERED_ENVS
from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
from robosuite.environments.manipulation.two_arm_env import TwoArmEnv
from robosuite.models.robots.robot_model import REGISTERED_ROBOTS
from robosuite.robots import ROBOT_CLASS_MAPPING

from benchmark.arms.commands import ARM_COMMANDS
from benchmark.robosuite import conveyor

__all__ = [
    "Arm",
    "Gripper",
    "arms_of",
    "build",
    "controllers",
    "lacks",
    "reset",
    "robots",
    "takes_two_arms",
    "tasks",
]

# robosuite 1.5 composes a robot's controller of parts; 1.4 has one controller an arm.
_COMPOSITE = hasattr(robosuite.controllers, "load_composite_controller_config")

# Flat meshes, of a screen and a head. MuJoCo 3.8 takes a mesh without a volume only if it is said to be a
# shell. Nothing else depends on that: these are only looked at, and the masses of the bodies that carry them
# are written in the robots' descriptions.
_FLAT_MESHES = {"Baxter": ("H1_1",), "Sawyer": ("head_1", "head_4")}


@dataclass(frozen=True)
class Gripper:
    """Which joints of the gripper's state its motors drive, and between what positions.

    Attributes:
        dof: Numbers in a gripper command.
        driven: Index of each driven joint in robosuite's ``gripper_qpos``.
        closed: Their positions when closed.
        opened: Their positions when open.
    """

    dof: int
    driven: np.ndarray
    closed: np.ndarray
    opened: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One arm: where its numbers are among those of the environment.

    Attributes:
        name: ``"robot0"``; of a robot with two arms ``"right"`` and ``"left"``.
        prefix: Of its observations, such as ``"robot0_"`` or ``"robot0_right_"``.
        joint_pos: The observation that holds its joints, and maybe those of another arm.
        joints: Which of these are its own.
        command: Which numbers of an action its controller takes.
        gripper_command: Which its gripper takes; empty where it has nothing to open.
        gripper: ``None`` where it has nothing to open, like the sponge of Wipe.
    """

    name: str
    prefix: str
    joint_pos: str
    joints: slice
    command: slice
    gripper_command: slice
    gripper: Gripper | None


def tasks() -> list[str]:
    """Return the names of robosuite's registered environments for arms, and of those that are added here."""
    return sorted(
        name
        for name, cls in REGISTERED_ENVS.items()
        if issubclass(cls, ManipulationEnv) and (_is_robosuites(cls) or cls is conveyor.LiftConveyor)
    )


def takes_two_arms(task: str) -> bool:
    """Return whether an environment is for two arms."""
    return issubclass(REGISTERED_ENVS[task], TwoArmEnv)


def robots(arms: int) -> list[str]:
    """Return the names of robosuite's robots with so many arms, 1 or 2, on a fixed base."""
    # 1.4 has a class of robots for each; in 1.5 the model says how many arms it has.
    cls_of_14 = {1: "SingleArm", 2: "Bimanual"}[arms]
    return sorted(
        name
        for name, cls in ROBOT_CLASS_MAPPING.items()
        if _is_robosuites(REGISTERED_ROBOTS[name])
        and (
            cls.__name__ == cls_of_14
            or (cls.__name__ == "FixedBaseRobot" and len(REGISTERED_ROBOTS[name].arms) == arms)
        )
    )


def controllers() -> list[str]:
    """Return the names of the arm controllers that ship with a configuration."""
    known = robosuite.ALL_PART_CONTROLLERS if _COMPOSITE else robosuite.ALL_CONTROLLERS
    return sorted(set(known) & set(ARM_COMMANDS))


def lacks(controller: str) -> str | None:
    """Return the package that the installed robosuite needs for a controller and that is not there."""
    needed = controller == "IK_POSE" and not _COMPOSITE  # 1.5 does it by itself
    return "pybullet" if needed and importlib.util.find_spec("pybullet") is None else None


def build(
    task: str, *, robots: Sequence[str], controller: str | None, control_hz: float, reward_shaping: bool
) -> Any:
    """Return a new environment that neither renders nor ends an episode by itself.

    A controller of ``None`` is each robot's own: robosuite's default, whose gains are the robot's.
    """
    cls = REGISTERED_ENVS[task]
    flat = [f"robot{i}_{mesh}" for i, name in enumerate(robots) for mesh in _FLAT_MESHES.get(name, ())]
    return (_with_shells(cls, flat) if flat else cls)(
        robots=list(robots),
        controller_configs=(
            None if controller is None else [_controller_config(robot, controller) for robot in robots]
        ),
        control_freq=control_hz,
        reward_shaping=reward_shaping,
        ignore_done=True,
        # A new model at every reset: without it a seed would not decide what is drawn when the model is made.
        hard_reset=True,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
    )


def own_controller() -> str:
    """Return the kind of the controller that a robot has by default."""
    return "OSC_POSE" if _COMPOSITE else "JOINT_VELOCITY"


def reset(env: Any, seed: int) -> None:
    """Begin an episode that depends on ``seed`` alone: not on what ran before, nor on the process."""
    np.random.seed(seed)  # all randomness of 1.4 but one choice, see below
    if hasattr(env, "rng"):
        # 1.5's. In place: samplers that were made with this generator keep it.
        env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    if getattr(env, "single_object_mode", 0) != 1:
        env.reset()
        return
    # One object of several. robosuite draws it from a set of strings, whose order is another one in each
    # process; so it is drawn here, and robosuite told to take that one (mode 2).
    objects, chosen = (env.nuts, "nut_id") if hasattr(env, "nuts") else (env.objects, "object_id")
    setattr(env, chosen, int(np.random.default_rng(seed).integers(len(objects))))
    env.single_object_mode = 2
    try:
        env.reset()
    finally:
        env.single_object_mode = 1


def arms_of(env: Any) -> list[Arm]:
    """Return the arms of an environment, in robosuite's order."""
    found: list[Arm] = []
    start = 0  # of the robot's part of an action
    for robot in env.robots:
        names = list(getattr(robot, "arms", [""]))  # 1.4 names those of a robot with two arms only
        prefix = str(robot.robot_model.naming_prefix)
        count = len(robot._joint_positions) // len(names)
        for i, (name, (command, gripper_command)) in enumerate(
            zip(names, _commands(robot, names), strict=True)
        ):
            alone = len(names) == 1
            found.append(
                Arm(
                    name=prefix.rstrip("_") if alone else name,
                    prefix=prefix if alone else f"{prefix}{name}_",
                    joint_pos=f"{prefix}joint_pos",
                    joints=slice(i * count, (i + 1) * count),
                    command=slice(start + command[0], start + command[1]),
                    gripper_command=slice(start + gripper_command[0], start + gripper_command[1]),
                    gripper=_gripper(env, _part(robot.gripper, name)),
                )
            )
        start += int(robot.action_dim)
    return found


def _part(value: Any, arm: str) -> Any:
    """Return what belongs to one arm: 1.5, and 1.4 for a robot with two arms, have a dict of both."""
    return value[arm] if isinstance(value, dict) else value


def _commands(robot: Any, arms: Sequence[str]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return for each arm where its controller's and its gripper's numbers begin and end in an action."""
    if _COMPOSITE:
        parts = robot.composite_controller._action_split_indexes
        return [(parts[arm], parts.get(robot.get_gripper_name(arm), (0, 0))) for arm in arms]
    found, end = [], 0
    for arm in arms:
        begin, middle = end, end + int(_part(robot.controller, arm).control_dim)
        end = middle + int(_part(robot.gripper, arm).dof)
        found.append(((begin, middle), (middle, end)))
    return found


def _gripper(env: Any, gripper: Any) -> Gripper | None:
    if not gripper.dof:
        return None

    # Ask a copy which way an opening command goes; the answer is kept in the gripper until the next command.
    probe = copy.copy(gripper)
    probe.current_action = np.zeros_like(np.asarray(gripper.current_action, float))
    opening = np.sign(probe.format_action(-np.ones(gripper.dof)))

    model = env.sim.model._model
    joints = [model.joint(name).id for name in gripper.joints]
    motors = [model.actuator(name).id for name in gripper.actuators]
    low, high = model.actuator_ctrlrange[motors].T
    return Gripper(
        dof=gripper.dof,
        driven=np.array([joints.index(joint) for joint in model.actuator_trnid[motors, 0]]),
        closed=np.where(opening > 0, low, high),
        opened=np.where(opening > 0, high, low),
    )


def _with_shells(cls: type, meshes: Sequence[str]) -> type:
    """Return the environment with some meshes declared to be shells."""

    class WithShells(cls):  # type: ignore[misc]
        def _load_model(self) -> None:
            super()._load_model()
            for mesh in self.model.asset.iter("mesh"):
                if mesh.get("name") in meshes:
                    mesh.set("inertia", "shell")

    return WithShells


def _is_robosuites(cls: type) -> bool:
    """Return whether it comes with robosuite: packages built upon it, LIBERO's, register theirs too."""
    return cls.__module__.partition(".")[0] == "robosuite"


def _controller_config(robot: str, controller: str) -> dict[str, Any]:
    config: dict[str, Any]
    if not _COMPOSITE:
        config = robosuite.controllers.load_controller_config(default_controller=controller)
        return config
    arm = robosuite.controllers.load_part_controller_config(default_controller=controller)
    config = robosuite.controllers.load_composite_controller_config(controller="BASIC", robot=robot)
    arms = REGISTERED_ROBOTS[robot].arms
    config["body_parts"] = {name: {**arm, "gripper": {"type": "GRIP"}} for name in arms}
    return config
