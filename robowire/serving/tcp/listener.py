"""Listening sockets, and the errors of those that cannot be opened."""

from __future__ import annotations

import errno
import socket

from robowire.errors import ConfigurationError

__all__ = ["listen"]


def listen(host: str, port: int, *, flags: str = "--") -> socket.socket:
    """Return a listening socket, on an address that a restarted server can use again at once.

    Args:
        host: Address or name to listen on.
        port: TCP port; 0 picks a free one.
        flags: Prefix of the flags that a message names: ``"--"`` for ``--host`` and ``--port``.

    Raises:
        ConfigurationError: The address can't be listened on; says what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigurationError(f"cannot listen on {host!r}: {exc.strerror}: check {flags}host") from exc
    # "localhost" is two addresses, and old clients try IPv4 only.
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    # asyncio turns Nagle's algorithm off, which costs 40 ms a reply, only where it sees this number.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A restart must not wait for TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" takes IPv4 clients too
        listener.bind(address)
        listener.listen(128)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            message = f"port {port} is in use: stop what listens there, or choose another with {flags}port"
        elif exc.errno == errno.EACCES:
            message = f"port {port} may not be opened by this user: choose one above 1023 with {flags}port"
        else:
            message = f"cannot listen on {host}:{port}: {exc.strerror or exc}: check {flags}host"
        raise ConfigurationError(message) from exc
    return listener
