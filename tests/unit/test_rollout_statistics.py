from __future__ import annotations

import pytest

from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.statistics import percentile, summarise, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson"), scipy 1.17.1
        (45, 50, 0.7863976856252, 0.9565242350681),
        (50, 50, 0.9286524008666, 1.0),
        (0, 10, 0.0, 0.2775327998629),
        (1, 2, 0.0945312057342, 0.9054687942658),
    ],
)
def test_the_wilson_interval_has_its_known_values(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-12)


def test_no_trial_leaves_every_rate_possible() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_more_confidence_widens_the_interval() -> None:
    assert wilson_interval(45, 50, confidence=0.99)[0] < wilson_interval(45, 50)[0]


def test_more_successes_than_trials_are_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^3 successes in 2 trials$"):
        wilson_interval(3, 2)


def episode(success: bool | None, *, steps: int = 10, total_reward: float = 1.0) -> EpisodeResult:
    error = "ConnectionLost: gone" if success is None else None
    return EpisodeResult(0, 0, success, steps, total_reward, error, infer_ms=(2.0, 4.0), seconds=1.0)


def test_an_error_is_no_failure() -> None:
    summary = summarise([episode(True), episode(None), episode(False), episode(True)])
    counts = {key: summary[key] for key in ("episodes", "successes", "errors", "success_rate")}
    assert counts == {"episodes": 3, "successes": 2, "errors": 1, "success_rate": 2 / 3}


def test_an_episode_cut_short_by_an_error_does_not_enter_the_means() -> None:
    summary = summarise([episode(True, steps=20, total_reward=3.0), episode(None, steps=2, total_reward=0.5)])
    assert (summary["mean_steps"], summary["mean_return"]) == (20.0, 3.0)


def test_without_a_finished_episode_there_is_no_rate() -> None:
    summary = summarise([episode(None)])
    assert [summary[key] for key in ("success_rate", "mean_return", "mean_steps")] == [None, None, None]
    assert (summary["wilson_low"], summary["wilson_high"]) == (0.0, 1.0)


def test_percentiles_are_interpolated() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([], 50) is None
