"""``server.py fleet`` and its words for a fleet that runs: ``status``, ``scale``, ``stop``."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robowire.address import parse_address
from robowire.cli.simulator import SimulatorFlags, offered_simulators
from robowire.errors import ConfigurationError
from robowire.fleet.fleet_client import ask_fleet
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.options import FleetOptions
from robowire.fleet.table import table
from robowire.registry import nearest

__all__ = [
    "FleetFlags",
    "FleetScaleFlags",
    "FleetStatusFlags",
    "make_fleet",
    "scale_fleet",
    "show_fleet",
    "stop_fleet",
]

_PROGRAM = Path(__file__).resolve().parents[1] / "server.py"


@dataclass(frozen=True)
class FleetFlags(SimulatorFlags, FleetOptions):
    """The flags of ``server.py fleet``. Each server gets those that ``server.py simulator`` has too.

    Attributes:
        simulator: What the fleet is for: a simulator that its servers are known to offer, or module:function
            of your own, which they then offer besides.
    """

    simulator: str | None = None

    def __post_init__(self) -> None:
        SimulatorFlags.__post_init__(self)
        FleetOptions.__post_init__(self)


def make_fleet(flags: FleetFlags) -> FleetServer:
    """Return the fleet of servers that the flags describe; none of them runs yet.

    Raises:
        RobowireError: An option is unusable, or the port cannot be opened; the message says what to do.
    """
    if flags.simulator is not None and ":" in flags.simulator:
        flags = dataclasses.replace(flags, simulators=(*flags.simulators, flags.simulator))
    offered, _ = offered_simulators(flags)  # here, and not in each server's last words
    if flags.simulator is not None and flags.simulator not in offered:
        raise ConfigurationError(
            f"no simulator is called {flags.simulator!r}.{nearest(flags.simulator, offered)} "
            f"Known: {', '.join(sorted(offered))}"
        )
    if flags.http_port:
        raise ConfigurationError(
            f"http_port is {flags.http_port}, and only one of the fleet's servers could have it: leave it "
            "out, and start a server of its own for HTTP"
        )
    # What the environment says of servers is in the flags already, the port of the fleet for one.
    for variable in [name for name in os.environ if name.startswith("ROBOWIRE_SIM_")]:
        del os.environ[variable]
    # Who comes and goes is the fleet's to say, once; with --log_level debug each server says it too.
    level = "info" if logging.getLogger().isEnabledFor(logging.DEBUG) else "warning"
    program = [sys.executable, str(_PROGRAM), "simulator", "--log_level", level]
    return FleetServer(
        flags,
        flags,
        [*program, *_words(flags, SimulatorFlags, but=("port", "auth_token"))],
        on_change=lambda rows: print(f"\n{table(rows)}", flush=True),
    )


def _words(options: Any, options_class: type, *, but: Sequence[str]) -> list[str]:
    """Return the command line that gives a command of these options the same values."""
    words: list[str] = []
    for item in dataclasses.fields(options_class):
        value = getattr(options, item.name)
        if item.name in but or value is None or value == ():
            continue
        if isinstance(value, tuple):
            words += [f"--{item.name}", *value]
        else:
            words += [f"--{item.name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


@dataclass(frozen=True)
class FleetStatusFlags:
    """Which fleet.

    Attributes:
        address: Host and port of the fleet.
        auth_token: What the fleet wants to be shown, if anything.
    """

    address: str = "localhost:5555"
    auth_token: str | None = None

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the fleet's reply to one request."""
        host, port = parse_address("address", self.address, example="localhost:5555")
        return ask_fleet(host, port, method, token=self.auth_token, **params)


@dataclass(frozen=True)
class FleetScaleFlags(FleetStatusFlags):
    """Which fleet, and how large it is to be.

    Attributes:
        num_services: Servers it is to have; those that are too many finish their sessions first.
    """

    num_services: int = 0


def show_fleet(flags: FleetStatusFlags) -> int:
    """Print the fleet's table."""
    print(table(flags.ask("list_services")["services"]))
    return 0


def scale_fleet(flags: FleetScaleFlags) -> int:
    """Tell a fleet how many servers it is to have."""
    flags.ask("scale", num_services=flags.num_services)
    print(f"the fleet at {flags.address} goes to {flags.num_services} servers: see fleet status")
    return 0


def stop_fleet(flags: FleetStatusFlags) -> int:
    """Tell a fleet to end."""
    flags.ask("stop")
    print(f"the fleet at {flags.address} finishes the requests in hand and ends")
    return 0
