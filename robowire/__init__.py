"""One framed TCP wire between robot policies, robot simulators and robots. The clients need numpy only."""

from __future__ import annotations

from robowire.async_controller import AsyncController, AsyncOptions
from robowire.async_policy_client import AsyncPolicyClient
from robowire.meta import MetaAction, MetaObs
from robowire.policy_client import PolicyClient
from robowire.simulator_client import SimulatorClient
from robowire.version import __version__

__all__ = [
    "AsyncController",
    "AsyncOptions",
    "AsyncPolicyClient",
    "MetaAction",
    "MetaObs",
    "PolicyClient",
    "SimulatorClient",
    "__version__",
]
