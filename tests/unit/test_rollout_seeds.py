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
    assert episode_seed(1000, 0) == 2 * FIRST_DEMONSTRATION_SEED


def test_lerobots_default_seed_is_a_block_of_its_own() -> None:
    seeds = (999, 1000, 1001, 4_293_966)
    blocks = [{episode_seed(seed, episode) for episode in (0, EPISODES_PER_SEED - 1)} for seed in seeds]
    assert len(set().union(*blocks)) == 8


@pytest.mark.parametrize("seed", [1000, 4_293_966, 4_293_967, 2**31, 2**32 - 1, 2**63, 10**30])
def test_any_seed_gives_32_bits_outside_the_demonstrations(seed: int) -> None:
    for episode in (0, EPISODES_PER_SEED - 1):
        assert 2 * FIRST_DEMONSTRATION_SEED <= episode_seed(seed, episode) < 2**32


@pytest.mark.parametrize(
    ("seed", "episode", "message"),
    [
        (-1, 0, "seed is -1, expected 0 or more"),
        (0, 1000, "episode 1000 has no seed: one seed has 1000 episodes"),
    ],
)
def test_a_seed_outside_its_block_is_refused(seed: int, episode: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        episode_seed(seed, episode)
