"""A pure policy whose server is killed in the middle of an episode, and the same when it is started again.

For ``server.py policy --policy mortal_policy:make_policy``, with this folder in ``PYTHONPATH``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import numpy as np

from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

# The inference, from 0, at which the process gets the signal of the out-of-memory killer; none if not set.
DIES_AT = "MORTAL_POLICY_DIES_AT"


class MortalPolicy:
    """Moves along a direction that turns with the state."""

    def __init__(self, dies_at: int | None) -> None:
        self.spec = PolicySpec(
            policy="mortal", camera_names=(), chunk_size=4, action_dim=3, ctrl_space="ee", ctrl_type="delta"
        )
        self._left = dies_at

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        if self._left is not None:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        return np.stack([self._chunk(np.asarray(observation.state)) for observation in observations])

    def _chunk(self, state: np.ndarray) -> np.ndarray:
        steps = np.arange(4)[:, np.newaxis]
        return np.cos(5 * state.sum() + steps + np.arange(3)).astype(np.float32)


def make_policy(options: PolicyOptions) -> MortalPolicy:
    dies_at = os.environ.get(DIES_AT)
    return MortalPolicy(None if dies_at is None else int(dies_at))
