"""A policy and a simulator for :mod:`perf.chaos`, in which a lost, repeated or mixed-up request shows.

python server.py policy --policy perf.chaos_parts:make_policy
python server.py simulator --simulators perf.chaos_parts:make_simulator
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from robowire.interfaces import PolicyOptions, StepResult
from robowire.meta import MetaObs
from robowire.specs import PolicySpec
from robowire.testing.fake_simulator import FakeSimulator

__all__ = ["make_policy", "make_simulator"]

# Long enough that kills and cuts meet requests, short enough for thousands of episodes an hour.
_INFER_S, _STEP_S = 0.01, 0.003
_CHUNK_SIZE = 4


class ChaosPolicy:
    """Answer actions that any other state or image would change."""

    def __init__(self) -> None:
        self.spec = PolicySpec(
            policy="chaos",
            camera_names=("front",),
            chunk_size=_CHUNK_SIZE,
            action_dim=3,
            ctrl_space="ee",
            ctrl_type="delta",
        )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, 4, 3)."""
        time.sleep(_INFER_S)
        return np.stack([_chunk(observation) for observation in observations])


def _chunk(observation: MetaObs) -> np.ndarray:
    state = np.asarray(observation.state, dtype=np.float64)
    image = np.asarray(observation.image, dtype=np.int64)
    # The sum of products with the places: an image of which two pixels were exchanged has another.
    weighed = int((image.ravel() * np.arange(image.size)).sum() % 9973) / 9973
    steps = np.arange(_CHUNK_SIZE)[:, np.newaxis]
    actions: np.ndarray = np.cos(5 * state.sum() + weighed + steps + np.arange(3)).astype(np.float32)
    return actions


class ChaosSimulator(FakeSimulator):
    """The fake simulator, whose rewards are the whole state: one step more, less or other changes the sum."""

    def step(self, action: np.ndarray) -> StepResult:
        """Move the point; the reward is its distance from the goal, metres, to the last bit."""
        time.sleep(_STEP_S)
        result = super().step(action)
        return StepResult(
            result.observation, result.info["distance"], result.terminated, result.truncated, result.info
        )


def make_policy(options: PolicyOptions) -> ChaosPolicy:
    """Return the policy."""
    return ChaosPolicy()


def make_simulator() -> ChaosSimulator:
    """Return the simulator, without a task."""
    return ChaosSimulator()
