"""The robosuite family: the simulator, a scripted expert for Lift, and the recorder of its demonstrations."""

import logging

# Importing robosuite advises, four lines at a time, to write private macros into its package and to install more
# of it; nothing here needs either.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

from benchmark.robosuite.simulator import RobosuiteSimulator, make_simulator  # noqa: E402

__all__ = ["RobosuiteSimulator", "make_simulator"]
