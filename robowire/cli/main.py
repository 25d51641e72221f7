"""The programs ``server.py``, ``client.py`` and ``robowire``: choose a command, run it, report errors.

Imports nothing of a command before it is chosen. Runs on Python 3.8 with numpy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from robowire.cli.command import Command, Program
from robowire.cli.log_lines import configure_logging
from robowire.cli.parser import parse
from robowire.cli.tracing_flags import TracingFlags
from robowire.errors import ConfigurationError, MissingDependency, RobowireError, UnknownName
from robowire.registry import Entry, nearest
from robowire.version import __version__

__all__ = [
    "CLIENT_COMMANDS",
    "ENVIRONMENT",
    "EXIT_CODES",
    "SERVER_COMMANDS",
    "client_program",
    "main",
    "run",
    "server_program",
]

EXIT_CODES: Mapping[int, str] = {
    0: "done, or served and drained",
    1: "a server cannot be reached or answered with an error, the doctor found a problem, no episode was "
    "finished, or a replayed answer differs",
    2: "an option, file, folder, port, device or package cannot be used, or policy and simulator do not fit",
    130: "interrupted by Ctrl-C",
}

# The one prefix of each program; two commands of one program share their variables.
ENVIRONMENT: Mapping[str, str] = {
    "policy": "ROBOWIRE",
    "inspect": "ROBOWIRE_INSPECT",
    "simulator, doctor, fleet": "ROBOWIRE_SIM",
    "fleet status, fleet scale, fleet stop": "ROBOWIRE_FLEET",
    "ping, info, infer, bench, debug, replay, evaluate, lerobot-eval, compare, merge, "
    "report, dashboard, sweep": "ROBOWIRE_CLIENT",
}

SERVER_COMMANDS: Mapping[str, Command] = {
    "policy": Command(
        "answer observations with actions",
        options="robowire.cli.policy:PolicyFlags",
        run="robowire.cli.policy:run",
        env_prefix="ROBOWIRE",
        python=(3, 10),
        log_level="info",
    ),
    "inspect": Command(
        "say what a folder of a checkpoint is, what it needs and what it answers",
        options="robowire.cli.inspect_checkpoint:InspectFlags",
        run="robowire.cli.inspect_checkpoint:run",
        env_prefix="ROBOWIRE_INSPECT",
        python=(3, 10),
        log_level="error",
    ),
    "simulator": Command(
        "run simulators for clients, each in a process of its own",
        options="robowire.cli.simulator:SimulatorFlags",
        run="robowire.cli.simulator:run",
        env_prefix="ROBOWIRE_SIM",
        python=(3, 10),
        log_level="info",
    ),
    "doctor": Command(
        "check whether simulators can be served here, and what their results depend on",
        options="robowire.cli.simulator:DoctorFlags",
        run="robowire.cli.doctor:run",
        env_prefix="ROBOWIRE_SIM",  # the simulator server's, whose environment is examined
        python=(3, 10),
        log_level="error",
    ),
    "fleet": Command(
        "run many simulator servers behind one address, and replace those that fail",
        options="robowire.cli.fleet:FleetFlags",
        run="robowire.cli.fleet:run",
        env_prefix="ROBOWIRE_SIM",
        python=(3, 10),
        log_level="info",
    ),
    "fleet status": Command(
        "show the servers of a running fleet",
        options="robowire.cli.fleet:FleetStatusFlags",
        run="robowire.cli.fleet:show_fleet",
        env_prefix="ROBOWIRE_FLEET",
        python=(3, 10),
    ),
    "fleet scale": Command(
        "change how many servers a running fleet has",
        options="robowire.cli.fleet:FleetScaleFlags",
        run="robowire.cli.fleet:scale_fleet",
        env_prefix="ROBOWIRE_FLEET",
        python=(3, 10),
    ),
    "fleet stop": Command(
        "let a running fleet finish and end",
        options="robowire.cli.fleet:FleetStatusFlags",
        run="robowire.cli.fleet:stop_fleet",
        env_prefix="ROBOWIRE_FLEET",
        python=(3, 10),
    ),
}

CLIENT_COMMANDS: Mapping[str, Command] = {
    "ping": Command(
        "measure round trips to a server",
        options="robowire.cli.ping:PingFlags",
        run="robowire.cli.ping:run",
        env_prefix="ROBOWIRE_CLIENT",
    ),
    "info": Command(
        "show what a server reports about itself and what it serves",
        options="robowire.cli.info:InfoFlags",
        run="robowire.cli.info:run",
        env_prefix="ROBOWIRE_CLIENT",
    ),
    "infer": Command(
        "send random observations that fit the policy, and time the answers",
        options="robowire.cli.infer:InferFlags",
        run="robowire.cli.infer:run",
        env_prefix="ROBOWIRE_CLIENT",
    ),
    "bench": Command(
        "measure latency and throughput with several clients",
        options="robowire.cli.bench:BenchFlags",
        run="robowire.cli.bench:run",
        env_prefix="ROBOWIRE_CLIENT",
    ),
    "debug": Command(
        "send any bytes, whole or in pieces, and decode the reply",
        options="robowire.cli.debug:DebugFlags",
        run="robowire.cli.debug:run",
        env_prefix="ROBOWIRE_CLIENT",
    ),
    "replay": Command(
        "send a recorded session to a server, and compare the answers",
        options="robowire.cli.replay:ReplayFlags",
        run="robowire.cli.replay:run",
        env_prefix="ROBOWIRE_CLIENT",
        python=(3, 10),
    ),
    "evaluate": Command(
        "run a policy on a simulator: success rate, results and videos",
        options="robowire.cli.evaluation_flags:EvaluateFlags",
        run="robowire.cli.evaluate:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="evaluate",
        python=(3, 10),
    ),
    "lerobot-eval": Command(
        "evaluate with the flags of LeRobot",
        options="robowire.cli.evaluation_flags:LerobotEvalFlags",
        run="robowire.cli.lerobot_eval:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="evaluate",
        python=(3, 10),
    ),
    "compare": Command(
        "compare two folders of results by episode",
        options="robowire.cli.evaluation_flags:CompareFlags",
        run="robowire.cli.compare:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="evaluate",
        python=(3, 10),
    ),
    "merge": Command(
        "join the parts of one evaluation into one folder",
        options="robowire.cli.evaluation_flags:MergeFlags",
        run="robowire.cli.merge:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="evaluate",
        python=(3, 10),
    ),
    "report": Command(
        "write results as one HTML file: rates, plots, comparison, videos of failures",
        options="robowire.cli.evaluation_flags:ReportFlags",
        run="robowire.cli.report:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="report",
        python=(3, 10),
    ),
    "dashboard": Command(
        "serve a page that shows servers, live images and an evaluation",
        options="robowire.cli.dashboard:DashboardCommandFlags",
        run="robowire.cli.dashboard:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="dashboard",
        python=(3, 10),
    ),
    "sweep": Command(
        "plot success against latency, for each aggregation of chunks",
        options="robowire.cli.evaluation_flags:SweepFlags",
        run="robowire.cli.sweep:run",
        env_prefix="ROBOWIRE_CLIENT",
        extra="plots",
        python=(3, 10),
    ),
}

# Errors of how a program was called; others come from a server or a network.
_WRONG_CALL = (ConfigurationError, MissingDependency, UnknownName)


def server_program(
    *, policies: Mapping[str, Entry], simulators: Mapping[str, Entry], checkout: Path | None = None
) -> Program:
    """Return ``server.py`` with these tables."""
    return Program("server.py", SERVER_COMMANDS, policies, simulators, checkout)


def client_program(
    *, policies: Mapping[str, Entry], simulators: Mapping[str, Entry], checkout: Path | None = None
) -> Program:
    """Return ``client.py`` with these tables."""
    return Program("client.py", CLIENT_COMMANDS, policies, simulators, checkout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script ``robowire``: all commands, and what installed packages offer."""
    return run(Program("robowire", {**CLIENT_COMMANDS, **SERVER_COMMANDS}), arguments)


def run(program: Program, arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, see :data:`EXIT_CODES`."""
    try:
        code = _run_command(program, sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output ended, as ``head`` does; a connection that breaks is a RobowireError. What
        # is left in the buffer goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run_command(program: Program, arguments: Sequence[str]) -> int:
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        sys.stdout.write(_help(program))
        return 0
    if name == "--version":
        sys.stdout.write(f"robowire {__version__}\n")
        return 0
    prefix = program.name
    try:
        if name not in program.commands:
            known = ", ".join(program.commands)
            raise UnknownName(
                f"no command is called {name!r}.{nearest(name, program.commands)} Known: {known}"
            )
        if rest and f"{name} {rest[0]}" in program.commands:
            name, rest = f"{name} {rest[0]}", rest[1:]
        command = program.commands[name]
        command.require_python(name)
        prefix = f"{program.name} {name}"
        options, log = parse(program.name, name, command, rest)
        configure_logging(log)
        prefix = program.name
        run_it = command.load_run(name)
        prefix = f"{program.name} {name}"
        with ExitStack() as running:
            if isinstance(options, TracingFlags):
                running.enter_context(options.traced(f"robowire-{name.replace(' ', '-')}"))
            return int(run_it(options, program))
    except RobowireError as exc:
        sys.stderr.write(f"{prefix}: {exc}\n")
        return 2 if isinstance(exc, _WRONG_CALL) else 1
    except KeyboardInterrupt:
        return 130


def _help(program: Program) -> str:
    width = max(map(len, program.commands))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in program.commands.items()]
    prefixes = dict.fromkeys(command.env_prefix for command in program.commands.values())
    variables = [
        f"{prefix}_*: {', '.join(name for name, row in program.commands.items() if row.env_prefix == prefix)}"
        for prefix in prefixes
    ]
    codes = [f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()]
    lines = [f"usage: {program.name} COMMAND [flags]", "", *rows, ""]
    lines += [f"{program.name} COMMAND --help shows its flags; {program.name} --version the version.", ""]
    lines += ["environment variables, flag > environment > --config file > default:"]
    lines += [*(f"    {line}" for line in variables), ""]
    lines += ["exit codes:", *(f"    {line}" for line in codes)]
    return "".join(f"{line}\n" for line in lines)
