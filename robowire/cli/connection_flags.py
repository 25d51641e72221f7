"""Flags of commands that connect to a server, and the clients opened with them. Runs on Python 3.8."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robowire.address import parse_address
from robowire.cli.parser import setting
from robowire.cli.tracing_flags import TracingFlags
from robowire.client.image_options import ImageOptions
from robowire.client.policy_client import PolicyClient
from robowire.client.server_client import ServerClient
from robowire.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

__all__ = [
    "ConnectionFlags",
    "ImageFlags",
    "TlsFlags",
    "at_least",
    "open_policy_client",
    "open_server_client",
    "pixels",
    "tls_context",
]

# A person at a terminal does not wait longer to read that nothing listens there.
_CONNECT_TIMEOUT_S = 5.0

# The scheme of servers of this wire, which may be left out.
_NATIVE = "robowire://"


@dataclass(frozen=True)
class TlsFlags:
    """TLS of a connection.

    Attributes:
        tls: Connect with TLS; implied by the three flags below.
        tls_ca: PEM file of the certificates to trust instead of the system's, such as the server's own.
        tls_cert: PEM file of the client's own certificate, where the server asks for one (mutual TLS).
        tls_key: PEM file of its private key; by default it is in tls_cert.
    """

    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def tls_context(self) -> ssl.SSLContext | bool:
        """Return the context of connections, or ``False`` for connections without TLS.

        Raises:
            ConfigurationError: A file cannot be read or used.
        """
        return tls_context(self.tls, self.tls_ca, self.tls_cert, self.tls_key)


@dataclass(frozen=True)
class ConnectionFlags(TlsFlags, TracingFlags):
    """Server to connect to.

    Attributes:
        address: Server as host:port, or unix:PATH on this machine, instead of --host and --port.
        host: Name or address of the server.
        port: TCP port of the server.
        timeout_s: Seconds to wait for a reply.
        wait_s: Seconds to keep trying while the server does not answer yet.
        token: Token of the server, where it needs one.
    """

    address: str | None = field(default=None, metadata=setting(instead_of=("host", "port")))
    host: str = "localhost"
    port: int = 5000
    timeout_s: float = 30.0
    wait_s: float = 0.0
    token: str | None = None

    @property
    def upstream(self) -> str | None:
        """Address of a server of another wire, such as ``openpi://localhost:8000``; else ``None``."""
        return None

    def __post_init__(self) -> None:
        if self.address is not None and self.upstream is None:
            native = self.address[len(_NATIVE) :] if self.address.startswith(_NATIVE) else self.address
            if "://" in native:
                raise ConfigurationError(
                    f"address is {self.address!r}: servers of other wires are asked by the commands evaluate "
                    "and sweep, and served to any client by server.py policy --policy remote"
                )
            host, port = parse_address("address", native, example="localhost:5000", default_port=self.port)
            # Of a frozen dataclass, before anybody else has it.
            object.__setattr__(self, "host", host)
            object.__setattr__(self, "port", port)
        if self.timeout_s <= 0:
            raise ConfigurationError(
                f"timeout_s is {self.timeout_s:g}, expected a positive number of seconds"
            )
        if not self.wait_s >= 0:
            raise ConfigurationError(f"wait_s is {self.wait_s:g}, expected 0 or more seconds")


@dataclass(frozen=True)
class ImageFlags(ConnectionFlags):
    """Policy server to connect to, and how images are sent to it.

    Attributes:
        image_encoding: How images are sent to the policy server: raw, jpeg, or png, which loses nothing.
        jpeg_quality: Quality of jpeg, 1 to 100.
        resize: Send images in the policy's own size.
    """

    image_encoding: str = field(default="raw", metadata=setting(choices=("raw", "jpeg", "png")))
    jpeg_quality: int = 90
    resize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ImageOptions(self.image_encoding, self.jpeg_quality, self.resize)
        if self.upstream is not None and (self.image_encoding != "raw" or self.resize):
            raise ConfigurationError(
                "image_encoding and resize are of this wire: servers of other wires do not take them"
            )

    def images_text(self) -> str:
        """Return how images are sent, for a person, and to tell results apart."""
        encoding = self.image_encoding
        if encoding == "jpeg":
            encoding += f" {self.jpeg_quality}"
        return encoding + (", resized" if self.resize else "")

    def image_options(self) -> dict[str, Any]:
        """Return the arguments of a policy client."""
        return {name: getattr(self, name) for name in ("image_encoding", "jpeg_quality", "resize")}


def pixels(text: str | None) -> tuple[int, int] | None:
    """Return height and width of ``224`` or ``480x640``; ``None`` for ``None``.

    Raises:
        ConfigurationError: It is something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if found is None or "0" in (found[1], found[2]):
        raise ConfigurationError(
            f"image_size is {text!r}, expected pixels: 224, or height x width as in 480x640"
        )
    return int(found[1]), int(found[2] or found[1])


def tls_context(
    tls: bool, ca: str | None, cert: str | None, key: str | None, *, flags: str = "--"
) -> ssl.SSLContext | bool:
    """Return the context of connections, or ``False`` where nothing asks for TLS.

    Args:
        tls: Whether to use TLS; files imply it.
        ca: PEM file of the certificates to trust.
        cert: PEM file of the client's own certificate.
        key: PEM file of its private key.
        flags: Prefix of the flags that a message names.

    Raises:
        ConfigurationError: A file cannot be read or used.
    """
    if not tls and ca is None and cert is None and key is None:
        return False
    from robowire.transport.tls import client_tls  # here: importing ssl takes time

    return client_tls(ca, cert, key, flags=flags)


def open_server_client(flags: ConnectionFlags) -> ServerClient:
    """Return a client of any server of this wire, not connected yet."""
    return ServerClient(
        flags.host,
        flags.port,
        timeout_s=flags.timeout_s,
        connect_timeout_s=min(_CONNECT_TIMEOUT_S, flags.timeout_s),
        token=flags.token,
        tls=flags.tls_context(),
        wait_s=flags.wait_s,
    )


def open_policy_client(flags: ConnectionFlags) -> PolicyClient:
    """Return a client that fails at the first failure: a person is watching, and measures that."""
    return PolicyClient(
        flags.host,
        flags.port,
        timeout_s=flags.timeout_s,
        connect_timeout_s=min(_CONNECT_TIMEOUT_S, flags.timeout_s),
        retries=0,
        token=flags.token,
        tls=flags.tls_context(),
        wait_s=flags.wait_s,
        **(flags.image_options() if isinstance(flags, ImageFlags) else {}),
    )


def at_least(lowest: int, **values: float) -> None:
    """Raise ``ConfigurationError`` for a value below ``lowest``; names it."""
    for name, value in values.items():
        if value < lowest:
            raise ConfigurationError(f"{name} is {value:g}, expected at least {lowest}")
