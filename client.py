#!/usr/bin/env python
"""The client program of the checkout: ``robowire.cli`` with the checkout's policies and simulators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.registry import SIMULATORS
from policies.registry import POLICIES
from robowire import PolicyClient, SimulatorClient
from robowire.cli import main as cli
from robowire.cli.infer import random_observation

__all__ = ["COMMANDS", "PROGRAM", "PolicyClient", "SimulatorClient", "main", "random_observation"]

PROGRAM = cli.client_program(
    policies=POLICIES, simulators=SIMULATORS, checkout=Path(__file__).resolve().parent
)
COMMANDS = PROGRAM.commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    return cli.run(PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
