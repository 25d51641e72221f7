"""The driving family highway: highway-env's roads, driven by steering, throttle and brake."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.environments.simulator import GymnasiumSimulator

__all__ = ["make_simulator"]


def make_simulator() -> GymnasiumSimulator:
    """Return a simulator without a task; this is where highway-env is imported."""
    from benchmark.environments.simulator import GymnasiumSimulator
    from benchmark.highway.roads import Roads

    return GymnasiumSimulator(Roads())
