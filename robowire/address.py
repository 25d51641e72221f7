"""Reading and writing ``host:port``, and ``unix:PATH``. An IPv6 address is in brackets.

The Unix socket of a server on this machine takes the place of a host: ``"unix:PATH"``, with any port.
"""

from __future__ import annotations

import ipaddress
import re

from robowire.errors import ConfigurationError

__all__ = ["is_loopback", "join_address", "parse_address", "split_address", "unix_path"]

_PATTERN = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\s]+))(?::(?P<port>\d{1,5}))?")


# "unix:5000" is port 5000 of a machine called unix, as it always was.
_UNIX = re.compile(r"unix:(?!\d{1,5}\Z)(.+)", re.DOTALL)


def unix_path(host: str) -> str | None:
    """Return the path of ``unix:PATH``; ``None`` where the host is another machine's name or address."""
    found = _UNIX.fullmatch(host)
    return None if found is None else found[1]


def split_address(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """Return the host and port of ``host:port`` or ``[v6]:port``; with a default, of ``host`` alone too.

    ``unix:PATH`` is returned whole in the place of the host, with port 0.

    Raises:
        ValueError: It is none of these.
    """
    if unix_path(text) is not None:
        return text, 0
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
    """Return ``host:port``, ``[v6]:port``, or ``unix:PATH``, which has no port."""
    if unix_path(host) is not None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether ``host:port`` is an address of the loopback, or a Unix socket; a name is none."""
    if unix_path(address) is not None:
        return True
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
