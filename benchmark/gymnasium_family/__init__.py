"""The Gymnasium family: every registered environment, gymnasium-robotics' and Meta-World's included."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from robowire.errors import MissingDependency

if TYPE_CHECKING:
    from benchmark.environments.simulator import GymnasiumSimulator

__all__ = ["make_simulator"]


def make_simulator() -> GymnasiumSimulator:
    """Return a simulator without a task; this is where Gymnasium and what extends it are imported.

    Raises:
        MissingDependency: Gymnasium is not installed.
    """
    if find_spec("gymnasium") is None:
        raise MissingDependency(
            "simulator 'gymnasium' needs Gymnasium, which is not installed: ./setup_simulator.sh gymnasium"
        )
    from benchmark.environments.simulator import GymnasiumSimulator
    from benchmark.gymnasium_family.environments import Environments

    return GymnasiumSimulator(Environments())
