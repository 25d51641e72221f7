"""Fakes, running servers and the shipped contract tests, each imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robowire.testing.echo_service import EchoService
    from robowire.testing.fake_policies import ConstantPolicy, EchoPolicy, FailingPolicy, SlowPolicy
    from robowire.testing.fake_simulator import FakeSimulator
    from robowire.testing.policy_contract import PolicyContract
    from robowire.testing.servers import FAKE_SIMULATORS, running_server, running_simulator_server
    from robowire.testing.simulator_contract import SimulatorContract

__all__ = [
    "FAKE_SIMULATORS",
    "ConstantPolicy",
    "EchoPolicy",
    "EchoService",
    "FailingPolicy",
    "FakeSimulator",
    "PolicyContract",
    "SimulatorContract",
    "SlowPolicy",
    "running_server",
    "running_simulator_server",
]

# Servers need Python 3.10; a simulator's interpreter may be 3.8 and imports this package for the contract.
_MODULES = {
    "echo_service": ("EchoService",),
    "fake_policies": ("ConstantPolicy", "EchoPolicy", "FailingPolicy", "SlowPolicy"),
    "fake_simulator": ("FakeSimulator",),
    "policy_contract": ("PolicyContract",),
    "servers": ("FAKE_SIMULATORS", "running_server", "running_simulator_server"),
    "simulator_contract": ("SimulatorContract",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
