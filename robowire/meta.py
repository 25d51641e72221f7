"""MetaObs and MetaAction: the two records every policy and simulator here speaks.

Both pickle under ``benchmark.base``, the address that existing clients and servers of this wire use; the
checkout's ``benchmark/base.py`` re-exports them from here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any  # dataclass annotations stay readable on Python 3.8 tools

import numpy as np

__all__ = ["ADDED_FIELDS", "OBSERVED", "RTC_FIELDS", "MetaAction", "MetaObs"]

# What a client adds to an observation for real-time chunking.
RTC_FIELDS = ("prefix", "prefix_raw", "delay")

# What a client adds to an observation, and older peers do not know.
ADDED_FIELDS = (*RTC_FIELDS, "episode_seed")


class _Record:
    """What both records share: access by name, and a state that can set known fields only."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setstate__(self, state: Any) -> None:
        """Take the pickled fields, but for those this version does not know: newer peers are understood."""
        if not isinstance(state, dict):
            raise TypeError(f"the state of a {type(self).__name__} is a dict, not a {type(state).__name__}")
        known = self.__dataclass_fields__  # type: ignore[attr-defined]
        if not state.keys() <= known.keys():
            state = {name: value for name, value in state.items() if name in known}
        self.__dict__.update(state)


@dataclass(eq=False)
class MetaObs(_Record):
    """One observation, or a batch of them when the arrays carry a leading axis.

    Attributes:
        state: Proprioception the policy was trained on, float (state_dim,); radians for joints, metres for
            positions.
        state_ee: End-effector pose, float (n,): position in metres, orientation, gripper.
        state_joint: Joint positions, float (n,), radians.
        state_obj: Object poses, float (n,); simulators know them, robots do not, shipped policies never read
            them.
        image: uint8 (cameras, 3, height, width), RGB, in the order of the policy's ``camera_names``.
        depth: float (cameras, height, width), metres.
        pc: Point cloud, float (n, 3), metres.
        raw_lang: The instruction, in words.
        timestep: Step of the episode, from 0; int array (B, 1) in a batch. -1 means the client does not say.
        prefix: For real-time chunking: the actions that will be executed from this observation on, float
            (n, action_dim), as the policy answers them. Only the first ``delay`` count; where ``get_info``
            says ``rtc: "guided"``, those behind them too, up to the first that is not finite.
        prefix_raw: The same in the model's own space, normalised, where the client has it; it wins.
        delay: How many actions will have been executed when the reply arrives, at most n; int array (B, 1)
            in a batch. Counted in actions, never in seconds.
        episode_seed: Seed of the episode, 0 or more; int array (B,) in a batch. A policy that draws random
            numbers draws them from it and the timestep, so that its actions depend on no other client.
            ``None`` where the client does not say.

    The three of real-time chunking and the seed are no part of a pickle where they are ``None``.
    """

    state: np.ndarray | None = None
    state_ee: np.ndarray | None = None
    state_joint: np.ndarray | None = None
    state_obj: np.ndarray | None = None
    image: np.ndarray | None = None
    depth: np.ndarray | None = None
    pc: np.ndarray | None = None
    raw_lang: str = ""
    timestep: Any = -1
    prefix: np.ndarray | None = None
    prefix_raw: np.ndarray | None = None
    delay: Any = None
    episode_seed: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields to pickle: those that every peer of this wire knows, and others that are set."""
        state = self.__dict__
        return {name: value for name, value in state.items() if value is not None or name not in ADDED_FIELDS}

    def to_batch(self) -> None:
        """Give every array a leading axis of length 1, in place."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                setattr(self, field.name, value[np.newaxis])


@dataclass(eq=False)
class MetaAction(_Record):
    """One action.

    Attributes:
        ctrl_space: ``"ee"`` or ``"joint"``.
        ctrl_type: ``"absolute"``, ``"relative"`` or ``"delta"``.
        action: float (action_dim,), not normalised. The last entry, of each arm, is the gripper: 1 open,
            0 closed.
        gripper_continuous: Whether that entry is a share of the gripper's width rather than a command.
    """

    ctrl_space: str = "ee"
    ctrl_type: str = "delta"
    action: np.ndarray | None = None
    gripper_continuous: bool = False

    def __len__(self) -> int:
        """Return the number of actions held: 0, 1, or the leading axis of a batch."""
        if self.action is None:
            return 0
        return 1 if self.action.ndim == 1 else len(self.action)

    def to_batch(self) -> None:
        """Give the action a leading axis of length 1, in place."""
        if self.action is not None:
            self.action = self.action[np.newaxis]


# The fields that a simulator or a robot fills.
OBSERVED = tuple(field.name for field in fields(MetaObs) if field.name not in ADDED_FIELDS)

# A plain ``pickle.dumps`` in a client must name the address that every peer of this wire resolves.
MetaObs.__module__ = MetaAction.__module__ = "benchmark.base"
