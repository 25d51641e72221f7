from __future__ import annotations

import numpy as np
import pytest

from examples.grpo_lift import advantages, group_return


def test_advantages_are_returns_normalised_within_their_group() -> None:
    assert advantages([1.0, 3.0]).tolist() == [-1.0, 1.0]
    values = advantages([0.1, 0.5, 0.3, 0.9])
    assert (values.mean(), values.std()) == (pytest.approx(0), pytest.approx(1))


def test_a_group_of_equals_teaches_nothing() -> None:
    assert advantages([0.5, 0.5, 0.5]).tolist() == [0, 0, 0]


def test_a_return_is_the_mean_reward_of_all_steps() -> None:
    assert group_return([0.0, 0.5, 1.0, 0.5], 4) == 0.5


def test_an_early_success_is_worth_more_than_a_late_one() -> None:
    assert group_return(np.array([0.0, 1.0]), 4) == 0.75
    assert group_return([0.0, 0.0, 0.0, 1.0], 4) == 0.25
