"""The action space of a remote environment is the one that its task declares."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from benchmark.environments.spaces import ActionNumbers
from robowire.integrations.action_spaces import action_space
from robowire.specs import SimulatorSpec


def of(space: spaces.Space[Any], **bounds: Any) -> spaces.Space[Any]:
    numbers = ActionNumbers(space)
    return action_space(SimulatorSpec(action_dim=numbers.dim, action_layout=numbers.layout), **bounds)


@pytest.mark.parametrize(
    "task", ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "FrozenLake-v1", "Blackjack-v1"]
)
def test_it_is_that_of_gymnasiums_own_tasks(task: str) -> None:
    with_own = gymnasium.make(task)
    assert of(with_own.action_space) == with_own.action_space
    with_own.close()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(np.float32([-1, 0]), np.float32([1, 5])),
        spaces.Box(-np.inf, np.inf, (3,)),
    ],
    ids=str,
)
def test_it_is_that_of_other_spaces(space: spaces.Space[Any]) -> None:
    assert of(space) == space


def test_parts_with_names_are_one_box() -> None:
    space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-2, 2, (2,)))
    assert of(space) == spaces.Box(np.float32([0, -2, -2]), np.float32([2, 2, 2]))


def test_bounds_that_are_given_count_and_undeclared_ones_are_one() -> None:
    assert of(spaces.Box(-2, 2, (2,)), low=0) == spaces.Box(0, 2, (2,))
    undeclared = SimulatorSpec(action_dim=2, action_layout="dpos(1) gripper(1)")
    assert action_space(undeclared) == spaces.Box(-1, 1, (2,))
