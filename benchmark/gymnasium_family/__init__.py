"""The Gymnasium family: every registered environment, gymnasium-robotics' and Meta-World's included."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.environments.simulator import GymnasiumSimulator

__all__ = ["make_simulator"]


def make_simulator() -> GymnasiumSimulator:
    """Return a simulator without a task; this is where Gymnasium and what extends it are imported."""
    from benchmark.environments.simulator import GymnasiumSimulator
    from benchmark.gymnasium_family.environments import Environments

    return GymnasiumSimulator(Environments())
