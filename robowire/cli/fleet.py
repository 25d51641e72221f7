"""``fleet``, and the commands for a fleet that runs: ``status``, ``scale``, ``stop``."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robowire.address import parse_address
from robowire.cli.background_writer import BackgroundStream, BackgroundWriter
from robowire.cli.command import Program
from robowire.cli.connection_flags import TlsFlags
from robowire.cli.dashboard import server_page
from robowire.cli.log_lines import JsonFormatter
from robowire.cli.parser import setting
from robowire.cli.serve import connection_words, serve
from robowire.cli.simulator import SimulatorFlags, offered_simulators
from robowire.dashboard.options import DashboardFlags
from robowire.errors import ConfigurationError
from robowire.fleet.fleet_client import ask_fleet
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.lifecycle import State
from robowire.fleet.options import FleetOptions
from robowire.fleet.table import table
from robowire.progress import Progress
from robowire.registry import Entry, family_and_task, nearest

__all__ = [
    "FleetFlags",
    "FleetScaleFlags",
    "FleetStatusFlags",
    "make_fleet",
    "run",
    "scale_fleet",
    "show_fleet",
    "stop_fleet",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetFlags(SimulatorFlags, FleetOptions):
    """Flags of ``fleet``. Each server gets those that ``simulator`` has too.

    Attributes:
        simulator: Simulator that the fleet is for, checked when it starts, or module:function of your own,
            which its servers then offer too. HTTP requests that name no session share one environment of it.
        http_port: Port of the first server's HTTP frontend; the others have the next numbers.
    """

    def __post_init__(self) -> None:
        SimulatorFlags.__post_init__(self)
        FleetOptions.__post_init__(self)


def run(flags: FleetFlags, program: Program) -> int:
    """Run the fleet until a signal or ``fleet stop``, then let its servers finish."""
    with server_page(flags) as (flags, page):
        return serve(
            make_fleet(flags, program.simulators, program.start_command("server.py")),
            flags,
            {
                "try it": lambda host, port: program.example(
                    "server.py", "fleet", "status", "--address", f"{host}:{port}", *connection_words(flags)
                )
            },
            page=page,
        )


def make_fleet(flags: FleetFlags, simulators: Mapping[str, Entry], program: Sequence[str]) -> FleetServer:
    """Return the fleet of servers that the flags describe; none of them runs yet.

    Args:
        flags: Size, port, limits and how tasks are built.
        simulators: Table of simulators, as the servers have it.
        program: Words that start the program of a server; ``simulator`` and its flags follow.

    Raises:
        RobowireError: An option is unusable, or the port cannot be opened; the message says what to do.
    """
    offered, _ = offered_simulators(flags, simulators)  # here, and not in each server's last output
    if flags.simulator is not None and family_and_task(flags.simulator, offered)[0] not in offered:
        raise ConfigurationError(
            f"no simulator is called {flags.simulator!r}.{nearest(flags.simulator, offered)} "
            f"Known: {', '.join(sorted(offered))}"
        )
    for port in _SERVICE_PORTS:
        last = (getattr(flags, port) or 0) + flags.num_services - 1
        if last > 65535:
            raise ConfigurationError(f"{port} of the last server would be {last}, expected at most 65535")
    # Settings of servers in the environment are in the flags already, such as the port of the fleet.
    for variable in [name for name in os.environ if name.startswith("ROBOWIRE_SIM_")]:
        del os.environ[variable]
    # The fleet logs its clients once; with --log_level debug each server logs them too.
    level = "info" if logging.getLogger().isEnabledFor(logging.DEBUG) else "warning"
    as_json = any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
    log_format = "json" if as_json else "text"
    command = [*program, "simulator", "--log_level", level, "--log_format", log_format]
    own = (
        "port",
        "token",
        "insecure",
        "unix_socket",
        *(item.name for item in dataclasses.fields(DashboardFlags)),
    )
    words = _words(flags, SimulatorFlags, but=(*_SERVICE_PORTS, *own))
    # A pipe that nobody reads must not stop the supervisor.
    output = BackgroundWriter(1)
    return FleetServer(
        flags,
        flags,
        [*command, *words, "--insecure"],
        # The fleet has said it of all of them.
        on_change=_Start(flags.num_services, output),
        variation=lambda index: _variation(flags, index),
    )


class _Start:
    """Shows how many servers are ready while the fleet starts; the table of their states at each change.

    Args:
        num_services: Number of servers that are started.
        output: Takes the tables.
    """

    def __init__(self, num_services: int, output: BackgroundWriter) -> None:
        self._output = output
        self._progress = Progress(
            "starting servers", num_services, unit="server", log=logger, stream=BackgroundStream(2)
        )
        self._num_services, self._ready = num_services, 0
        self._started = self._over = False

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of the servers whose states changed."""
        if not self._over:
            self._show_progress(rows)
        self._output.write(f"\n{table(rows)}\n")

    def _show_progress(self, rows: list[dict[str, Any]]) -> None:
        if not self._started:
            self._progress.__enter__()
            self._started = True
        ready = sum(row["state"] == State.HEALTHY.value for row in rows)
        self._progress.update(ready - self._ready)
        self._ready = ready
        ends = any(row["state"] in (State.DRAINING.value, State.STOPPED.value) for row in rows)
        if ready >= self._num_services or ends or not rows:
            self._over = True
            self._progress.__exit__(None, None, None)


# Each server of a fleet needs ports of its own: the flag's for the first one, and the following numbers.
_SERVICE_PORTS = ("http_port", "center_port")

# Where a CARLA server listens; the next one has a port that is 2 higher, since each takes two.
_CARLA = "ROBOWIRE_CARLA"


def _variation(flags: FleetFlags, index: int) -> tuple[list[str], dict[str, str]]:
    """Return the words and environment variables of the server with this index, 0 for the first."""
    words = []
    for name in _SERVICE_PORTS:
        port = getattr(flags, name)
        if port is not None:
            words += [f"--{name}", str(port + index if port else 0)]
    if flags.simulator is None or flags.simulator.partition(":")[0] != "carla":
        return words, {}
    host, _, carla_port = os.environ.get(_CARLA, "localhost").partition(":")
    return words, {_CARLA: f"{host}:{int(carla_port or 2000) + 2 * index}"}


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
class FleetStatusFlags(TlsFlags):
    """Fleet to connect to.

    Attributes:
        address: Host and port of the fleet.
        token: Token of the fleet, where it needs one.
    """

    address: str = "localhost:5555"
    token: str | None = None

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the fleet's reply to one request."""
        host, port = parse_address("address", self.address, example="localhost:5555")
        return ask_fleet(host, port, method, token=self.token, tls=self.tls_context(), **params)


@dataclass(frozen=True, kw_only=True)
class FleetScaleFlags(FleetStatusFlags):
    """Fleet to connect to, and its new size.

    Attributes:
        num_services: Servers that the fleet is to have; surplus ones finish their sessions first.
    """

    num_services: int = field(metadata=setting(positional=True))


def show_fleet(flags: FleetStatusFlags, program: Program) -> int:
    """Print the fleet's table."""
    sys.stdout.write(f"{table(flags.request('list_services')['services'])}\n")
    return 0


def scale_fleet(flags: FleetScaleFlags, program: Program) -> int:
    """Change how many servers a fleet has."""
    flags.request("scale", num_services=flags.num_services)
    sys.stdout.write(f"the fleet at {flags.address} goes to {flags.num_services} servers: see fleet status\n")
    return 0


def stop_fleet(flags: FleetStatusFlags, program: Program) -> int:
    """Make a fleet end."""
    flags.request("stop")
    sys.stdout.write(f"the fleet at {flags.address} finishes the requests in hand and ends\n")
    return 0
