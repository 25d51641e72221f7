"""``dashboard``, and ``--dashboard`` of other commands: a page in a process of its own."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from robowire.address import is_loopback, parse_address
from robowire.cli.command import Program
from robowire.cli.evaluation_flags import EpisodeServersFlags, EvaluateFlags
from robowire.dashboard.options import DashboardFlags, DashboardSettings, PageFlags, WatchedServer
from robowire.dashboard.process import DashboardProcess
from robowire.errors import ConfigurationError
from robowire.serving.tcp.options import TcpOptions

__all__ = ["DashboardCommandFlags", "ServerPage", "evaluation_page", "run", "server_page"]

F = TypeVar("F")

# An evaluation's page has a port next to those of the servers on the same machine.
_OTHER_PORTS = 20


@dataclass(frozen=True)
class DashboardCommandFlags(PageFlags, EpisodeServersFlags):
    """Flags of ``dashboard``: the servers to show.

    Attributes:
        address: Policy server, simulator server or fleet as host:port, or unix:PATH on this machine.
        simulator_address: A second server to show, as host:port.
        results: Folder of an evaluation to show, while it runs or later.
    """

    results: str | None = None


def run(flags: DashboardCommandFlags, program: Program) -> int:
    """Serve the page until a signal."""
    servers = []
    if flags.address is not None or (flags.results is None and flags.simulator_address is None):
        servers.append(_policy_server(flags))
    if flags.simulator_address is not None:
        servers.append(_simulator_server(flags, flags.simulator_address))
    token = flags.token or flags.simulator_token
    flags.check_dashboard(token)
    done = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        done.set()

    with DashboardProcess(flags.dashboard_host, flags.dashboard_port) as page:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        page.start(_settings(flags, servers, token, flags.results))
        sys.stdout.write(f"dashboard: {page.url}\n")
        sys.stdout.flush()
        while not done.wait(0.5) and page.alive:
            pass
        return 0 if done.is_set() else 1


def _settings(
    flags: PageFlags, servers: list[WatchedServer], token: str | None, results: str | None
) -> DashboardSettings:
    return DashboardSettings(
        servers=tuple(servers),
        results=None if results is None else str(Path(results).resolve()),
        token=token,
        control=flags.dashboard_control,
        allowed_hosts=flags.dashboard_allowed_hosts,
    )


def _policy_server(flags: EpisodeServersFlags) -> WatchedServer:
    tls = {"tls": flags.tls, "ca": flags.tls_ca, "cert": flags.tls_cert, "key": flags.tls_key}
    return WatchedServer(flags.host, flags.port, flags.token, tls)


def _simulator_server(flags: EpisodeServersFlags, address: str) -> WatchedServer:
    host, port = parse_address("simulator_address", address, example="localhost:5555")
    tls = {
        "tls": flags.simulator_tls,
        "ca": flags.simulator_tls_ca,
        "cert": flags.simulator_tls_cert,
        "key": flags.simulator_tls_key,
    }
    return WatchedServer(host, port, flags.simulator_token, tls)


class ServerPage:
    """The page of a server of this process.

    Args:
        process: Its process, which listens already.
        flags: The server's flags.

    Attributes:
        url: Address of the page.
    """

    def __init__(self, process: DashboardProcess, flags: Any) -> None:
        self._process = process
        self._flags = flags
        self.url = process.url

    def start(self, address: tuple[str, int]) -> None:
        """Show the server, which listens at this address and at its Unix socket."""
        flags = self._flags
        if flags.unix_socket is not None:
            server = WatchedServer(f"unix:{flags.unix_socket}", 0, flags.token)
        else:  # TLS of a fleet, whose clients speak it everywhere
            tls = {"tls": flags.tls_cert is not None, "ca": flags.tls_cert}
            host = (
                "localhost"
                if address[0] in ("0.0.0.0", "::") or is_loopback(f"{address[0]}:0")
                else address[0]
            )
            server = WatchedServer(host, address[1], flags.token, tls)
        self._process.start(_settings(flags, [server], flags.token, None))


@contextmanager
def server_page(flags: F) -> Iterator[tuple[F, ServerPage | None]]:
    """Yield the flags of a server and its page; ``None`` where the flags ask for none.

    The page asks the server on a Unix socket in a folder of this user's: there it needs no TLS, and takes no
    place of the TCP port's clients.
    """
    assert isinstance(flags, DashboardFlags)
    assert isinstance(flags, TcpOptions)
    if not flags.dashboard:
        if flags.dashboard_control:
            raise ConfigurationError("dashboard_control is of a dashboard: add --dashboard")
        yield flags, None
        return
    flags.check_dashboard(flags.token)
    folder = None
    with DashboardProcess(flags.dashboard_host, flags.dashboard_port) as process:
        try:
            is_tls_fleet = flags.tls_cert is not None and hasattr(flags, "num_services")
            if flags.unix_socket is None and not is_tls_fleet:
                folder = tempfile.mkdtemp(prefix="robowire-")
                flags = dataclasses.replace(flags, unix_socket=f"{folder}/server.sock")
            yield flags, ServerPage(process, flags)
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def evaluation_page(flags: EvaluateFlags, simulator: tuple[str, int], folder: Path) -> Iterator[str | None]:
    """Yield the address of a page that shows an evaluation and its two servers; ``None`` without the flag.

    Args:
        flags: Flags of the evaluation.
        simulator: Address of the simulator server.
        folder: Folder of the results.
    """
    if not flags.dashboard:
        yield None
        return
    token = flags.token or flags.simulator_token
    flags.check_dashboard(token)
    search = _OTHER_PORTS if flags.dashboard_port else 0
    servers = [] if flags.upstream is not None else [_policy_server(flags)]
    if flags.simulator_address is not None:
        servers.append(_simulator_server(flags, flags.simulator_address))
    else:
        servers.append(WatchedServer(*simulator, flags.simulator_token))
    with DashboardProcess(flags.dashboard_host, flags.dashboard_port, search=search) as page:
        page.start(_settings(flags, servers, token, str(folder)))
        yield page.url
