"""Where a server listens, and its limits."""

from __future__ import annotations

import os
from dataclasses import dataclass

from robowire.errors import ConfigurationError
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD, MAX_MAX_PAYLOAD

__all__ = ["TcpOptions"]

# What fits the address of a Unix socket: 108 bytes with a zero on Linux, 104 on macOS.
_MAX_UNIX_PATH = 103


@dataclass(frozen=True)
class TcpOptions:
    """Where a server listens, and its limits.

    Attributes:
        host: Address to listen on; 0.0.0.0 is every IPv4 address, :: every address.
        port: TCP port; 0 picks a free one.
        unix_socket: Path of a Unix socket to listen on too, for clients of the same user on this machine,
            which connect to unix:PATH; none by default.
        max_payload: Largest request to accept, in bytes. Three 640x480 cameras are 2.6 MiB.
        max_connections: Clients at one time; the next one is answered "overloaded". This times max_payload
            bounds the memory that hostile clients can take.
        session_timeout_s: Seconds without a request after which a client is closed.
        frame_timeout_s: Seconds from the first byte of a request to its last.
        send_timeout_s: Seconds a client may take to read a reply.
        drain_s: Seconds that requests in hand have to finish when the server is told to stop.
        token: Token that clients must send in their hello; none by default. Prefer the environment variable:
            other users of this machine can read flags.
        plain_token: Accept the token in clear from other machines on a connection without TLS, as older
            clients send it; others answer a challenge. Over TLS and from this machine it is always accepted.
        insecure: Do not warn that a port without a token is open to other machines.
        tls_cert: PEM file with the server's certificate, and those between it and its CA; without it the port
            speaks plain TCP.
        tls_key: PEM file with the certificate's private key; by default it is in tls_cert.
        tls_client_ca: PEM file with the CA whose certificates clients must show (mutual TLS); none by
            default.
    """

    host: str = "0.0.0.0"
    port: int = 5000
    unix_socket: str | None = None
    max_payload: int = DEFAULT_MAX_PAYLOAD
    # Each costs a thread (about 0.15 MB) and at worst one payload.
    max_connections: int = 64
    # Long enough for a person to set up the next trial; a client that reconnects by itself does not notice.
    session_timeout_s: float = 3600.0
    # 64 MiB in 30 s is 18 Mbit/s, slow Wi-Fi.
    frame_timeout_s: float = 30.0
    send_timeout_s: float = 30.0
    drain_s: float = 10.0
    token: str | None = None
    plain_token: bool = False
    insecure: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port is {self.port}, expected 0 to 65535")
        if self.unix_socket is not None and not 0 < len(os.fsencode(self.unix_socket)) <= _MAX_UNIX_PATH:
            raise ConfigurationError(
                f"unix_socket is {self.unix_socket!r}, expected a path of 1 to {_MAX_UNIX_PATH} bytes"
            )
        if not 0 < self.max_payload <= MAX_MAX_PAYLOAD:
            raise ConfigurationError(
                f"max_payload is {self.max_payload}, expected 1 to {MAX_MAX_PAYLOAD} bytes"
            )
        if self.max_connections < 1:
            raise ConfigurationError(f"max_connections is {self.max_connections}, expected at least 1")
        for name in ("session_timeout_s", "frame_timeout_s", "send_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )
        if not self.drain_s >= 0:
            raise ConfigurationError(f"drain_s is {self.drain_s}, expected 0 or more seconds")
        if self.token == "":
            raise ConfigurationError("token is empty: leave it out, or give one")
        if self.tls_cert is None and (self.tls_key is not None or self.tls_client_ca is not None):
            name = "tls_key" if self.tls_key is not None else "tls_client_ca"
            raise ConfigurationError(f"{name} is given without tls_cert: TLS needs the server's certificate")
