"""Which seed an episode gets: a pure function of the evaluation's seed and the episode's number."""

from __future__ import annotations

from robowire.errors import ConfigurationError

__all__ = ["EPISODES_PER_SEED", "FIRST_DEMONSTRATION_SEED", "episode_seed"]

# Demonstrations are recorded with seeds from here on, so that no evaluation repeats one.
FIRST_DEMONSTRATION_SEED = 1_000_000

# Each evaluation seed owns a block: with ``seed + episode``, seeds 0 and 1 would share all episodes but one.
EPISODES_PER_SEED = 1000

# Evaluation seeds below the demonstrations, and as many blocks are left to the demonstrations after them.
_FIRST_BLOCKS = FIRST_DEMONSTRATION_SEED // EPISODES_PER_SEED

# NumPy's older generators, which simulators seed, take 32 bits.
_BLOCKS = 2**32 // EPISODES_PER_SEED


def episode_seed(seed: int, episode: int) -> int:
    """Return the simulator's seed for one episode: ``seed * 1000 + episode`` for seeds 0 to 999.

    It depends on nothing else, so an episode is the same one whichever environment runs it, and when. Larger
    seeds skip the demonstrations: ``(seed + 1000) * 1000 + episode``. From 4293967 on they begin again at the
    block of 1000, so that the result has 32 bits.

    Args:
        seed: Evaluation seed, 0 or more.
        episode: Number of the episode, 0 to 999.

    Raises:
        ConfigurationError: The seed is negative, or the episode outside of its block.
    """
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}, expected 0 or more")
    if not 0 <= episode < EPISODES_PER_SEED:
        raise ConfigurationError(f"episode {episode} has no seed: one seed has {EPISODES_PER_SEED} episodes")
    block = seed
    if seed >= _FIRST_BLOCKS:
        block = 2 * _FIRST_BLOCKS + (seed - _FIRST_BLOCKS) % (_BLOCKS - 2 * _FIRST_BLOCKS)
    return block * EPISODES_PER_SEED + episode
