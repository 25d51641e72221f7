"""What a command to a robot of robosuite means, and how a MetaAction becomes one. No simulator in here.

A command is for each arm the input of its controller, then that of its gripper. The controller's part stays
in its input range, because that is what an action of robosuite means in every data set: with OSC_POSE, 1.0
puts the goal 0.05 m or 0.5 rad (axis-angle) from where the hand is, in the frame of the robot's base. The arm
lags behind: it moves about a quarter of that in a control period of 50 ms. robosuite cuts off what is beyond
-1 and 1. The gripper's is -1 open and +1 closed, in a MetaAction 1 open and 0 closed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robowire.errors import InvalidParams, SpecMismatch
from robowire.meta import MetaAction
from robowire.specs import SimulatorSpec, layout_words

__all__ = [
    "ARM_COMMANDS",
    "ArmCommand",
    "command_units",
    "control_rate",
    "numbers_of",
    "own_action",
    "to_gripper_command",
    "upright",
]

DEFAULT_CONTROL_HZ = 20.0

# robosuite integrates at 500 Hz.
_PHYSICS_HZ = 500


@dataclass(frozen=True)
class ArmCommand:
    """What a controller's input means.

    Attributes:
        layout: For ``action_layout``; ``{n}`` is the length of the input.
        ctrl_space: ``"ee"`` or ``"joint"``.
        ctrl_type: ``"absolute"`` or ``"delta"``.
        hold: What stands still, of :data:`robowire.specs.HOLDS`: no move, no speed, and no torque in addition
            to what carries the arm's own weight. A gripper is always ``"last"``.
    """

    layout: str
    ctrl_space: str
    ctrl_type: str
    hold: str = "zero"


# robosuite's names, with the meaning its shipped configurations give them.
ARM_COMMANDS = {
    "OSC_POSE": ArmCommand("dpos(3) daxisangle(3)", "ee", "delta"),
    "OSC_POSITION": ArmCommand("dpos(3)", "ee", "delta"),
    "IK_POSE": ArmCommand("dpos(3) daxisangle(3)", "ee", "delta"),
    "JOINT_POSITION": ArmCommand("djoint_pos({n})", "joint", "delta"),
    "JOINT_VELOCITY": ArmCommand("joint_vel({n})", "joint", "absolute"),
    "JOINT_TORQUE": ArmCommand("joint_torque({n})", "joint", "absolute"),
}


def command_units(layout: str) -> tuple[str, ...]:
    """Return the unit of each number of a command with this layout: what the module's first lines say."""
    units = {"gripper": "closed0_open1"}
    return tuple(units.get(word, "normalised") for word in layout_words(layout) or ())


def upright(image: np.ndarray) -> np.ndarray:
    """Return robosuite's image (..., height, width, channels) with the top row first; a view."""
    return image[..., ::-1, :, :]


def to_gripper_command(opening: np.ndarray | float) -> np.ndarray | float:
    """Return robosuite's command, -1 open and +1 closed, for 1 open and 0 closed."""
    return 1.0 - 2.0 * opening


def numbers_of(action: MetaAction, spec: SimulatorSpec) -> np.ndarray:
    """Return a copy of the numbers of an action, float32 (action_dim,).

    Raises:
        SpecMismatch: ``ctrl_space``, ``ctrl_type`` or the length is not the loaded task's.
    """
    for field in ("ctrl_space", "ctrl_type"):
        found, expected = action[field], getattr(spec, field)
        if found != expected:
            raise SpecMismatch(f"{field} of the action is {found!r}, expected {expected!r}")
    shape = None if action.action is None else np.shape(action.action)
    if shape != (spec.action_dim,):
        raise SpecMismatch(
            f"the action has shape {shape}, expected ({spec.action_dim},): {spec.action_layout}"
        )
    return np.array(action.action, np.float32)


def own_action(action: MetaAction, spec: SimulatorSpec, grippers: Sequence[int]) -> np.ndarray:
    """Return robosuite's own action, float32 (action_dim,).

    Args:
        action: Of a policy.
        spec: Of the loaded task.
        grippers: Which entries are commands to a gripper.

    Raises:
        SpecMismatch: ``ctrl_space``, ``ctrl_type`` or the length is not the loaded task's.
    """
    own = numbers_of(action, spec)
    own[list(grippers)] = to_gripper_command(own[list(grippers)])
    return own


def control_rate(control_hz: float | None) -> float:
    """Return actions a second; robosuite would silently round those that are no whole number of 2 ms steps.

    Raises:
        InvalidParams: It is such a rate.
    """
    if control_hz is None:
        return DEFAULT_CONTROL_HZ
    substeps = _PHYSICS_HZ / control_hz if control_hz > 0 and math.isfinite(control_hz) else 0.0
    if substeps < 1:
        raise InvalidParams(f"control_hz is {control_hz}, expected more than 0 and at most {_PHYSICS_HZ}")
    if abs(substeps - round(substeps)) > 1e-6:
        near = sorted({_PHYSICS_HZ / math.ceil(substeps), _PHYSICS_HZ / math.floor(substeps)})
        raise InvalidParams(
            f"control_hz is {control_hz}, expected {_PHYSICS_HZ} divided by a whole number: "
            f"{' or '.join(f'{rate:g}' for rate in near)} for example"
        )
    return float(control_hz)
