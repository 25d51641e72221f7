"""A policy server with ports of further wires, for tests of frontends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robowire.frontends.policy_frontends import PolicyFrontendOptions, make_policy_frontends
from robowire.interfaces import Policy
from robowire.serving.policy.server import PolicyServer

DRAIN_S = 2.0


@contextmanager
def running_frontends(policy: Policy, **options: Any) -> Iterator[PolicyServer]:
    """Serve a policy on loopback, on the native port and on each whose option is given: ``openpi_port=0``."""
    chosen = PolicyFrontendOptions(**{"host": "127.0.0.1", "port": 0, "drain_s": DRAIN_S, **options})
    with PolicyServer(policy, chosen, frontends=make_policy_frontends(chosen)) as server:
        yield server


def port_of(server: PolicyServer, name: str) -> int:
    """Return the port of a frontend."""
    (port,) = (frontend.address[1] for frontend in server.frontends if frontend.name == name)
    return port
