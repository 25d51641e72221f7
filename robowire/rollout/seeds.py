"""Which seed an episode gets: a pure function of the evaluation's seed and the episode's number."""

from __future__ import annotations

from robowire.errors import ConfigurationError

__all__ = ["EPISODES_PER_SEED", "FIRST_DEMONSTRATION_SEED", "episode_seed"]

# Demonstrations are recorded with seeds from here on, so that no evaluation repeats one.
FIRST_DEMONSTRATION_SEED = 1_000_000

# Each evaluation seed owns a block: with ``seed + episode``, seeds 0 and 1 would share all episodes but one.
EPISODES_PER_SEED = 1000


def episode_seed(seed: int, episode: int) -> int:
    """Return ``seed * 1000 + episode``, the simulator's seed for one episode.

    It depends on nothing else, so an episode is the same one whichever environment runs it, and when.

    Args:
        seed: Of the evaluation, 0 to 999.
        episode: Its number, 0 to 999.

    Raises:
        ConfigurationError: One lies outside, where blocks would overlap each other or the demonstrations.
    """
    highest_seed = FIRST_DEMONSTRATION_SEED // EPISODES_PER_SEED - 1
    if not 0 <= seed <= highest_seed:
        raise ConfigurationError(f"seed is {seed}, expected 0 to {highest_seed}")
    if not 0 <= episode < EPISODES_PER_SEED:
        raise ConfigurationError(f"episode {episode} has no seed: one seed has {EPISODES_PER_SEED} episodes")
    return seed * EPISODES_PER_SEED + episode
