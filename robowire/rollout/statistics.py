"""What a number of episodes says about a policy. Arithmetic only."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Sequence

import numpy as np

from robowire.rollout.episodes import EpisodeResult

__all__ = ["summarise", "wilson_interval"]


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate, (low, high).

    It keeps its promise with few trials and near 0 and 1, where "p plus or minus 1.96 standard errors" gives
    [1, 1] for 50 of 50. Formula: E. B. Wilson 1927, JASA 22(158), 209-212; recommended by Brown, Cai and
    DasGupta 2001, Statistical Science 16(2), 101-133.

    Returns:
        Within [0, 1]; (0, 1) for no trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)  # 1.96 for 0.95
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    # Algebra says exactly 0 and 1 at the ends; rounding gives 1e-17 next to them.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def summarise(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return the figures of ``summary.json``.

    An episode that the simulator did not finish is counted under ``errors`` and nowhere else, for it says
    nothing about the policy. ``episodes`` counts the finished ones; means and rates are over them, ``None``
    where there is none, or a return is not finite. ``late_steps`` are those of episodes in real time.
    """
    finished = [episode for episode in episodes if episode.error is None]
    successes = sum(bool(episode.success) for episode in finished)
    low, high = wilson_interval(successes, len(finished))
    infer_ms = [ms for episode in episodes for ms in episode.infer_ms]
    late = [episode.late_steps for episode in finished if episode.late_steps is not None]
    return {
        "episodes": len(finished),
        "successes": successes,
        "success_rate": successes / len(finished) if finished else None,
        "wilson_low": low,
        "wilson_high": high,
        "mean_return": _mean([episode.total_reward for episode in finished]),
        "mean_steps": _mean([episode.steps for episode in finished]),
        "errors": len(episodes) - len(finished),
        "inferences": len(infer_ms),
        "infer_ms_p50": percentile(infer_ms, 50),
        "infer_ms_p99": percentile(infer_ms, 99),
        "late_steps": sum(late) if late else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values and all(map(math.isfinite, values)) else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return a percentile, interpolated linearly; ``None`` of no values."""
    return float(np.percentile(values, percent)) if len(values) else None
