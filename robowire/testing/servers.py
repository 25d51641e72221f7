"""Servers for tests: on a free port of the loopback, and gone with every thread and process at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from robowire.interfaces import Policy, TaskOptions
from robowire.registry import Entry
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.server import SimulatorServer

__all__ = ["FAKE_SIMULATORS", "running_server", "running_simulator_server"]


@contextmanager
def running_server(policy: Policy, options: PolicyServerOptions | None = None) -> Iterator[PolicyServer]:
    """Serve the policy on a free port of this machine's loopback; leave no thread and no socket behind.

    Args:
        policy: What to serve.
        options: Its host and port are not used.
    """
    options = replace(options or PolicyServerOptions(drain_s=2.0), host="127.0.0.1", port=0)
    with PolicyServer(policy, options) as server:
        yield server


# A module of its own, because its process is to need nothing of a server.
FAKE_SIMULATORS: Mapping[str, Entry] = {
    "fake": Entry("robowire.testing.fake_simulator:make_simulator", summary="a point that is moved to a goal")
}


@contextmanager
def running_simulator_server(
    options: SimulatorServerOptions | None = None,
    *,
    simulators: Mapping[str, Entry] = FAKE_SIMULATORS,
    task: TaskOptions | None = None,
    pythons: Mapping[str, str] | None = None,
) -> Iterator[SimulatorServer]:
    """Serve simulators on a free port of the loopback; leave no thread, process or socket behind.

    Args:
        options: Its host and port are not used.
        simulators: What clients may select.
        task: How tasks are built where a client does not say.
        pythons: Interpreter for a simulator.
    """
    options = replace(options or SimulatorServerOptions(drain_s=2.0), host="127.0.0.1", port=0)
    with SimulatorServer(simulators, options, task=task, pythons=pythons) as server:
        yield server
