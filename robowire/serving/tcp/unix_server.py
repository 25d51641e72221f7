"""The native wire on a Unix socket, for clients of the same user on this machine."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

from robowire.serving.service import Service
from robowire.serving.tcp.listener import listen_unix, remove_unix
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.server import TcpServer
from robowire.wire.codecs import Codec

__all__ = ["UnixServer"]


class UnixServer(TcpServer):
    """Serve the native wire at ``options.unix_socket``, without TLS: the kernel keeps others out.

    The limits are those of the TCP port, and ``max_connections`` counts for each of the two.

    Args:
        service: What answers the requests.
        options: Path and limits.
        codec: Reads the payloads.

    Attributes:
        name: ``"unix"``.
        address: ``"unix:PATH"``, and 0.

    Raises:
        ConfigurationError: The path can't be listened on.
    """

    name = "unix"

    def __init__(self, service: Service[Any], options: TcpOptions, codec: Codec) -> None:
        assert options.unix_socket is not None
        plain = dataclasses.replace(options, tls_cert=None, tls_key=None, tls_client_ca=None)
        self._path = options.unix_socket
        listener, self._inode = listen_unix(self._path)
        try:
            super().__init__(service, plain, codec, listener)
        except BaseException:
            remove_unix(self._path, self._inode)
            raise

    @staticmethod
    def address_of(listener: socket.socket) -> tuple[str, int]:
        """Return the address that clients use, and 0."""
        return f"unix:{listener.getsockname()}", 0

    def describe(self) -> str:
        """Return where clients of this machine find it."""
        return f"for programs of this user on this machine: --address {self.address[0]}"

    def server_close(self) -> None:
        """Stop listening and remove the socket's file."""
        remove_unix(self._path, self._inode)
        super().server_close()
