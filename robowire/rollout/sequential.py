"""Tests that may be looked at after every episode: the error stays below alpha however often one looks.

Both are mixture martingales with a uniform prior on the unknown rate. Under the hypothesis, such a martingale
ever exceeds ``1 / alpha`` with a probability of at most alpha (Ville's inequality). Sources: H. Robbins 1970,
Statistical methods related to the law of the iterated logarithm, Annals of Mathematical Statistics 41,
1397-1409; S. R. Howard, A. Ramdas, J. McAuliffe, J. Sekhon 2021, Time-uniform, nonparametric, nonasymptotic
confidence sequences, Annals of Statistics 49, 1055-1080; I. Waudby-Smith, A. Ramdas 2024, Estimating means of
bounded random variables by betting, JRSS B 86, 1-27.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Iterable

from robowire.errors import ConfigurationError

__all__ = ["Claim", "Decision", "PairedDecision", "confidence_sequence", "decide_pairs", "log_evidence"]


def log_evidence(successes: int, trials: int, rate: float) -> float:
    """Return the logarithm of the evidence against a success rate, 0 to 1, infinite where it is impossible.

    It is the likelihood averaged over all rates, divided by that of ``rate``.
    """
    failures = trials - successes
    if (successes and rate <= 0) or (failures and rate >= 1):
        return math.inf
    mixture = math.lgamma(successes + 1) + math.lgamma(failures + 1) - math.lgamma(trials + 2)
    likelihood = (successes * math.log(rate) if successes else 0.0) + (
        failures * math.log1p(-rate) if failures else 0.0
    )
    return mixture - likelihood


def confidence_sequence(successes: int, trials: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Return (low, high): with probability ``1 - alpha`` the rate is within it at all times together."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if not trials:
        return 0.0, 1.0
    bound, observed = -math.log(alpha), successes / trials

    def limit(outside: float) -> float:
        """Return where the evidence reaches the bound, between ``outside`` and the observed rate."""
        inside = observed
        if log_evidence(successes, trials, outside) < bound:
            return outside
        for _ in range(60):  # halves the distance each time, to below the last bit
            middle = (outside + inside) / 2
            if log_evidence(successes, trials, middle) < bound:
                inside = middle
            else:
                outside = middle
        return outside

    return limit(0.0), limit(1.0)


@dataclass(frozen=True)
class Decision:
    """A claim about a success rate, decided.

    Attributes:
        holds: Whether the claim is true.
        episodes: Episodes that decided it.
        low: Lower end of the confidence sequence.
        high: Upper end of the confidence sequence.
    """

    holds: bool
    episodes: int
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    """A claim about a success rate, ``rate > 0.8`` or ``rate < 0.5``.

    Attributes:
        above: Whether the claim is that the rate is greater.
        rate: Rate that it is compared with, between 0 and 1.
    """

    above: bool
    rate: float

    @classmethod
    def parse(cls, text: str) -> Claim:
        """Read ``"rate > 0.8"``.

        Raises:
            ConfigurationError: It is something else.
        """
        match = re.fullmatch(r"\s*rate\s*([<>])\s*(\d*\.?\d+)\s*", text)
        if match is None or not 0 < float(match[2]) < 1:
            raise ConfigurationError(
                f"stop_when is {text!r}, expected 'rate > 0.8' or 'rate < 0.5', a rate between 0 and 1"
            )
        return cls(match[1] == ">", float(match[2]))

    def decide(self, outcomes: Iterable[bool], *, alpha: float = 0.05) -> Decision | None:
        """Return the decision after the first outcomes that allow one; ``None`` where they do not yet.

        Args:
            outcomes: Successes in the order of the episodes' numbers. In the order in which parallel episodes
                end, short ones come first, and short ones are successes.
            alpha: Probability of a wrong decision, at most.
        """
        successes = 0
        for trials, success in enumerate(outcomes, 1):
            successes += success
            if log_evidence(successes, trials, self.rate) >= -math.log(alpha):
                low, high = confidence_sequence(successes, trials, alpha=alpha)
                return Decision((successes / trials > self.rate) == self.above, trials, low, high)
        return None


@dataclass(frozen=True)
class PairedDecision:
    """A sequential comparison of two runs.

    Attributes:
        p_value: Anytime-valid: below alpha with probability alpha at most, however often one looks.
        pairs: Pairs after which it was decided; ``None`` where it is not.
        second_is_better: Whether the second run has more of the discordant pairs at that point.
    """

    p_value: float
    pairs: int | None
    second_is_better: bool


def decide_pairs(outcomes: Iterable[tuple[bool, bool]], *, alpha: float = 0.05) -> PairedDecision:
    """Compare two runs pair by pair; only discordant pairs carry evidence, as in McNemar's test.

    Args:
        outcomes: Successes of the first and the second run, in an order fixed before the runs.
        alpha: Probability of telling equal policies apart, at most.
    """
    first = discordant = 0
    largest, pairs, better = 0.0, None, False
    for number, (a, b) in enumerate(outcomes, 1):
        if a == b:
            continue
        discordant += 1
        first += a
        evidence = log_evidence(first, discordant, 0.5)
        largest = max(largest, evidence)
        if pairs is None:
            better = 2 * first < discordant
            if evidence >= -math.log(alpha):
                pairs = number
    return PairedDecision(math.exp(-largest), pairs, better)
