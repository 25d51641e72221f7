"""A policy that keeps what it was given, for tests of how observations reach it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robowire.meta import MetaObs
from robowire.specs import PolicySpec

__all__ = ["SPEC", "SeeingPolicy"]

SPEC = PolicySpec(
    policy="seeing",
    camera_names=("front", "wrist"),
    image_height=48,
    image_width=64,
    state_dim=7,
    action_dim=7,
    chunk_size=5,
    ctrl_space="joint",
    ctrl_type="absolute",
)


class SeeingPolicy:
    """Keeps what it was given, and answers numbers that depend on it."""

    def __init__(self, spec: PolicySpec = SPEC) -> None:
        self.spec = spec
        self.seen: list[MetaObs] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.seen.extend(observations)
        rows = [np.resize(np.float32(obs.state), (5, 7)) + np.float32(obs.timestep) for obs in observations]
        return np.stack(rows).astype(np.float32)
