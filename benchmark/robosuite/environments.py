"""What the installed robosuite, 1.4 or 1.5, offers, and how one of its environments is built.

Whatever differs between the two releases is in this file.
"""

from __future__ import annotations

import copy
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

__all__ = ["Gripper", "build", "controllers", "gripper_of", "reset", "robots", "tasks"]

# robosuite 1.5 composes a robot's controller of parts; 1.4 has one controller an arm.
_COMPOSITE = hasattr(robosuite.controllers, "load_composite_controller_config")


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


def tasks() -> list[str]:
    """Return the names of robosuite's registered environments for one arm."""
    return sorted(
        name
        for name, cls in REGISTERED_ENVS.items()
        if issubclass(cls, ManipulationEnv) and not issubclass(cls, TwoArmEnv) and _is_robosuites(cls)
    )


def robots() -> list[str]:
    """Return the names of robosuite's robots with one arm on a fixed base."""
    return sorted(
        name
        for name, cls in ROBOT_CLASS_MAPPING.items()
        if _is_robosuites(REGISTERED_ROBOTS[name])
        # 1.4 has a class of robots for this; in 1.5 the model says how many arms it has.
        and (
            cls.__name__ == "SingleArm"
            or (cls.__name__ == "FixedBaseRobot" and len(REGISTERED_ROBOTS[name].arms) == 1)
        )
    )


def controllers() -> list[str]:
    """Return the names of the arm controllers that ship with a configuration."""
    known = robosuite.ALL_PART_CONTROLLERS if _COMPOSITE else robosuite.ALL_CONTROLLERS
    return sorted(set(known) & set(ARM_COMMANDS))


def build(task: str, *, robot: str, controller: str, control_hz: float, reward_shaping: bool) -> Any:
    """Return a new environment that neither renders nor ends an episode by itself."""
    return robosuite.make(
        task,
        robots=robot,
        controller_configs=_controller_config(robot, controller),
        control_freq=control_hz,
        reward_shaping=reward_shaping,
        ignore_done=True,
        # A new model at every reset: without it a seed would not decide what is drawn when the model is made.
        hard_reset=True,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
    )


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


def gripper_of(env: Any) -> Gripper | None:
    """Return the gripper of the one robot; ``None`` where it has nothing to open, like the sponge of Wipe."""
    gripper = env.robots[0].gripper
    if isinstance(gripper, dict):
        (gripper,) = gripper.values()
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


def _is_robosuites(cls: type) -> bool:
    """Return whether it comes with robosuite: packages built upon it, LIBERO's, register theirs beside it."""
    return cls.__module__.partition(".")[0] == "robosuite"


def _controller_config(robot: str, controller: str) -> dict[str, Any]:
    config: dict[str, Any]
    if not _COMPOSITE:
        config = robosuite.controllers.load_controller_config(default_controller=controller)
        return config
    arm = robosuite.controllers.load_part_controller_config(default_controller=controller)
    config = robosuite.controllers.load_composite_controller_config(controller="BASIC", robot=robot)
    config["body_parts"] = {"right": {**arm, "gripper": {"type": "GRIP"}}}
    return config
