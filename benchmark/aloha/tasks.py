"""The tasks on gym-aloha's models: which model, where objects begin, and the reward.

Start ranges and rewards are gym-aloha's, so that scores compare. A reward is 0 to 4 and looks only at which
shapes touch; of each gripper it counts one finger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["SUCCESS_REWARD", "TASKS", "Task"]

# It ends an episode.
SUCCESS_REWARD = 4

# Metres: x to the right, y away from the viewer between the arms, z up. Objects fall onto the table.
_CUBE_RANGE = ((0.0, 0.4, 0.05), (0.2, 0.6, 0.05))
_PEG_RANGE = ((0.1, 0.4, 0.05), (0.2, 0.6, 0.05))
_SOCKET_RANGE = ((-0.2, 0.4, 0.05), (-0.1, 0.6, 0.05))
_UPRIGHT = (1.0, 0.0, 0.0, 0.0)

_LEFT_FINGER = "vx300s_left/10_left_gripper_finger"
_RIGHT_FINGER = "vx300s_right/10_right_gripper_finger"

# Whether any pair of the first and the second group of shapes is in contact.
Touching = Callable[[tuple[str, ...], tuple[str, ...]], bool]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        model: File of the package's MuJoCo model.
        ctrl_space: ``"joint"`` or ``"ee"``.
        instruction: The task in words.
        max_episode_steps: Steps after which an episode is truncated.
        ranges: Of each free object, in the order of the model, lowest and highest start position.
        shapes: Names of all the shapes that :attr:`reward` looks at.
        reward: The reward, 0 to 4, from what touches what.
    """

    model: str
    ctrl_space: str
    instruction: str
    max_episode_steps: int
    ranges: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    shapes: tuple[str, ...]
    reward: Callable[[Touching], int]

    def start_poses(self, seed: int) -> np.ndarray:
        """Return the poses of the free objects, (7 * objects,): metres and quaternions, w first."""
        random = np.random.RandomState(seed)
        return np.concatenate(
            [np.concatenate([random.uniform(lowest, highest), _UPRIGHT]) for lowest, highest in self.ranges]
        )


def _transfer_reward(touching: Touching) -> int:
    """Return 1 for the right finger at the cube, 2 lifted, 3 for the left finger at it, 4 off the table."""
    cube = ("red_box",)
    on_table = touching(cube, ("table",))
    if touching(cube, (_LEFT_FINGER,)):
        return 3 if on_table else SUCCESS_REWARD
    if touching(cube, (_RIGHT_FINGER,)):
        return 1 if on_table else 2
    return 0


_SOCKET = ("socket-1", "socket-2", "socket-3", "socket-4")


def _insertion_reward(touching: Touching) -> int:
    """Return 1 for fingers at both objects, 2 lifted, 3 for peg against socket, 4 for peg at the pin."""
    peg = ("red_peg",)
    if touching(peg, ("pin",)):
        return SUCCESS_REWARD
    lifted = not touching(peg, ("table",)) and not touching(_SOCKET, ("table",))
    if lifted and touching(peg, _SOCKET):
        return 3
    if touching(_SOCKET, (_LEFT_FINGER,)) and touching(peg, (_RIGHT_FINGER,)):
        return 2 if lifted else 1
    return 0


def _both_spaces(
    name: str, ranges: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
) -> dict[str, Task]:
    instruction, horizon, shapes, reward = _DESCRIPTIONS[name]
    return {
        f"{prefix}{name}": Task(
            f"bimanual_viperx_{prefix}{name}.xml", ctrl_space, instruction, horizon, ranges, shapes, reward
        )
        for prefix, ctrl_space in (("", "joint"), ("end_effector_", "ee"))
    }


_DESCRIPTIONS: dict[str, tuple[str, int, tuple[str, ...], Callable[[Touching], int]]] = {
    "transfer_cube": (
        "pick up the red cube with the right arm and hand it over to the left arm",
        400,
        ("red_box", "table", _LEFT_FINGER, _RIGHT_FINGER),
        _transfer_reward,
    ),
    "insertion": (
        "pick up the peg and the socket and insert the peg into the socket",
        400,
        ("red_peg", "pin", "table", *_SOCKET, _LEFT_FINGER, _RIGHT_FINGER),
        _insertion_reward,
    ),
}

# gym-aloha's names.
TASKS: dict[str, Task] = {
    **_both_spaces("transfer_cube", (_CUBE_RANGE,)),
    **_both_spaces("insertion", (_PEG_RANGE, _SOCKET_RANGE)),
}
