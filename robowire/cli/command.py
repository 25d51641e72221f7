"""A command of a server program, and how its flags are read: they are the fields of a dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import inspect
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from jsonargparse import ActionYesNo, ArgumentParser

from robowire import __version__
from robowire.errors import ConfigurationError
from robowire.registry import load, nearest

__all__ = ["Command", "Server", "load_target", "parse"]


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


def load_target(target: str) -> Any:
    """Return what one of a command's import strings names."""
    return load("command", target, {})


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


def parse(name: str, command: Command, arguments: Sequence[str]) -> tuple[Any, str]:
    """Return the command's options and the log level.

    A flag beats the environment, the environment the file, the file the default.

    Args:
        name: The command's words.
        command: Its row.
        arguments: What follows its name on the command line.

    Raises:
        ConfigurationError: A flag is unknown or its value unusable; names what was probably meant.
    """
    options_class = load_target(command.options)
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
            found[name] = " ".join(text.replace("``", "").split())
    return found
