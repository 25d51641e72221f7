"""``simulator`` and ``doctor``: flags, simulators on offer, and the server of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robowire.cli.command import Program
from robowire.cli.dashboard import server_page
from robowire.cli.parser import environment_values
from robowire.cli.record_flags import RecordFlags
from robowire.cli.serve import connection_words, serve
from robowire.cli.tracing_flags import TracingFlags
from robowire.dashboard.options import DashboardFlags
from robowire.errors import ConfigurationError
from robowire.frontends.center.tasks import server_settings
from robowire.frontends.simulator_frontends import SimulatorFrontendOptions, make_simulator_frontends
from robowire.interfaces import TaskOptions
from robowire.recording.replay_simulator import ENVIRONMENT, TOLERANCE, recorded_simulators
from robowire.registry import Entry, entries, family_and_task
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.server import SimulatorServer

__all__ = [
    "DoctorFlags",
    "SimulatorFlags",
    "make_simulator_server",
    "offered_simulators",
    "run",
    "simulator_server_of_environment",
]


@dataclass(frozen=True)
class SimulatorFlags(TaskOptions, SimulatorFrontendOptions, RecordFlags, DashboardFlags, TracingFlags):
    """Flags of ``simulator``. Clients may override how a task is built.

    Attributes:
        simulators: Further simulators to offer, module:function of your own.
        simulator_python: Interpreters of simulators that need another environment, such as
            libero=/opt/libero/bin/python.
        libero_assets: Folder of LIBERO's meshes, textures and scenes, which its package lacks.
        replay: Recording of a simulator server's session, or a folder of them: its simulators answer from it,
            and nothing is simulated.
        replay_tolerance: Largest difference of two numbers of an action that count as equal in a replay.
    """

    simulators: tuple[str, ...] = ()
    simulator_python: tuple[str, ...] = ()
    libero_assets: str | None = None
    replay: str | None = None
    replay_tolerance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.replay_tolerance >= 0:
            raise ConfigurationError(f"replay_tolerance is {self.replay_tolerance!r}, expected 0 or more")


def run(flags: SimulatorFlags, program: Program) -> int:
    """Serve until a signal, then drain."""
    simulator, task = flags.simulator or "robosuite", flags.task or ("Lift" if not flags.simulator else None)
    with server_page(flags) as (flags, page):
        return serve(
            make_simulator_server(flags, program.simulators),
            flags,
            {
                "with a policy server": lambda host, port: program.example(
                    "client.py",
                    *("evaluate", "--address", "localhost:5000", "--simulator_address", f"{host}:{port}"),
                    *connection_words(flags, prefix="--simulator_"),
                    *("--simulator", simulator, *(("--task", task) if task else ())),
                ),
                "try it": lambda host, port: program.example(
                    "client.py", "info", "--address", f"{host}:{port}", *connection_words(flags)
                ),
            },
            page=page,
        )


def make_simulator_server(flags: SimulatorFlags, simulators: Mapping[str, Entry]) -> SimulatorServer:
    """Return the server of every simulator in the table, of installed packages, and of the flags.

    Args:
        flags: Port, limits and how tasks are built.
        simulators: Table of simulators; those of installed packages are offered too.

    Raises:
        RobowireError: An option is unusable, or the port cannot be opened; the message says what to do.
    """
    flags = _with_variables_of_center(flags)
    offered, pythons = offered_simulators(flags, simulators)
    frontends = make_simulator_frontends(flags)
    server = SimulatorServer(offered, flags, task=flags, pythons=pythons, frontends=frontends)
    try:
        server.service.recorder = flags.recorder()
    except BaseException:
        server.shutdown()
        raise
    return server


def _with_variables_of_center(flags: SimulatorFlags) -> SimulatorFlags:
    """Return the flags, where they say nothing with what ``SIM_...`` says: ours are closer to the user."""
    values = server_settings(os.environ)
    port = values.get("center_port") if flags.center_port is None else flags.center_port
    timeout_s = flags.session_timeout_s
    if port is not None and timeout_s == SimulatorServerOptions.session_timeout_s:
        timeout_s = values.get("session_timeout_s", timeout_s)
    return dataclasses.replace(flags, center_port=port, session_timeout_s=timeout_s)


def simulator_server_of_environment(table: Mapping[str, Entry], /, **changes: Any) -> SimulatorServer:
    """Return what ``simulator`` without a flag would serve: ``ROBOWIRE_SIM_*`` count, and defaults.

    Args:
        table: Table of simulators.
        changes: Fields of :class:`SimulatorFlags` that are different.

    Raises:
        RobowireError: As :func:`make_simulator_server`.
    """
    values = {**environment_values(SimulatorFlags, "ROBOWIRE_SIM"), **changes}
    return make_simulator_server(SimulatorFlags(**values), table)


def offered_simulators(
    flags: SimulatorFlags, simulators: Mapping[str, Entry]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the simulators that the flags offer and the interpreters of some; simulators inherit the rest.

    Raises:
        ConfigurationError: A flag is unusable.
    """
    offered = entries("simulator", simulators)
    own: tuple[str, ...] = ()
    if flags.simulator is not None and ":" in family_and_task(flags.simulator, offered)[0]:
        own = (flags.simulator,)
    for name in flags.simulators:
        if ":" not in name:
            raise ConfigurationError(
                f"simulators names {name!r}, expected module:function. Offered already: {', '.join(offered)}"
            )
    offered.update({name: Entry(name) for name in (*flags.simulators, *own)})
    if flags.replay is not None:
        offered = _replayed(flags.replay, flags.replay_tolerance)
    pythons = {}
    for setting in flags.simulator_python:
        name, _, python = setting.partition("=")
        if not python:
            raise ConfigurationError(
                f"simulator_python is {setting!r}, expected a simulator and its interpreter: name=path"
            )
        if shutil.which(python) is None:
            raise ConfigurationError(f"simulator_python of {name!r}: there is no program {python!r}")
        pythons[name] = python
    if flags.libero_assets is not None:
        assets = Path(flags.libero_assets).expanduser().resolve()
        if not (assets / "scenes").is_dir():
            raise ConfigurationError(
                f"libero_assets is {flags.libero_assets!r}, expected the folder with LIBERO's scenes and "
                "textures: libero/libero/assets in its repository"
            )
        os.environ["ROBOWIRE_LIBERO_ASSETS"] = str(assets)  # simulators' processes inherit it
    return offered, pythons


def _replayed(path: str, tolerance: float) -> dict[str, Entry]:
    """Return the recorded simulators, each answered from the recordings."""
    names = recorded_simulators(path)
    os.environ[ENVIRONMENT] = str(Path(path).resolve())  # simulators' processes inherit it
    os.environ[TOLERANCE] = str(tolerance)
    entry = Entry("robowire.recording.replay_simulator:make_simulator", summary=f"recorded in {path}")
    return {name: entry for name in dict.fromkeys([*names, "replay"])}


@dataclass(frozen=True)
class DoctorFlags(SimulatorFlags):
    """Flags of ``doctor``: its own, and those of the simulator server that it examines.

    Attributes:
        frame: File to save the rendered image in, such as frame.png.
        json: Print the whole report as JSON.
        load_timeout_s: Seconds to import a simulator, and again to load its task.
    """

    frame: str | None = None
    json: bool = False
    # A person waits for the report, so not five minutes for each simulator; LIBERO's first import takes 10 s.
    load_timeout_s: float = 60.0
