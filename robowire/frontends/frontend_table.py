"""A server's table of further wires: their ports are checked, and those that are given are served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from robowire.errors import ConfigurationError
from robowire.registry import Entry, load

if TYPE_CHECKING:
    from robowire.serving.runner import Frontend

__all__ = ["check_ports", "make_frontends"]


def check_ports(options: object, table: Mapping[str, Entry]) -> None:
    """Accept options whose ``<name>_port`` of each wire is ``None`` or a port.

    Raises:
        ConfigurationError: One is not.
    """
    for name in table:
        port = getattr(options, f"{name}_port")
        if port is not None and not 0 <= port <= 65535:
            raise ConfigurationError(f"{name}_port is {port}, expected 0 to 65535")


def make_frontends(options: object, table: Mapping[str, Entry]) -> list[Callable[[Any], Frontend]]:
    """Return what makes each frontend of a service whose port is given, in the order of the table.

    Raises:
        MissingDependency: A package of its extra is not installed.
    """

    def maker(name: str) -> Callable[[Any], Frontend]:
        make_frontend = load("frontend", name, table)
        return lambda service: make_frontend(service, options)

    return [maker(name) for name in table if getattr(options, f"{name}_port") is not None]
