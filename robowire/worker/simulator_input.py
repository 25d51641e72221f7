"""Input checks that all simulator families share, with the same messages; for families of your own too."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

from robowire.errors import InvalidParams
from robowire.interfaces import StepResult
from robowire.wire.methods import read_numbers

__all__ = ["advance_chunk", "checked_action", "chosen_seed", "positive"]


def checked_action(action: np.ndarray, action_dim: int | None) -> np.ndarray:
    """Return the simulator's own action as float64 (action_dim,).

    Raises:
        InvalidParams: It has another shape, or holds something else than finite numbers.
    """
    numbers = read_numbers(action)
    if numbers is None or numbers.shape != (action_dim,):
        array = isinstance(action, np.ndarray)
        found = f"{action.dtype} {action.shape}" if array else f"a {type(action).__name__}"
        raise InvalidParams(f"the action is {found}, expected numbers of shape ({action_dim},)")
    action = numbers.astype(np.float64)
    if not np.isfinite(action).all():
        raise InvalidParams(f"the action is not finite: {action.tolist()}")
    return action


def chosen_seed(seed: int | None) -> int:
    """Return the seed of an episode; ``None`` draws one.

    Raises:
        InvalidParams: It is not from 0 to 2**32 - 1.
    """
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    if not 0 <= seed < 2**32:
        raise InvalidParams(f"seed is {seed}, expected 0 to {2**32 - 1}, which numpy's generator takes")
    return seed


def positive(name: str, value: int | None, default: int) -> int:
    """Return an option that counts something, or its default.

    Raises:
        InvalidParams: It is less than 1.
    """
    if value is None:
        return default
    if value < 1:
        raise InvalidParams(f"{name} is {value}, expected at least 1")
    return value


def advance_chunk(
    advance: Callable[[np.ndarray], StepResult], actions: Sequence[np.ndarray]
) -> tuple[list[float], StepResult]:
    """Execute each action, at least one, up to the end of the episode.

    Returns:
        The reward of every action that was executed, and what the last one gave.
    """
    rewards = []
    for action in actions:
        result = advance(action)
        rewards.append(result.reward)
        if result.terminated or result.truncated:
            break
    return rewards, result
