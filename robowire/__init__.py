"""One framed TCP wire between robot policies, robot simulators and robots. The clients need numpy only."""

from __future__ import annotations

from robowire.meta import MetaAction, MetaObs
from robowire.policy_client import PolicyClient
from robowire.simulator_client import SimulatorClient
from robowire.version import __version__

__all__ = ["MetaAction", "MetaObs", "PolicyClient", "SimulatorClient", "__version__"]
