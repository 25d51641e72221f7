"""The driving family highway: highway-env's roads, driven by steering, throttle and brake."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from robowire.errors import MissingDependency

if TYPE_CHECKING:
    from benchmark.environments.simulator import GymnasiumSimulator

__all__ = ["make_simulator"]


def make_simulator() -> GymnasiumSimulator:
    """Return a simulator without a task; this is where highway-env is imported.

    Raises:
        MissingDependency: It is not installed.
    """
    if find_spec("highway_env") is None:
        raise MissingDependency(
            "simulator 'highway' needs highway-env, which is not installed: ./setup_simulator.sh driving"
        )
    from benchmark.environments.simulator import GymnasiumSimulator
    from benchmark.highway.roads import Roads

    return GymnasiumSimulator(Roads())
