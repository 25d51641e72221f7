"""The LIBERO family: 130 tasks of five suites, with LIBERO's own scenes, initial states and predicates."""

import logging

# Importing robosuite advises, four lines at a time, to write private macros into its package and to install
# more of it; nothing here needs either.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

from benchmark.libero.simulator import LiberoSimulator, make_simulator  # noqa: E402

__all__ = ["LiberoSimulator", "make_simulator"]
