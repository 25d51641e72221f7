#!/usr/bin/env python
"""The server program: read the options, load what is served, listen, serve, drain.

A command is a row of ``COMMANDS``, two words where it is about another command's running server; what it
needs is imported when it is chosen. Its flags are the fields of a frozen dataclass, documented where they are
defined. Exit codes: 0, served and drained, or all is well; 1, the
doctor found something wrong; 2, an option, file, port or device cannot be used; 130, interrupted before it
served, or told twice to stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import inspect
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from jsonargparse import ActionYesNo, ArgumentParser

from policies.registry import POLICIES
from robowire import __version__
from robowire.contracts import PolicyOptions, TaskOptions
from robowire.errors import ConfigurationError, RobowireError
from robowire.fleet.asking import ask_fleet
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.options import FleetOptions
from robowire.fleet.table import table
from robowire.registry import Entry, entries, load, nearest
from robowire.serving.policy_server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator_server import SimulatorServer, SimulatorServerOptions

__all__ = [
    "COMMANDS",
    "Command",
    "DoctorFlags",
    "FleetFlags",
    "FleetScaleFlags",
    "FleetServer",
    "FleetStatusFlags",
    "PolicyFlags",
    "PolicyServer",
    "SimulatorFlags",
    "SimulatorServer",
    "examine",
    "main",
    "make_fleet",
    "make_policy_server",
    "make_simulator_doors",
    "make_simulator_server",
    "scale_fleet",
    "show_fleet",
    "simulator_server_of_environment",
    "stop_fleet",
]


class Server(Protocol):
    """What a command makes from its options."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""

    def describe(self) -> str:
        """Return one line on what is served."""

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`, then drain and return."""

    def stop(self) -> None:
        """Tell it to end; called in a signal handler."""


@dataclass(frozen=True)
class Command:
    """A row of ``COMMANDS``.

    Attributes:
        summary: One line for ``--help``.
        options: Import string of a frozen dataclass with a default for every field. Its fields are the flags,
            and their ``Attributes:`` documentation is the help.
        make: Import string of a function from these options to a :class:`Server`; or to an exit code, of a
            command that serves nothing and has done its work.
        env_prefix: What comes before a flag's name in the environment: ``ROBOWIRE`` for ``ROBOWIRE_PORT``.
        try_it: A command for the user to type next; ``{host}`` and ``{port}`` are filled in.
        argument: A field that is given as a word without a flag.
        aliases: Further names of flags and of their environment variables.
        log_level: Least important messages that are shown, unless a flag says otherwise.
    """

    summary: str
    options: str
    make: str
    env_prefix: str
    try_it: str = ""
    argument: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "info"


COMMANDS: dict[str, Command] = {
    "policy": Command(
        summary="answer observations with actions",
        options="server:PolicyFlags",
        make="server:make_policy_server",
        env_prefix="ROBOWIRE",
        try_it="python client.py infer --host {host} --port {port}",
        aliases={"model_name_or_path": "model_path"},
    ),
    "simulator": Command(
        summary="run simulators for clients, each in a process of its own",
        options="server:SimulatorFlags",
        make="server:make_simulator_doors",
        env_prefix="ROBOWIRE_SIM",
        try_it="python client.py evaluate --address localhost:5000 --simulator_address {host}:{port} "
        "--simulator robosuite --task Lift",
    ),
    "doctor": Command(
        summary="look whether simulators can be served here, and what their numbers depend on",
        options="server:DoctorFlags",
        make="server:examine",
        env_prefix="ROBOWIRE_SIM",  # the simulator server's, whose environment is examined
        log_level="error",
    ),
    "fleet": Command(
        summary="run many simulator servers behind one address, and replace those that fail",
        options="server:FleetFlags",
        make="server:make_fleet",
        env_prefix="ROBOWIRE_SIM",
        try_it="python server.py fleet status --address {host}:{port}",
    ),
    "fleet status": Command(
        summary="show the servers of a running fleet",
        options="server:FleetStatusFlags",
        make="server:show_fleet",
        env_prefix="ROBOWIRE_FLEET",
    ),
    "fleet scale": Command(
        summary="change how many servers a running fleet has",
        options="server:FleetScaleFlags",
        make="server:scale_fleet",
        env_prefix="ROBOWIRE_FLEET",
        argument="num_services",
    ),
    "fleet stop": Command(
        summary="let a running fleet finish and end",
        options="server:FleetStatusFlags",
        make="server:stop_fleet",
        env_prefix="ROBOWIRE_FLEET",
    ),
}


@dataclass(frozen=True)
class PolicyFlags(PolicyServerOptions):
    """The flags of ``server.py policy``.

    Attributes:
        policy: A name in the table of policies, or module:function of your own.
        model_name_or_path: Folder of a checkpoint; the embedded one by default.
        dataset_id: Which entry of the checkpoint's normalize.json to use; the first by default.
        device: cpu, cuda, cuda:N, or auto for CUDA where there is one.
        camera_names: Cameras in the order of the images, for a checkpoint that does not name them.
        policy_options: Options of one kind of policy only, such as --policy_options.nheads 8.
    """

    policy: str = "act"
    model_name_or_path: str | None = None
    dataset_id: str | None = None
    device: str = "auto"
    camera_names: tuple[str, ...] | None = None
    policy_options: Mapping[str, Any] = field(default_factory=dict)


def make_policy_server(flags: PolicyFlags) -> PolicyServer:
    """Return the server of the policy that the flags name.

    Raises:
        RobowireError: It cannot be loaded, or the port not be opened; the message says what to do.
    """
    options = PolicyOptions(
        model_name_or_path=flags.model_name_or_path,
        dataset_id=flags.dataset_id,
        device=flags.device,
        camera_names=flags.camera_names,
        extra=flags.policy_options,
    )
    policy = load("policy", flags.policy, POLICIES)(options)
    folder = flags.model_name_or_path
    return PolicyServer(
        policy,
        flags,
        device=str(getattr(policy, "device", flags.device)),
        model_name=None if folder is None else Path(folder).resolve().name,
    )


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
    offered, pythons = _offered(flags)
    return SimulatorServer(offered, flags, task=flags, pythons=pythons)


def _offered(flags: SimulatorFlags) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the simulators that the flags offer and the interpreters of some; simulators inherit the rest.

    Raises:
        ConfigurationError: A flag is unusable.
    """
    from benchmark.registry import SIMULATORS

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
    from benchmark.doctor import Doctor, run

    offered, pythons = _offered(flags)
    wanted = (*flags.simulators, *pythons)
    doctor = Doctor(offered, pythons, wanted=wanted, timeout_s=flags.load_timeout_s)
    return run(doctor, frame=flags.frame, as_json=flags.json)


# An extra, so it is imported when it is asked for.
_FRONTS = {"http": Entry("robowire.gateways.http.front:HttpFront", extra="http")}


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


def simulator_server_of_environment(**changes: Any) -> SimulatorServer:
    """Return what ``server.py simulator`` without a flag would serve: ``ROBOWIRE_SIM_*`` count, and defaults.

    Args:
        changes: Fields of :class:`SimulatorFlags` that are to be different.

    Raises:
        RobowireError: As :func:`make_simulator_server`.
    """
    flags, _ = _parse("simulator", COMMANDS["simulator"], [])
    return make_simulator_server(dataclasses.replace(flags, **changes))


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
    offered, _ = _offered(flags)  # here, and not in each server's last words
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
    program = [sys.executable, str(Path(__file__).resolve()), "simulator", "--log_level", level]
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
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigurationError(
                f"address is {self.address!r}, expected host:port, such as localhost:5555"
            )
        return ask_fleet(host.strip("[]"), int(port), method, token=self.auth_token, **params)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        rows = "".join(f"  {name:<12} {command.summary}\n" for name, command in COMMANDS.items())
        print(f"usage: server.py COMMAND [flags]\n\n{rows}\nserver.py COMMAND --help shows its flags.")
        return 0
    if name == "--version":
        print(f"robowire {__version__}")
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(
            f"server.py: no command is called {name!r}.{nearest(name, COMMANDS)} Known: {known}",
            file=sys.stderr,
        )
        return 2
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    command = COMMANDS[name]
    try:
        options, log_level = _parse(name, command, rest)
        logging.basicConfig(
            level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
        )
        made: Server | int = _load(command.make)(options)
    except RobowireError as exc:
        print(f"server.py {name}: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if isinstance(made, int):
        return made
    _serve(made, command)
    return 0


def _load(target: str) -> Any:
    return load("command", target, {})


def _serve(server: Server, command: Command) -> None:
    told = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        if told and signum == signal.SIGINT:
            os._exit(130)  # at once: threads with requests in hand would keep the interpreter waiting
        told = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nfinishing the requests in hand; Ctrl-C again ends at once\n")
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    host, port = server.address
    usable = _usable_hosts(host)
    print(server.describe())
    print(f"listening on {_join(host, port)}: " + ", ".join(_join(name, port) for name in usable))
    print(f"try it: {command.try_it.format(host=usable[0], port=port)}", flush=True)
    server.serve_forever()
    if threading.active_count() > 1:
        # A policy that hangs. Ending the interpreter under its thread can crash, and we did finish: say so.
        sys.stdout.flush()
        os._exit(0)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _usable_hosts(host: str) -> list[str]:
    """Return what clients can put for ``host``, which may mean every address of this machine."""
    if host not in ("0.0.0.0", "::"):
        return [host]
    hosts = ["localhost"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it asks the kernel which of our addresses a packet to the outside would carry.
            probe.connect(("192.0.2.1", 9))
            hosts.append(probe.getsockname()[0])
        except OSError:  # no network but loopback
            pass
    return hosts


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and names the flag that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what ``main`` prints."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        message = re.sub(r'^Parser key "(\w+)":', r"\1:", " ".join(message.split()))
        message = re.sub(r"Expected a <class '(\w+)'>. Got value: (.*)", r"expected \1, found '\2'", message)
        hint = " See --help."
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            hint = nearest(unknown[1], flags) or hint
        elif unknown := re.match(r"Option '(\w+)' is not accepted", message):
            hint = nearest(unknown[1], [flag.lstrip("-") for flag in flags]) or hint
        raise ConfigurationError(f"{message}.{hint}") from ex


def _parse(name: str, command: Command, arguments: Sequence[str]) -> tuple[Any, str]:
    """Return the command's options and the log level.

    A flag beats the environment, the environment the file, the file the default.
    """
    options_class = _load(command.options)
    # jsonargparse would let a file named on the command line beat the environment; as a default file it does
    # not.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", default=os.environ.get(f"{command.env_prefix}_CONFIG"))
    known, rest = first.parse_known_args(arguments)
    if known.config is not None and (not Path(known.config).exists() or Path(known.config).is_dir()):
        raise ConfigurationError(f"there is no file {known.config!r}: check --config")
    parser = _Parser(
        prog=f"server.py {name}",
        description=f"{command.summary.capitalize()}.",
        epilog=f"Every flag is also a key of the --config file and an environment variable, such as "
        f"{command.env_prefix}_PORT=5001. A flag beats the environment, the environment beats the file.",
        env_prefix=command.env_prefix,
        default_config_files=[] if known.config is None else [glob.escape(known.config)],
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--version", action="version", version=f"robowire {__version__}")
    # A command's own flags first, then those it shares.
    order = [name for cls in options_class.__mro__ for name in vars(cls).get("__annotations__", ())]
    fields = sorted(dataclasses.fields(options_class), key=lambda item: order.index(item.name))
    hints, documentation = typing.get_type_hints(options_class), _documentation(options_class)
    for item in fields:
        flags = [f"--{item.name}"] + [
            f"--{alias}" for key, alias in command.aliases.items() if key == item.name
        ]
        if item.name == command.argument:
            parser.add_argument(item.name, type=hints[item.name], help=documentation[item.name])
        else:
            _add_flag(parser, flags, hints[item.name], _default(item), documentation[item.name])
    for key, alias in command.aliases.items():
        given = os.environ.get(f"{command.env_prefix}_{alias}".upper())
        if given is not None:
            os.environ.setdefault(f"{command.env_prefix}_{key}".upper(), given)
    levels = ("debug", "info", "warning", "error")
    parser.add_argument(
        "--log_level", choices=levels, default=command.log_level, help="least important messages to show"
    )
    parsed = parser.parse_args(rest, env=True)
    values = {item.name: getattr(parsed, item.name) for item in fields}
    for key, hint in hints.items():
        if _is_names(hint) and values[key] is not None:
            values[key] = tuple(name for entry in values[key] for name in entry.split(",") if name)
    return options_class(**values), parsed.log_level


def _add_flag(parser: Any, flags: list[str], hint: Any, default: Any, text: str) -> None:
    text = text.replace("%", "%%")
    if hint is bool:
        parser.add_argument(*flags, action=ActionYesNo(no_prefix="no_"), default=default, help=text)
    elif _is_names(hint):
        parser.add_argument(*flags, type=str, nargs="+", default=default, metavar="NAME", help=text)
    elif typing.get_origin(hint) is Mapping or typing.get_origin(hint) is dict:
        parser.add_argument(*flags, type=dict[str, Any], default=default, metavar="OPTIONS", help=text)
    else:
        parser.add_argument(*flags, type=hint, default=default, metavar="VALUE", help=text)


def _is_names(hint: Any) -> bool:
    return hint in (tuple[str, ...], tuple[str, ...] | None)


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _documentation(options_class: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say under ``Attributes:``."""
    found: dict[str, str] = {}
    for cls in reversed(options_class.__mro__):
        _, _, attributes = (inspect.cleandoc(cls.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): ((?:.|\n(?!    \w))*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


if __name__ == "__main__":
    from server import main as _main  # under its own name, which COMMANDS refers to

    sys.exit(_main())
