"""Statistics of two runs of the same episodes. Arithmetic only: counts in, figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import binom, binomtest, ttest_1samp

from robowire.rollout.statistics import wilson_interval

__all__ = [
    "Pairs",
    "difference_interval",
    "mcnemar_p",
    "mean_interval",
    "pairs_needed",
]


@dataclass(frozen=True)
class Pairs:
    """Counts of the four outcomes of episodes that both runs have.

    Attributes:
        both: Both runs succeeded.
        only_first: The first succeeded and the second did not.
        only_second: The second succeeded and the first did not.
        neither: Both failed.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count < 0:
                raise ValueError(f"{name} is {count}, expected 0 or more")

    @property
    def total(self) -> int:
        """Episodes that both ran."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def discordant(self) -> int:
        """Episodes with different outcomes: all that a paired comparison learns from."""
        return self.only_first + self.only_second

    @property
    def first(self) -> int:
        """Successes of the first run."""
        return self.both + self.only_first

    @property
    def second(self) -> int:
        """Successes of the second run."""
        return self.both + self.only_second

    @property
    def difference(self) -> float:
        """The second's success rate minus the first's; 0 of no episodes."""
        return (self.only_second - self.only_first) / self.total if self.total else 0.0


def difference_interval(pairs: Pairs, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of ``pairs.difference``, (low, high), within [-1, 1]; all of that of no episodes.

    Method 10 of R. G. Newcombe 1998, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17, 2635-2650: Wilson's intervals of both rates,
    combined as independent ones would be, less what they have in common. Of his eleven it is the one that
    stays within the possible, does not shrink to a point where nothing was discordant, and needs no search.
    """
    if not pairs.total:
        return -1.0, 1.0
    total, first, second = pairs.total, pairs.first, pairs.second
    rate1, rate2 = first / total, second / total
    low1, high1 = wilson_interval(first, total, confidence=confidence)
    low2, high2 = wilson_interval(second, total, confidence=confidence)
    common = _correlation(pairs)
    below = (rate2 - low2) ** 2 - 2 * common * (rate2 - low2) * (high1 - rate1) + (high1 - rate1) ** 2
    above = (rate1 - low1) ** 2 - 2 * common * (rate1 - low1) * (high2 - rate2) + (high2 - rate2) ** 2
    return pairs.difference - math.sqrt(below), pairs.difference + math.sqrt(above)


def _correlation(pairs: Pairs) -> float:
    """Return phi of the table, with the correction for continuity of method 10."""
    first, second, total = pairs.first, pairs.second, pairs.total
    margins = first * (total - first) * second * (total - second)
    if not margins:
        return 0.0
    covariance = pairs.both * pairs.neither - pairs.only_first * pairs.only_second
    corrected = covariance if covariance < 0 else max(covariance - total / 2, 0.0)
    return corrected / math.sqrt(margins)


def mcnemar_p(pairs: Pairs) -> float:
    """Return the exact two-sided p-value of McNemar's test: how odd, had each discordant pair been a coin.

    Q. McNemar 1947, Psychometrika 12, 153-157, with the binomial distribution instead of the chi-squared one,
    which needs more discordant pairs than evaluations have. 1 where there are none.
    """
    if not pairs.discordant:
        return 1.0
    return float(binomtest(pairs.only_first, pairs.discordant, 0.5).pvalue)


def pairs_needed(pairs: Pairs, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Return how many episodes a new comparison would need, if these rates were the true ones.

    R. J. Connor 1987, Sample size for testing differences in proportions for the paired-sample design,
    Biometrics 43, 207-211, for the approximate test. From there upwards, the first number with which the
    exact test has the power: with fewer than six discordant pairs it can never be below 0.05.

    Args:
        pairs: What was observed.
        power: How likely the difference is to be found.
        alpha: Two-sided.

    Returns:
        ``None`` where the rates are equal: no number of episodes can distinguish them.
    """
    if not pairs.difference:
        return None
    discordant, difference = pairs.discordant / pairs.total, pairs.difference
    normal = NormalDist()
    # The variance is exactly 0 where every pair is discordant in one direction; rounding may say -1e-17.
    spread = math.sqrt(max(discordant - difference**2, 0.0))
    root = normal.inv_cdf(1 - alpha / 2) * math.sqrt(discordant) + normal.inv_cdf(power) * spread
    approximate = math.ceil((root / difference) ** 2)
    return _exact_pairs_needed(approximate, discordant, pairs, power=power, alpha=alpha)


def _exact_pairs_needed(start: int, discordant: float, pairs: Pairs, *, power: float, alpha: float) -> int:
    """Return the first number of pairs from ``start`` on with which the exact test has the power."""
    # Beyond, the two tests agree to a few per cent, and the sums below take seconds.
    largest = 1000
    if start > largest:
        return start
    counts = np.arange(largest + 1)  # of discordant pairs
    # The largest count of the rarer outcome that is still significant; -1 where none is.
    critical = binom.ppf(alpha / 2, counts, 0.5)
    critical = np.where(2 * binom.cdf(critical, counts, 0.5) < alpha, critical, critical - 1)
    critical[0] = -1
    share = min(pairs.only_first, pairs.only_second) / pairs.discordant
    found = binom.cdf(critical, counts, share) + binom.cdf(critical, counts, 1 - share)
    for total in range(start, largest + 1):
        chances = binom.pmf(counts[: total + 1], total, discordant)
        if float(chances @ found[: total + 1]) >= power:
            return total
    return largest + 1


def mean_interval(
    differences: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """Return the mean of paired differences and its interval by Student's t; ``None`` of fewer than two."""
    if len(differences) < 2:
        return None
    mean = sum(differences) / len(differences)
    if len(set(differences)) == 1:
        return mean, mean, mean  # scipy warns of a spread of nothing
    interval = ttest_1samp(differences, 0).confidence_interval(confidence)
    return mean, float(interval.low), float(interval.high)
