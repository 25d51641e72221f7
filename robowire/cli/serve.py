"""Run a server until a signal, with a banner for the person who started it."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from robowire.address import join_address
from robowire.cli.background_writer import BackgroundLogHandler, BackgroundWriter
from robowire.cli.dashboard import ServerPage
from robowire.dashboard.options import DashboardFlags
from robowire.serving.log_buffer import LogBuffer
from robowire.serving.runner import Runner
from robowire.serving.tcp.options import TcpOptions

__all__ = ["connection_words", "serve", "warning_of_open_port"]

logger = logging.getLogger(__name__)


def connection_words(options: TcpOptions, *, prefix: str = "--") -> list[str]:
    """Return the flags that a client needs for a server with these options, in addition to its address.

    Args:
        options: Options of the server.
        prefix: Prefix of the flags.
    """
    words = []
    if options.tls_cert is not None:
        words = (
            [f"{prefix}tls_ca", options.tls_cert] if _is_own_authority(options.tls_cert) else [f"{prefix}tls"]
        )
        if options.tls_client_ca is not None:
            words += [f"{prefix}tls_cert", "CLIENT.pem"]
    # Its value is a secret, and the banner is in logs.
    return words if options.token is None else [*words, f"{prefix}token", "TOKEN"]


def _is_own_authority(cert: str) -> bool:
    """Return whether a certificate signed itself, so that clients trust it by its own file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cert)
    return any(found["subject"] == found["issuer"] for found in context.get_ca_certs())


def warning_of_open_port(kind: str, options: TcpOptions, host: str) -> str:
    """Return what a person should know of a port that other machines can use without a token; else nothing.

    Args:
        kind: ``"policy"``, ``"simulator"`` or ``"fleet"``.
        options: Options of the server.
        host: Address that it listens on.
    """
    if options.token is not None or options.tls_client_ca is not None or options.insecure:
        return ""
    try:
        if ipaddress.ip_address(host).is_loopback:
            return ""
    except ValueError:
        pass
    return (
        f"WITHOUT A TOKEN, EVERY MACHINE THAT REACHES THIS PORT CAN {_USES[kind]}: --token SECRET lets only "
        "its holders in, --host 127.0.0.1 only this machine; --insecure silences this line"
    )


_USES = {
    "policy": "ASK THE POLICY FOR ACTIONS",
    "simulator": "START SIMULATORS AND READ SNAPSHOTS",
    "fleet": "FIND AND USE ITS SIMULATORS",
}


def serve(
    server: Runner[Any],
    options: TcpOptions,
    examples: Mapping[str, Callable[[str, str], str]],
    *,
    page: ServerPage | None = None,
) -> int:
    """Print the banner, serve until a signal, drain, and return 0. A second SIGINT ends at once.

    SIGINT, SIGTERM and SIGHUP (a terminal that closes) drain. Log lines are written by a thread, so that a
    pipe that nobody reads stops neither the server nor its end.

    Args:
        server: Server that listens already.
        options: Its options.
        examples: Shell commands by what they are for, each from the server's host and port; the last is
            "try it", which runs as it stands.
        page: Dashboard to start; ``None`` for none.
    """
    # For dashboards, this server's own or one elsewhere that asks with the token.
    server.service.log = LogBuffer()
    server.service.control = isinstance(options, DashboardFlags) and options.dashboard_control
    logging.getLogger().addHandler(server.service.log)
    signalled = False
    errors = BackgroundWriter(2)
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler and handler.stream is sys.stderr:
            background = BackgroundLogHandler(errors)
            background.setFormatter(handler.formatter)
            logging.getLogger().removeHandler(handler)
            logging.getLogger().addHandler(background)

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled and signum == signal.SIGINT:
            os._exit(130)  # at once: threads with requests in hand would keep the interpreter waiting
        signalled = True
        errors.write("\nfinishing the requests in hand; Ctrl-C again ends at once\n")
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    host, port = server.address
    if warning := warning_of_open_port(server.service.kind, options, host):
        logger.warning("%s", warning)
    usable = _usable_hosts(host)
    reachable = ", ".join(join_address(name, port) for name in usable)
    what, *frontends = server.describe()
    lines = [
        what,
        f"listening on {join_address(host, port)}: {reachable}",
        *frontends,
        *(() if page is None else (f"dashboard: {page.url}",)),
        *(f"{purpose}: {example(usable[0], str(port))}" for purpose, example in examples.items()),
    ]
    if page is not None:
        page.start(server.address)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    server.serve_forever()
    errors.flush()
    if any(thread.name == "dispatcher" for thread in threading.enumerate()):
        # A policy that hangs. Ending the interpreter under its thread can crash, and the drain is done.
        sys.stdout.flush()
        os._exit(0)
    return 0


def _usable_hosts(host: str) -> list[str]:
    """Return what clients can use for ``host``, which may mean every address of this machine."""
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
