"""Drive a simulator of a simulator server's HTTP port. Needs numpy and the standard library.

Nothing is sent twice: where a connection is lost, so is the request, and the caller decides. A connection
that the server may have closed while it was idle is replaced before a request, not after it.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import math
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Mapping
from urllib.parse import quote, urlsplit

import numpy as np

from robowire.address import join_address
from robowire.client.session import client_context
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    TlsFailed,
    TransportError,
)
from robowire.images import decode_images
from robowire.interfaces import StepResult
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec
from robowire.tracing.spans import client_span
from robowire.wire.messages import raise_for_status
from robowire.wire.text_safety import printable, quoted

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

__all__ = ["HttpSimulatorClient"]

# The server closes a connection after 15 s without a request.
_IDLE_S = 5.0

# As the native wire's limit of 64 MiB, in Base64.
_MAX_REPLY = 88 * 1024 * 1024

_PAUSE_S = 0.2


class HttpSimulatorClient:
    """A session over HTTP, or the environment that all requests share which name no session.

    It has the methods of :class:`robowire.client.simulator_client.SimulatorClient` that an environment needs.
    Not thread-safe.

    Args:
        url: Address of the HTTP port: ``http://localhost:8080``.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait for a reply, and for each part of it.
        token: Token shown to the server, where it wants one.
        tls: Context for ``https``; by default the system's certificates, or ``ca``, are trusted.
        ca: PEM file of the certificates to trust.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that the first connection is tried for while the server does not answer.

    Every method that asks the server raises:
        ConnectFailed: Nothing answers there.
        TlsFailed: A certificate is refused.
        ConnectionLost: The connection ended before the reply: what was asked may have been done.
        RequestTimeout: No reply in time.
        RequestError: The server's own error, as its class.
        RemoteProtocolError: The reply is not one of this wire.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 330.0,
        token: str | None = None,
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(
                f"server_url is {url!r}, expected http://host:port, such as http://localhost:8080"
            )
        secure = parts.scheme == "https"
        self._tls = client_context(tls or secure, ca, tls_cert, tls_key)
        if self._tls is not None and not secure:
            raise ConfigurationError(f"server_url is {url!r}, which is without TLS: use https://")
        self._host = parts.hostname
        self._port = port or (443 if secure else 80)
        self._path = parts.path.rstrip("/")
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._token = token
        self._wait_s = wait_s
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = -math.inf
        self._simulator: str | None = None
        self._session: str | None = None
        self._process = os.getpid()
        self._parents = False  # whether the session was begun by a process that this one was forked from
        self._meta = False  # whether observations are MetaObs

    def connect(self) -> None:
        """Connect, unless connected already. The first time it waits for a server that starts."""
        self._leave_to_parent()
        deadline = time.monotonic() + self._wait_s
        while self._connection is None:
            try:
                self._dial()
            except ConnectFailed:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_S)
        self._wait_s = 0.0

    def disconnect(self) -> None:
        """End the session, if it is this client's own. May be called twice."""
        self._leave_to_parent()
        session, self._session = self._session, None
        if session is not None:
            # Where that fails it has ended, or ends by its timeout.
            with suppress(TransportError, RemoteProtocolError, RequestError):
                self._call("DELETE", "/session", session=session)
        self._hang_up()

    def __enter__(self) -> HttpSimulatorClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def select_simulator(self, name: str) -> None:
        """Name the simulator of the session that :meth:`load_task` begins."""
        self._simulator = name

    def load_task(self, task_name: str | None = None, **options: Any) -> SimulatorSpec:
        """Begin a session with this task, and return what it gives and takes.

        Where no simulator was selected, the task is loaded in the server's shared environment.

        Args:
            task_name: Task of the simulator; ``None`` means the one that was selected with it, or the one
                that the server was started with.
            **options: Those of :meth:`robowire.client.simulator_client.SimulatorClient.load_task`.
        """
        self._leave_to_parent()
        self._parents = False
        self._meta = options.get("observation_format") == "meta"
        named = {"simulator": self._simulator, "task": task_name, **options}
        body = {name: _plain(value) for name, value in named.items() if value is not None}
        reply = self._call("POST", "/reset", {**body, "seed": 0})
        if self._simulator is not None:
            self._session = _text(reply, "session")
        spec = _field(reply, "spec")
        if not isinstance(spec, dict):
            raise RemoteProtocolError(f"the spec of the reply is {quoted(spec)}, expected an object")
        return SimulatorSpec.from_wire(spec)

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode and return its first observation."""
        body = {"seed": seed, "init_state": init_state}
        sent = {name: value for name, value in body.items() if value is not None}
        return self._observation(self._call("POST", "/reset", sent))

    def step(self, action: Any) -> StepResult:
        """Execute one action: the simulator's own, (action_dim,), or a MetaAction."""
        reply = self._call("POST", "/step", {"action": _plain(action)})
        info = _field(reply, "info")
        reward = _field(reply, "reward")
        if not isinstance(info, dict) or not isinstance(reward, (int, float, type(None))):
            raise RemoteProtocolError("the reply to a step has no reward and info of this wire")
        return StepResult(
            self._observation(reply),
            math.nan if reward is None else float(reward),  # JSON has no NaN
            _field(reply, "terminated") is True,
            _field(reply, "truncated") is True,
            info,
        )

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright; ``None`` means the best view for people."""
        path = "/render" if camera_name is None else f"/render?camera_name={quote(camera_name, safe='')}"
        image = _field(self._call("GET", path), "image")
        if not isinstance(image, np.ndarray):
            raise RemoteProtocolError("the image of the reply is no array")
        return image

    def snapshot(self) -> str:
        """Return the id of the episode's whole state, kept by the server."""
        return _text(self._call("POST", "/snapshot/create", {}), "snapshot_id")

    def restore(self, snapshot_id: str) -> Any:
        """Go to that instant, from which the episode goes on bit for bit, and return its observation."""
        return self._observation(self._call("POST", "/snapshot/restore", {"snapshot_id": snapshot_id}))

    def get_info(self) -> dict[str, Any]:
        """Return the server's info; with a task loaded, its spec and the versions that made it."""
        return {key: value for key, value in self._call("GET", "/info").items() if key != "status"}

    def _observation(self, reply: Mapping[str, Any]) -> Any:
        observation = _field(reply, "observation")
        if not isinstance(observation, dict):
            raise RemoteProtocolError(f"the observation is {quoted(observation)}, expected an object")
        if not self._meta:
            return decode_images(observation)
        known = MetaObs.__dataclass_fields__
        return MetaObs(**{name: value for name, value in observation.items() if name in known})

    def _call(self, verb: str, path: str, body: Any = None, *, session: str | None = None) -> dict[str, Any]:
        """Return the reply to one request; after a failure of the connection it is closed."""
        self._leave_to_parent()
        if self._parents:
            raise LocalProtocolError(
                "this client began its session before fork(), and the other process goes on with it: "
                "load_task begins one in this process"
            )
        if time.monotonic() - self._used_at > _IDLE_S:
            self._hang_up()
        self.connect()
        assert self._connection is not None
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        named = session or self._session
        if named is not None:
            headers["X-Robowire-Session"] = named
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        sent = None if body is None else json.dumps(body, allow_nan=False).encode()
        path += "&" if "?" in path else "?"
        address = join_address(self._host, self._port)
        name = path.partition("?")[0]
        with client_span(name.strip("/").partition("/")[0], address) as span:
            if span is not None:
                headers.update(span.headers())
            return self._exchange(f"{self._path}{path}arrays=base64", verb, sent, headers, name, address)

    def _exchange(
        self, target: str, verb: str, sent: bytes | None, headers: dict[str, str], name: str, address: str
    ) -> dict[str, Any]:
        assert self._connection is not None
        what = f"{verb} {name} of {address}"
        try:
            self._connection.request(verb, target, sent, headers)
            answer = self._connection.getresponse()
            content = answer.read(_MAX_REPLY + 1)
        except socket.timeout:
            self._hang_up()
            raise RequestTimeout(f"no reply to {what} within {self._timeout_s:g} s") from None
        except (OSError, http.client.IncompleteRead, http.client.RemoteDisconnected) as exc:
            self._hang_up()
            raise ConnectionLost(
                f"the connection ended before the reply to {what}: {printable(exc)}"
            ) from exc
        except http.client.HTTPException as exc:
            self._hang_up()
            raise RemoteProtocolError(f"the reply to {what} is not HTTP: {printable(repr(exc))}") from exc
        except BaseException:
            self._hang_up()
            raise
        self._used_at = time.monotonic()
        if len(content) > _MAX_REPLY:
            self._hang_up()
            raise RemoteProtocolError(f"the reply to {what} exceeds {_MAX_REPLY} bytes")
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or "status" not in reply:
            raise RemoteProtocolError(
                f"the reply to {what} has status {answer.status} and is not of this wire: "
                + quoted(content, 80)
            )
        return {name: _arrays(value) for name, value in raise_for_status(reply).items()}

    def _leave_to_parent(self) -> None:
        """In a process that was forked from the one that connected: leave connection and session to it."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._hang_up()  # closes this process's copy of the socket only
            self._parents, self._session = self._session is not None, None

    def _dial(self) -> None:
        where = join_address(self._host, self._port)
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=self._connect_timeout_s)
            if self._tls is None
            else http.client.HTTPSConnection(
                self._host, self._port, timeout=self._connect_timeout_s, context=self._tls
            )
        )
        try:
            connection.connect()
        except OSError as exc:
            connection.close()
            reason = printable(exc.strerror or exc)
            if self._tls is not None and type(exc).__module__ == "ssl":
                raise TlsFailed(f"TLS with {where} failed: {reason}") from exc
            raise ConnectFailed(f"cannot connect to {where}: {reason}") from exc
        connection.sock.settimeout(self._timeout_s)
        self._connection, self._used_at = connection, time.monotonic()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _field(reply: Mapping[str, Any], name: str) -> Any:
    if name not in reply:
        raise RemoteProtocolError(f"the reply has no {name!r}")
    return reply[name]


def _text(reply: Mapping[str, Any], name: str) -> str:
    value = _field(reply, name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name} of the reply is {quoted(value)}, expected text")
    return value


def _plain(value: Any) -> Any:
    """Return a parameter as JSON has it.

    Raises:
        LocalProtocolError: It has a number that JSON cannot express.
    """
    if isinstance(value, MetaAction):
        return {name: _plain(part) for name, part in vars(value).items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise LocalProtocolError(f"{value} cannot be sent: an action holds finite numbers")
    return value


def _arrays(value: Any) -> Any:
    """Return a value of JSON with the arrays that it describes.

    Raises:
        RemoteProtocolError: A description is not that of an array.
    """
    if isinstance(value, list):
        return [_arrays(part) for part in value]
    if not isinstance(value, dict):
        return value
    if not (value.keys() == {"dtype", "shape", "data"} or value.keys() == {"encoding", "shape", "data"}):
        return {name: _arrays(part) for name, part in value.items()}
    try:
        data = base64.b64decode(value["data"], validate=True)
        shape = tuple(value["shape"])
        if "encoding" in value:
            return {"encoding": value["encoding"], "shape": shape, "data": data}
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf" or len(shape) > 8:
            raise ValueError
        return np.frombuffer(bytearray(data), dtype).reshape(shape)
    except (TypeError, ValueError, binascii.Error, SyntaxError):
        described = {name: value[name] for name in value if name != "data"}
        raise RemoteProtocolError(f"{quoted(described)} describes no array") from None
