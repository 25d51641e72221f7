"""Sequential tests, checked by simulation: a look after every episode, and the error stays below alpha."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from robowire.errors import ConfigurationError
from robowire.rollout.sequential import Claim, confidence_sequence, decide_pairs, log_evidence

RUNS, EPISODES, ALPHA = 2000, 400, 0.05


def simulate(rate: float, seed: int) -> list[list[bool]]:
    draws = np.random.default_rng(seed).random((RUNS, EPISODES)) < rate
    return [row.tolist() for row in draws]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.95])
def test_a_claim_at_its_edge_is_decided_in_less_than_alpha_of_all_runs(rate: float) -> None:
    claim = Claim(above=True, rate=rate)
    decided = sum(claim.decide(outcomes, alpha=ALPHA) is not None for outcomes in simulate(rate, 1))
    assert 0 < decided / RUNS < ALPHA


def test_looking_after_every_episode_with_the_fixed_test_would_be_wrong_far_more_often() -> None:
    """Checks the simulation: it finds the error that the sequential test avoids."""
    counts = np.cumsum(np.array(simulate(0.5, 1)), axis=1)
    trials = np.arange(1, EPISODES + 1)
    z = np.abs(counts - trials / 2) / np.sqrt(trials / 4)
    assert np.mean((z[:, 9:] > 1.96).any(axis=1)) > 0.25


def test_equal_policies_are_told_apart_in_less_than_alpha_of_all_runs() -> None:
    pairs = zip(simulate(0.7, 2), simulate(0.7, 3))
    decided = [decide_pairs(zip(a, b), alpha=ALPHA) for a, b in pairs]
    assert 0 < np.mean([decision.pairs is not None for decision in decided]) < ALPHA
    assert np.mean([decision.p_value < ALPHA for decision in decided]) < ALPHA


def test_a_true_difference_is_found_early() -> None:
    decided = [decide_pairs(zip(a, b)) for a, b in zip(simulate(0.5, 4), simulate(0.8, 5))]
    found = [decision.pairs for decision in decided if decision.pairs is not None]
    assert len(found) > 0.99 * RUNS
    assert np.mean(found) < 100 < EPISODES
    assert np.mean([decision.second_is_better for decision in decided]) > 0.99


def test_a_rate_far_from_the_claim_is_decided_in_a_fraction_of_the_episodes() -> None:
    decided = [Claim.parse("rate > 0.8").decide(outcomes) for outcomes in simulate(0.5, 6)]
    assert all(decision is not None and not decision.holds for decision in decided)
    assert np.mean([decision.episodes for decision in decided if decision is not None]) < 25


def test_the_sequence_covers_the_rate_at_all_times_together() -> None:
    missed = 0
    for outcomes in simulate(0.8, 7)[:300]:
        counts = np.cumsum(outcomes)
        missed += any(log_evidence(int(s), n, 0.8) >= -math.log(ALPHA) for n, s in enumerate(counts, 1))
    assert missed / 300 < ALPHA


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 50), (50, 50), (40, 50), (3, 7), (800, 1000)])
def test_the_limits_are_where_the_evidence_reaches_the_bound(successes: int, trials: int) -> None:
    low, high = confidence_sequence(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    for limit in (low, high):
        if 0 < limit < 1:
            assert math.isclose(log_evidence(successes, trials, limit), math.log(20), rel_tol=1e-9)
    # Wider than the interval for one look, as it must be.
    fixed = beta.interval(0.95, successes + 0.5, trials - successes + 0.5)
    assert high - low > (fixed[1] - fixed[0]) * 0.99


def test_no_episodes_say_nothing() -> None:
    assert confidence_sequence(0, 0) == (0, 1)
    assert decide_pairs([]).p_value == 1


@pytest.mark.parametrize(
    "text", ["rate", "rate > 1", "rate < 0", "rate >= 0.5", "success > 0.5", "rate > -1"]
)
def test_another_claim_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Claim.parse(text)
    assert str(raised.value) == (
        f"stop_when is {text!r}, expected 'rate > 0.8' or 'rate < 0.5', a rate between 0 and 1"
    )
