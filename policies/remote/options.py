"""Options of a remote policy: where its server is, and what that server does not say of itself."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from robowire.address import join_address, split_address
from robowire.errors import ConfigurationError
from robowire.interfaces import PolicyOptions
from robowire.registry import nearest
from robowire.specs import Embodiment, PolicySpec

__all__ = ["PORTS", "RemoteOptions"]

# Port of a scheme where the address has none: what the peer's own server listens on.
PORTS = {"robowire": 5000, "openpi": 8000, "gr00t": 5555, "vla-eval": 8000, "lerobot": 8080}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]+)/?")

_SPEC_FIELDS = (*(item.name for item in fields(Embodiment)), "chunk_size", "n_action_steps")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a positive integer")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ValueError("a positive number")
    return float(value)


def _names(value: Any) -> tuple[str, ...]:
    names = re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError("names, with commas between them")
    return tuple(name for name in names if name)


def _signs(value: Any) -> tuple[int, ...]:
    words = re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(str(word) in ("1", "-1") for word in words):
        raise ValueError("1 and -1, with commas between them")
    return tuple(int(word) for word in words)


_READERS: dict[str, Callable[[Any], Any]] = {
    "url": _text,
    "token": _text,
    "timeout_s": _number,
    "connect_timeout_s": _number,
    "stateful": _flag,
    "key_map": _text,
    "tls": _flag,
    "tls_ca": _text,
    "tls_cert": _text,
    "tls_key": _text,
    "policy_type": _text,
    "pretrained_name_or_path": _text,
    "benchmark": _text,
    "camera_names": _names,
    "image_height": _count,
    "image_width": _count,
    "state_dim": _count,
    "state_layout": _text,
    "action_dim": _count,
    "action_layout": _text,
    "ctrl_space": _text,
    "ctrl_type": _text,
    "control_hz": _number,
    "action_hold": _names,
    **{f"{kind}_{what}": _names for kind in ("state", "action") for what in ("names", "units")},
    **{f"{kind}_signs": _signs for kind in ("state", "action")},
    "chunk_size": _count,
    "n_action_steps": _count,
}


@dataclass(frozen=True)
class RemoteOptions:
    """What ``--policy_options`` say, read and checked.

    Attributes:
        scheme: Which wire: a key of :data:`PORTS`.
        host: Name or address of the server.
        port: Its port.
        token: Token or API key of that server, where it needs one.
        timeout_s: Seconds to wait for a reply.
        connect_timeout_s: Seconds to make a connection.
        stateful: Whether its answers depend on earlier observations of a connection; ``None`` for what the
            wire or the server says.
        key_map: Name of a preset or path of a file: names and conventions of the server.
        tls: Context of connections; ``None`` without TLS.
        policy_type: Kind of policy that a LeRobot server should load.
        pretrained_name_or_path: Checkpoint that a LeRobot server should load.
        benchmark: What a vla-eval server is told that the benchmark is.
        spec: Fields of the policy's spec, by name: what a person said of it.
    """

    scheme: str
    host: str
    port: int
    token: str | None = None
    timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    stateful: bool | None = None
    key_map: str | None = None
    tls: ssl.SSLContext | None = None
    policy_type: str = "act"
    pretrained_name_or_path: str = "unknown"
    benchmark: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The server's address with its scheme, for messages."""
        return f"{self.scheme}://{join_address(self.host, self.port)}"

    @classmethod
    def read(cls, options: PolicyOptions) -> RemoteOptions:
        """Return the options of a factory, checked.

        Raises:
            ConfigurationError: One is missing, unknown or unusable; says what to set.
        """
        given = {name: value for name, value in options.extra.items() if value is not None}
        for name in given:
            if name not in _READERS:
                raise ConfigurationError(
                    f"policy 'remote' has no option {name!r}.{nearest(name, _READERS)} "
                    f"Known: {', '.join(_READERS)}"
                )
        for name in ("model_name_or_path", "dataset_id"):
            if getattr(options, name) is not None:
                raise ConfigurationError(
                    f"policy 'remote' has no {name}: the policy is loaded by the server that is asked"
                )
        if options.camera_names is not None:
            given.setdefault("camera_names", options.camera_names)
        read: dict[str, Any] = {}
        for name, value in given.items():
            try:
                read[name] = _READERS[name](value)
            except ValueError as exc:
                raise ConfigurationError(f"policy_options.{name} is {value!r}, expected {exc}") from exc
        scheme, host, port = _address(read.pop("url", None))
        spec = {name: read.pop(name) for name in _SPEC_FIELDS if name in read}
        try:
            PolicySpec(**spec)
        except ValueError as exc:
            raise ConfigurationError(f"policy_options: {exc}") from exc
        files = {name: read.pop(f"tls_{name}", None) for name in ("ca", "cert", "key")}
        if read.pop("tls", False) or any(files.values()):
            from robowire.transport.tls import client_tls  # here: importing ssl's files takes time

            read["tls"] = client_tls(files["ca"], files["cert"], files["key"], flags="--policy_options.")
        return cls(scheme, host, port, spec=spec, **read)


def _address(url: str | None) -> tuple[str, str, int]:
    example = "--policy_options.url openpi://localhost:8000"
    schemes = ", ".join(f"{scheme}://" for scheme in PORTS)
    if url is None:
        raise ConfigurationError(
            f"policy 'remote' needs the address of a server: {example}. Known: {schemes}"
        )
    found = _URL.fullmatch(url)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in PORTS:
        near = nearest(scheme, PORTS) if scheme else ""
        raise ConfigurationError(
            f"policy_options.url is {url!r}, expected SCHEME://HOST:PORT.{near} Known: {schemes}"
        )
    try:
        host, port = split_address(found[2], default_port=PORTS[scheme])
    except ValueError as exc:
        raise ConfigurationError(f"policy_options.url is {url!r}, expected {scheme}://HOST:PORT") from exc
    return scheme, host, port
