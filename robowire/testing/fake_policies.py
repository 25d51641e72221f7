"""Policies for tests: constant, echoing, slow and failing ones. numpy only; none waits for the clock."""

from __future__ import annotations

import threading
from typing import Sequence

import numpy as np

from robowire.interfaces import Policy
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

__all__ = ["ConstantPolicy", "EchoPolicy", "FailingPolicy", "SlowPolicy"]


class ConstantPolicy:
    """Answer the same action whatever it sees, and accept anything.

    Args:
        spec: What it declares; ``action_dim`` must be set.
        value: Every entry of every action.
    """

    def __init__(self, spec: PolicySpec | None = None, *, value: float = 0.5) -> None:
        self.spec = spec or PolicySpec(policy="constant", chunk_size=4, action_dim=7)
        self._value = value

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim)."""
        shape = (len(observations), self.spec.chunk_size, self.spec.action_dim or 1)
        return np.full(shape, self._value, dtype=np.float32)


class EchoPolicy:
    """Answer with the state, so that a test sees whose observation an action came from.

    Step ``i`` of the chunk is the state plus ``i``.
    """

    def __init__(self, *, state_dim: int = 3, chunk_size: int = 4) -> None:
        self.spec = PolicySpec(
            policy="echo",
            camera_names=(),
            state_dim=state_dim,
            action_dim=state_dim,
            chunk_size=chunk_size,
            ctrl_space="joint",
            ctrl_type="absolute",
            action_hold=("last",) * state_dim,
        )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, state_dim)."""
        states = np.stack([np.asarray(observation.state, dtype=np.float32) for observation in observations])
        steps = np.arange(self.spec.chunk_size, dtype=np.float32)
        chunks: np.ndarray = states[:, np.newaxis, :] + steps[:, np.newaxis]
        return chunks


class SlowPolicy:
    """Another policy that does not answer before it is released.

    Attributes:
        started: Set when an inference begins.
        release: Set it, and this inference and all later ones go on.
        batch_sizes: Of every inference so far.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or EchoPolicy()
        self.spec = self._policy.spec
        self.started = threading.Event()
        self.release = threading.Event()
        self.batch_sizes: list[int] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return what the other policy does, after ``release``."""
        self.batch_sizes.append(len(observations))
        self.started.set()
        self.release.wait()
        return self._policy.infer(observations)


class FailingPolicy:
    """Another policy that fails where the instruction says how: ``"raise"``, ``"nan"`` or ``"shape"``."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or EchoPolicy()
        self.spec = self._policy.spec

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return what the other policy does, or fail."""
        instructions = [observation.raw_lang for observation in observations]
        if "raise" in instructions:
            raise RuntimeError("the instruction says raise")
        actions = self._policy.infer(observations)
        actions[[instruction == "nan" for instruction in instructions]] = np.nan
        return actions[:, :-1] if "shape" in instructions else actions
