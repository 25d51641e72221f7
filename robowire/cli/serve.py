"""Run a server until a signal, with a banner for the person who started it."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from robowire.address import join_address
from robowire.serving.tcp.options import TcpOptions

__all__ = ["Server", "connection_words", "serve"]


class Server(Protocol):
    """What :func:`serve` runs."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""

    def describe(self) -> str:
        """Return one line on what is served."""

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`, then drain and return."""

    def stop(self) -> None:
        """Make :meth:`serve_forever` end; called in a signal handler."""


def connection_words(options: TcpOptions, *, prefix: str = "--") -> list[str]:
    """Return the flags that a client needs for a server with these options, beside its address.

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


def serve(server: Server, example: Callable[[str, str], str]) -> int:
    """Print the banner, serve until SIGINT or SIGTERM, drain, and return 0. A second SIGINT ends at once.

    Args:
        server: Server that listens already.
        example: Returns a shell command that tries the server, from its host and port.
    """
    signalled = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled and signum == signal.SIGINT:
            os._exit(130)  # at once: threads with requests in hand would keep the interpreter waiting
        signalled = True
        # Not sys.stderr.write: the signal may have come in the middle of one.
        os.write(2, b"\nfinishing the requests in hand; Ctrl-C again ends at once\n")
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    host, port = server.address
    usable = _usable_hosts(host)
    reachable = ", ".join(join_address(name, port) for name in usable)
    lines = [
        server.describe(),
        f"listening on {join_address(host, port)}: {reachable}",
        f"try it: {example(usable[0], str(port))}",
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    server.serve_forever()
    if threading.active_count() > 1:
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
