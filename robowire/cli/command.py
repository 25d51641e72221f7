"""Rows of a program's table of commands, and the program that holds them. Runs on Python 3.8."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robowire.errors import ConfigurationError
from robowire.registry import Entry, load

__all__ = ["Command", "Program"]


@dataclass(frozen=True)
class Command:
    """A command of a program.

    Attributes:
        summary: One line for ``--help``.
        options: Import string of a frozen dataclass. Its fields are the flags and their ``Attributes:``
            documentation is the help, see :mod:`robowire.cli.parser`. It needs numpy only, so that ``--help``
            works without any extra.
        run: Import string of a function of these options and the :class:`Program` that does the work and
            returns the exit code.
        env_prefix: First part of the names in the environment: ``ROBOWIRE`` for ``ROBOWIRE_PORT``.
        extra: Extra of the wheel that installs what ``run`` imports.
        python: Oldest Python that runs it.
        log_level: Least important messages that are shown, unless ``--log_level`` is given.
    """

    summary: str
    options: str
    run: str
    env_prefix: str
    extra: str = ""
    python: tuple[int, int] = (3, 8)
    log_level: str = "warning"

    def load_options(self) -> Any:
        """Return the dataclass of the flags."""
        return load("command", self.options, {})

    def load_run(self, name: str) -> Any:
        """Return the function that does the work.

        Raises:
            MissingDependency: A package is not installed; names the extra.
        """
        return load("command", name, {name: Entry(self.run, extra=self.extra)})

    def require_python(self, name: str) -> None:
        """Raise ``ConfigurationError`` where this Python is too old."""
        if sys.version_info < self.python:
            wanted, found = (".".join(map(str, version)) for version in (self.python, sys.version_info[:2]))
            raise ConfigurationError(
                f"command {name!r} needs Python {wanted} or newer, and this is Python {found}"
            )


@dataclass(frozen=True)
class Program:
    """A program: its name, its commands, and what they can serve.

    Attributes:
        name: Name in messages, such as ``server.py``.
        commands: Commands by name, two words for those that change a running server (``fleet scale``).
        policies: Table of policies; those of installed packages are offered too.
        simulators: Table of simulators; those of installed packages are offered too.
        checkout: Folder of ``server.py`` and ``client.py``; ``None`` for the installed ``robowire``.
    """

    name: str
    commands: Mapping[str, Command]
    policies: Mapping[str, Entry] = field(default_factory=dict)
    simulators: Mapping[str, Entry] = field(default_factory=dict)
    checkout: Path | None = None

    def start_command(self, script: str) -> list[str]:
        """Return the words that start ``server.py`` or ``client.py`` from any folder."""
        if self.checkout is None:
            return [sys.executable, "-m", "robowire.cli"]
        return [sys.executable, str(self.checkout / script)]

    def example(self, script: str, *words: str) -> str:
        """Return a shell command that runs from the current folder as it stands."""
        python = sys.executable if _found("python") != sys.executable else "python"
        if self.checkout is not None:
            start = [_short(python), _short(str(self.checkout / script))]
        elif _found("robowire"):
            start = ["robowire"]
        else:
            start = [_short(python), "-m", "robowire.cli"]
        return " ".join(map(shlex.quote, [*start, *words]))


def _found(program: str) -> str | None:
    return shutil.which(program)


def _short(path: str) -> str:
    """Return a path as seen from the current folder, or the absolute path where that is shorter."""
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path
