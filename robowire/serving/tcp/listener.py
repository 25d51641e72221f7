"""Listening sockets, and the errors of those that cannot be opened."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from robowire.errors import ConfigurationError

__all__ = ["listen", "listen_unix", "remove_unix"]


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


def listen_unix(path: str) -> tuple[socket.socket, int]:
    """Return a socket that listens at a path, and the file's inode; it is for this user only (mode 0600).

    The file of a server that was killed is replaced. Any other file is left alone.

    Raises:
        ConfigurationError: Something listens there, the file is not a socket, or it can't be made; says what
            to do.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigurationError("unix_socket is given, and this platform has no Unix sockets: leave it out")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _one_at_a_time(path):
            _remove_stale(path)
            listener.bind(path)
            # Nobody can connect before listen.
            os.chmod(path, 0o600)
            inode = os.lstat(path).st_ino
            listener.listen(128)
    except OSError as exc:
        listener.close()
        reason = exc.strerror or exc
        raise ConfigurationError(f"cannot listen on unix:{path}: {reason}: check --unix_socket") from exc
    except BaseException:
        listener.close()
        raise
    return listener, inode


def remove_unix(path: str, inode: int) -> None:
    """Remove the file that :func:`listen_unix` has made, unless another server has replaced it.

    Call it before the listening socket is closed: until then no other file has the inode's number.
    """
    with suppress(OSError), _one_at_a_time(path):  # removed already, or the folder is gone
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


@contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """Keep other servers from replacing a socket in the same folder meanwhile."""
    import fcntl  # not on Windows

    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a server that has ended.

    Raises:
        ConfigurationError: The file is not a socket, or something listens there.
        OSError: It can't be examined or removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} is a file, and not a socket: choose another path for --unix_socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # it listens, and is busy
            pass
    raise ConfigurationError(
        f"unix:{path} is in use: stop what listens there, or choose another path for --unix_socket"
    )
