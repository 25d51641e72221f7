#!/usr/bin/env python
"""The server program: read the options, load what is served, listen, serve, drain.

A command is a row of ``COMMANDS``, two words where it is about another command's running server; its room in
``commands/`` is imported when it is chosen. Exit codes: 0, served and drained, or all is well; 1, the doctor
found something wrong; 2, an option, file, port or device cannot be used; 130, interrupted before it served,
or told twice to stop.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from robowire import __version__
from robowire.address import join_address
from robowire.cli.command import Command, Server, load_target, parse
from robowire.errors import RobowireError
from robowire.registry import nearest
from robowire.serving.policy.service import PolicyServer
from robowire.serving.simulator.service import SimulatorServer

__all__ = ["COMMANDS", "PolicyServer", "SimulatorServer", "main", "simulator_server_of_environment"]


COMMANDS: dict[str, Command] = {
    "policy": Command(
        summary="answer observations with actions",
        options="robowire.cli.policy:PolicyFlags",
        make="robowire.cli.policy:make_policy_server",
        env_prefix="ROBOWIRE",
        try_it="python client.py infer --host {host} --port {port}",
        aliases={"model_name_or_path": "model_path"},
    ),
    "simulator": Command(
        summary="run simulators for clients, each in a process of its own",
        options="robowire.cli.simulator:SimulatorFlags",
        make="robowire.cli.simulator:make_simulator_doors",
        env_prefix="ROBOWIRE_SIM",
        try_it="python client.py evaluate --address localhost:5000 --simulator_address {host}:{port} "
        "--simulator robosuite --task Lift",
    ),
    "doctor": Command(
        summary="look whether simulators can be served here, and what their numbers depend on",
        options="robowire.cli.simulator:DoctorFlags",
        make="robowire.cli.simulator:examine",
        env_prefix="ROBOWIRE_SIM",  # the simulator server's, whose environment is examined
        log_level="error",
    ),
    "fleet": Command(
        summary="run many simulator servers behind one address, and replace those that fail",
        options="robowire.cli.fleet:FleetFlags",
        make="robowire.cli.fleet:make_fleet",
        env_prefix="ROBOWIRE_SIM",
        try_it="python server.py fleet status --address {host}:{port}",
    ),
    "fleet status": Command(
        summary="show the servers of a running fleet",
        options="robowire.cli.fleet:FleetStatusFlags",
        make="robowire.cli.fleet:show_fleet",
        env_prefix="ROBOWIRE_FLEET",
    ),
    "fleet scale": Command(
        summary="change how many servers a running fleet has",
        options="robowire.cli.fleet:FleetScaleFlags",
        make="robowire.cli.fleet:scale_fleet",
        env_prefix="ROBOWIRE_FLEET",
        argument="num_services",
    ),
    "fleet stop": Command(
        summary="let a running fleet finish and end",
        options="robowire.cli.fleet:FleetStatusFlags",
        make="robowire.cli.fleet:stop_fleet",
        env_prefix="ROBOWIRE_FLEET",
    ),
}


def simulator_server_of_environment(**changes: Any) -> SimulatorServer:
    """Return what ``server.py simulator`` without a flag would serve: ``ROBOWIRE_SIM_*`` count, and defaults.

    Args:
        changes: Fields of :class:`robowire.cli.simulator.SimulatorFlags` that are to be different.

    Raises:
        RobowireError: As :func:`robowire.cli.simulator.make_simulator_server`.
    """
    from robowire.cli.simulator import make_simulator_server

    flags, _ = parse("simulator", COMMANDS["simulator"], [])
    return make_simulator_server(dataclasses.replace(flags, **changes))


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
        options, log_level = parse(name, command, rest)
        logging.basicConfig(
            level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
        )
        made: Server | int = load_target(command.make)(options)
    except RobowireError as exc:
        print(f"server.py {name}: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if isinstance(made, int):
        return made
    _serve(made, command)
    return 0


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
    reachable = ", ".join(join_address(name, port) for name in usable)
    print(f"listening on {join_address(host, port)}: {reachable}")
    print(f"try it: {command.try_it.format(host=usable[0], port=port)}", flush=True)
    server.serve_forever()
    if threading.active_count() > 1:
        # A policy that hangs. Ending the interpreter under its thread can crash, and we did finish: say so.
        sys.stdout.flush()
        os._exit(0)


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


if __name__ == "__main__":
    sys.exit(main())
