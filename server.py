#!/usr/bin/env python
"""The server program of the checkout: ``robowire.cli`` with the checkout's policies and simulators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.registry import SIMULATORS
from policies.registry import POLICIES
from robowire.cli import main as cli
from robowire.serving.policy.server import PolicyServer
from robowire.serving.simulator.server import SimulatorServer

__all__ = [
    "COMMANDS",
    "PROGRAM",
    "PolicyServer",
    "SimulatorServer",
    "main",
    "simulator_server_of_environment",
]

PROGRAM = cli.server_program(
    policies=POLICIES, simulators=SIMULATORS, checkout=Path(__file__).resolve().parent
)
COMMANDS = PROGRAM.commands


def simulator_server_of_environment(**changes: Any) -> SimulatorServer:
    """Return what ``server.py simulator`` without a flag would serve, but for these fields of its flags."""
    from robowire.cli.simulator import simulator_server_of_environment

    return simulator_server_of_environment(SIMULATORS, **changes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    return cli.run(PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
