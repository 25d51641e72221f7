"""Reading and writing ``host:port``. The host is in brackets where it is an IPv6 address."""

from __future__ import annotations

import ipaddress
import re

from robowire.errors import ConfigurationError

__all__ = ["is_loopback", "join_address", "parse_address", "split_address"]

_PATTERN = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\s]+))(?::(?P<port>\d{1,5}))?")


def split_address(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """Return the host and port of ``host:port`` or ``[v6]:port``; with a default, of ``host`` alone too.

    Raises:
        ValueError: It is none of these.
    """
    found = _PATTERN.fullmatch(text)
    port = None if found is None else found["port"] or default_port
    if found is None or port is None or not 0 < int(port) <= 65535:
        raise ValueError(f"{text!r} is not host:port")
    return found["v6"] or found["host"], int(port)


def parse_address(name: str, text: str, *, example: str, default_port: int | None = None) -> tuple[str, int]:
    """Return the host and port of a flag or option; see :func:`split_address`.

    Args:
        name: Name of the option, for the message.
        text: Its value.
        example: Value that would be accepted, for the message.
        default_port: Port where ``host`` alone is given; ``None`` requires one.

    Raises:
        ConfigurationError: It is not an address.
    """
    try:
        return split_address(text, default_port=default_port)
    except ValueError:
        raise ConfigurationError(f"{name} is {text!r}, expected host:port, such as {example}") from None


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, or ``[v6]:port``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether ``host:port`` is an address of the loopback; a name is none."""
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
