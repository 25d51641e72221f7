"""Flags and settings of the dashboard. Imports no Gradio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robowire.address import is_loopback
from robowire.errors import ConfigurationError

__all__ = ["DashboardFlags", "DashboardSettings", "PageFlags", "WatchedServer"]

DEFAULT_PORT = 7860  # Gradio's


@dataclass(frozen=True)
class PageFlags:
    """Where a dashboard is served, and what it may do.

    Attributes:
        dashboard_host: Address that the page listens on; others than this machine need --token.
        dashboard_port: Port of the page; 0 picks a free one.
        dashboard_control: Let the page end sessions and scale fleets; by default it only shows.
        dashboard_allowed_hosts: Names under which browsers may address the page, in addition to IP addresses,
            localhost and the name of the machine.
    """

    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = DEFAULT_PORT
    dashboard_control: bool = False
    dashboard_allowed_hosts: tuple[str, ...] = ()

    def check_dashboard(self, token: str | None) -> None:
        """Raise ``ConfigurationError`` where the page cannot be served as the flags say.

        Args:
            token: Token that viewers must show; ``None`` for none.
        """
        if not 0 <= self.dashboard_port <= 65535:
            raise ConfigurationError(f"dashboard_port is {self.dashboard_port}, expected 0 to 65535")
        host = "127.0.0.1" if self.dashboard_host == "localhost" else self.dashboard_host
        if token is None and not is_loopback(f"{host}:0"):
            raise ConfigurationError(
                f"dashboard_host is {self.dashboard_host!r}, where other machines could look without a "
                "token: add --token, or leave --dashboard_host out and use an SSH tunnel"
            )


@dataclass(frozen=True)
class DashboardFlags(PageFlags):
    """Whether a dashboard is served, and where.

    Attributes:
        dashboard: Serve a page that shows what runs, by a process of its own (extra dashboard).
    """

    dashboard: bool = False


@dataclass(frozen=True)
class WatchedServer:
    """A server that the page shows.

    Attributes:
        host: Name or address, or ``unix:PATH``.
        port: Its port.
        token: Its token, where it needs one.
        tls: ``tls``, whether to use it, and its PEM files ``ca``, ``cert`` and ``key``; files imply it.
    """

    host: str
    port: int = 0
    token: str | None = None
    tls: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DashboardSettings:
    """What a page shows, and to whom.

    Attributes:
        servers: Servers to show.
        results: Folder of an evaluation; ``None`` for none.
        token: Token that viewers must show; ``None`` for none.
        control: Whether viewers may end sessions and scale fleets.
        allowed_hosts: Names of the page, in addition to addresses.
    """

    servers: tuple[WatchedServer, ...] = ()
    results: str | None = None
    token: str | None = None
    control: bool = False
    allowed_hosts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DashboardSettings:
        """Return what :meth:`to_json` wrote."""
        servers = tuple(WatchedServer(**server) for server in values["servers"])
        return cls(**{**values, "servers": servers, "allowed_hosts": tuple(values["allowed_hosts"])})

    @property
    def folder(self) -> Path | None:
        """The folder of results."""
        return None if self.results is None else Path(self.results)
