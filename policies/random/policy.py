"""A policy without a model: uniform actions, a pure function of seeds and the observation's timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from robowire.errors import ConfigurationError
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import nearest
from robowire.specs import PolicySpec

__all__ = ["RandomOptions", "RandomPolicy", "make_policy"]


@dataclass(frozen=True)
class RandomOptions:
    """What ``PolicyOptions.extra`` may hold.

    Attributes:
        seed: Of every action.
        chunk_size: Actions at once.
        action_dim: Length of one action; 7 fits an arm moved by its end effector, with a gripper.
    """

    seed: int = 0
    chunk_size: int = 64
    action_dim: int = 7

    def __post_init__(self) -> None:
        for name, lowest in (("seed", 0), ("chunk_size", 1), ("action_dim", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise ConfigurationError(f"{name} is {value!r}, expected an integer of at least {lowest}")


class RandomPolicy:
    """Takes any observation. Actions lie in [-1, 1), small end-effector moves on the simulators we know."""

    any_thread = True
    strided_images = True

    def __init__(self, options: RandomOptions, camera_names: tuple[str, ...] | None = None) -> None:
        self.spec = PolicySpec(
            policy="random",
            camera_names=camera_names,
            chunk_size=options.chunk_size,
            action_dim=options.action_dim,
            ctrl_space="ee",
            ctrl_type="delta",
        )
        self._options = options

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim); one timestep of one episode seed gives one chunk."""
        return np.stack([self._chunk(seen.timestep, seen.episode_seed) for seen in observations])

    def _chunk(self, timestep: Any, episode_seed: Any) -> np.ndarray:
        # A client that does not count says -1, and a seed may not be negative. Some send an array of one.
        words = [self._options.seed, np.asarray(timestep).item() % 2**64]
        if episode_seed is not None:
            words.append(np.asarray(episode_seed).item() % 2**64)
        rng = np.random.default_rng(words)
        shape = (self._options.chunk_size, self._options.action_dim)
        return rng.uniform(-1, 1, shape).astype(np.float32)


def make_policy(options: PolicyOptions) -> RandomPolicy:
    """Return the policy; ``options.extra`` may hold fields of :class:`RandomOptions`. No device is used.

    Raises:
        ConfigurationError: An option is unknown or unusable, or a checkpoint is named.
    """
    if options.model_name_or_path is not None or options.dataset_id is not None:
        raise ConfigurationError(
            "policy 'random' has no checkpoint: leave out --model_name_or_path and --dataset_id"
        )
    known = [field.name for field in fields(RandomOptions)]
    for name in options.extra:
        if name not in known:
            raise ConfigurationError(
                f"policy 'random' has no option {name!r}.{nearest(name, known)} Known: {', '.join(known)}"
            )
    return RandomPolicy(RandomOptions(**options.extra), options.camera_names)
