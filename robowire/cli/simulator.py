"""``server.py simulator`` and ``doctor``: what is offered, how it is served, and whether it can be."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmark.registry import SIMULATORS
from robowire.cli.command import Server
from robowire.errors import ConfigurationError
from robowire.interfaces import TaskOptions
from robowire.registry import Entry, entries, load
from robowire.serving.simulator.service import SimulatorServer, SimulatorServerOptions

__all__ = [
    "DoctorFlags",
    "SimulatorFlags",
    "examine",
    "make_simulator_doors",
    "make_simulator_server",
    "offered_simulators",
]


@dataclass(frozen=True)
class SimulatorFlags(TaskOptions, SimulatorServerOptions):
    """The flags of ``server.py simulator``. How a task is built, clients may override.

    Attributes:
        simulators: Further simulators to offer, module:function of your own.
        simulator_python: Interpreters of simulators that need another environment, such as
            libero=/opt/libero/bin/python.
        libero_assets: Folder of LIBERO's meshes, textures and scenes, which its package lacks.
        http_port: Port of the HTTP front, with a page to try it; none by default.
        http_host: Its address, where it is another than --host.
    """

    simulators: tuple[str, ...] = ()
    simulator_python: tuple[str, ...] = ()
    libero_assets: str | None = None
    http_port: int | None = None
    http_host: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.http_port is not None and not 0 <= self.http_port <= 65535:
            raise ConfigurationError(f"http_port is {self.http_port}, expected 0 to 65535")


def make_simulator_server(flags: SimulatorFlags) -> SimulatorServer:
    """Return the server of every simulator in the table, of installed packages, and of the flags.

    Raises:
        RobowireError: An option is unusable, or the port cannot be opened; the message says what to do.
    """
    offered, pythons = offered_simulators(flags)
    return SimulatorServer(offered, flags, task=flags, pythons=pythons)


def offered_simulators(flags: SimulatorFlags) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the simulators that the flags offer and the interpreters of some; simulators inherit the rest.

    Raises:
        ConfigurationError: A flag is unusable.
    """
    offered = entries("simulator", SIMULATORS)
    for name in flags.simulators:
        if ":" not in name:
            raise ConfigurationError(
                f"simulators names {name!r}, expected module:function. Offered already: {', '.join(offered)}"
            )
    offered.update({name: Entry(name) for name in flags.simulators})
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


# An extra, so it is imported when it is asked for.
_FRONTS = {"http": Entry("robowire.frontends.http.server:HttpServer", extra="http")}


def make_simulator_doors(flags: SimulatorFlags) -> Server:
    """Return the server that the flags ask for, with the HTTP front where they name its port.

    Raises:
        RobowireError: As :func:`make_simulator_server`; or what the front needs is not installed.
    """
    if flags.http_port is None:
        return make_simulator_server(flags)
    make_front = load("front", "http", _FRONTS)
    host = flags.host if flags.http_host is None else flags.http_host
    front: Server = make_front(make_simulator_server(flags), host=host, port=flags.http_port)
    return front


@dataclass(frozen=True)
class DoctorFlags(SimulatorFlags):
    """The flags of ``server.py doctor``: its own, and the simulator server's, which it would start with them.

    Attributes:
        frame: File to save the rendered picture in, such as frame.png.
        json: Print all that was found as JSON.
        load_timeout_s: Seconds to import a simulator, and again to load its task.
    """

    frame: str | None = None
    json: bool = False
    # Whoever asks a doctor does not wait five minutes for each simulator; LIBERO's first takes 10 s.
    load_timeout_s: float = 60.0


def examine(flags: DoctorFlags) -> int:
    """Print how things stand and return the exit code: 0 where all is well, else 1.

    Raises:
        ConfigurationError: A flag is unusable.
    """
    from robowire.cli.doctor import Doctor, run

    offered, pythons = offered_simulators(flags)
    wanted = (*flags.simulators, *pythons)
    doctor = Doctor(offered, pythons, wanted=wanted, timeout_s=flags.load_timeout_s)
    return run(doctor, frame=flags.frame, as_json=flags.json)
