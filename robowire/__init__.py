"""One framed TCP wire between robot policies, robot simulators and robots. The clients need numpy only."""

from __future__ import annotations

from robowire.client.async_controller import AsyncController, AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import SimulatorClient
from robowire.meta import MetaAction, MetaObs
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
