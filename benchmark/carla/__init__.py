"""The driving family carla: a car on a route, in a CARLA server that runs elsewhere.

Written against the API of CARLA's client package 0.9.16. It was never run against a server: there was none
where it was written. tests/contract/test_carla.py runs it as soon as ROBOWIRE_CARLA names one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from robowire.errors import MissingDependency

if TYPE_CHECKING:
    from benchmark.carla.simulator import CarlaSimulator

__all__ = ["make_simulator"]


def make_simulator() -> CarlaSimulator:
    """Return a simulator without a task. The server is looked for when tasks are listed or loaded.

    Raises:
        MissingDependency: The client package is not installed.
    """
    from benchmark.carla.simulator import VERSION, CarlaSimulator

    try:
        carla = importlib.import_module("carla")
    except ModuleNotFoundError as exc:
        raise MissingDependency(
            "simulator 'carla' needs CARLA's client package, which is not installed: "
            f"pip install carla=={VERSION}, or the version of your server"
        ) from exc
    return CarlaSimulator(carla)
