"""The robosuite family: the simulator, a scripted expert for Lift, and the recorder of its demonstrations."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.robosuite.simulator import RobosuiteSimulator

__all__ = ["make_simulator"]


def make_simulator() -> RobosuiteSimulator:
    """Return a robosuite simulator without a task; this is where robosuite and MuJoCo are imported."""
    # That import advises, four lines at a time, to write private macros into robosuite's own package and to
    # install more of it; nothing here needs either.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    from benchmark.robosuite.simulator import RobosuiteSimulator

    return RobosuiteSimulator()
