from __future__ import annotations

import pytest

from robowire.errors import ConfigurationError
from robowire.rollout.seeds import EPISODES_PER_SEED, FIRST_DEMONSTRATION_SEED, episode_seed


def test_an_episodes_seed_depends_on_the_evaluations_seed_and_its_number() -> None:
    assert [episode_seed(seed, episode) for seed, episode in ((0, 0), (0, 49), (3, 7))] == [0, 49, 3007]


def test_no_two_evaluation_seeds_share_an_episode() -> None:
    assert episode_seed(0, EPISODES_PER_SEED - 1) < episode_seed(1, 0)


def test_no_evaluation_episode_was_a_demonstration() -> None:
    assert episode_seed(999, EPISODES_PER_SEED - 1) == FIRST_DEMONSTRATION_SEED - 1


@pytest.mark.parametrize(
    ("seed", "episode", "message"),
    [
        (-1, 0, "seed is -1, expected 0 to 999"),
        (1000, 0, "seed is 1000, expected 0 to 999"),
        (0, 1000, "episode 1000 has no seed: one seed has 1000 episodes"),
    ],
)
def test_a_seed_outside_its_block_is_refused(seed: int, episode: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        episode_seed(seed, episode)
