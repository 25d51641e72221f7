"""The policy port: what each request is answered with, and the server that puts the pieces together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from robowire.errors import RequestError, UnknownMethod
from robowire.interfaces import Policy
from robowire.meta import MetaObs
from robowire.registry import nearest
from robowire.serving.metrics import Metrics
from robowire.serving.policy.dispatcher import Dispatcher, DispatchOptions
from robowire.serving.sessions import Session
from robowire.serving.tcp.frontend import TcpOptions, TcpServer
from robowire.serving.text import answer_line
from robowire.version import __version__
from robowire.wire.messages import (
    PROTOCOL_VERSION,
    Call,
    Infer,
    Reset,
    error_reply,
    ok,
    parse_policy_request,
)
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import ActionChunk, Buffer, encode_frame
from robowire.worker.fingerprint import imported_packages, versions

__all__ = ["PolicyServer", "PolicyServerOptions"]

logger = logging.getLogger(__name__)

_METHODS = ("hello", "ping", "get_info", "reset", "stats")

# What a client author must know and no spec's number says; the long form is MetaObs' and MetaAction's
# documentation.
_CONVENTIONS = {
    "image": "uint8 (cameras, 3, height, width), RGB, upright, in the order of camera_names",
    "units": "radians, metres, seconds",
    "gripper": "last entry of the action: 1 open, 0 closed",
}


@dataclass(frozen=True)
class PolicyServerOptions(TcpOptions, DispatchOptions):
    """Every option of a policy server but the policy."""

    def __post_init__(self) -> None:
        TcpOptions.__post_init__(self)
        DispatchOptions.__post_init__(self)


class PolicyServer:
    """Serve a policy. The port is bound and the policy's thread started when the object is made.

    Then either call :meth:`serve_forever`, or use the object as a context manager, which serves in a thread
    of its own.

    Args:
        policy: Nobody else may use it meanwhile.
        options: Where to listen, limits, batching.
        device: What the policy runs on, for ``get_info``.
        model_name: Of its checkpoint, for ``get_info``: a name, and not where it lies; ``None`` where it has
            none.

    Raises:
        ConfigurationError: The address cannot be listened on.

    Attributes:
        metrics: What this server counts.
        dispatcher: The door to the policy, for other front doors than TCP.
        address: Host and port it listens on.
    """

    def __init__(
        self,
        policy: Policy,
        options: PolicyServerOptions,
        *,
        device: str = "cpu",
        model_name: str | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._options = options
        self._device = device
        self._model_name = model_name
        self._versions = versions(imported_packages())  # the policy has been loaded
        self._tcp = TcpServer(options, lambda session: _PolicyHandler(session, self), self.metrics)
        self.address = self._tcp.address
        self.dispatcher = Dispatcher(policy, options, self.metrics)

    def __enter__(self) -> PolicyServer:
        self._tcp.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tcp.__exit__(kind, error, traceback)
        self.shutdown()

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`, then finish the requests in hand and return."""
        try:
            self._tcp.serve_forever()
        finally:
            self.dispatcher.close(timeout_s=_GIVE_UP_S)

    def stop(self) -> None:
        """Tell :meth:`serve_forever` to end. Returns at once; a signal handler may call it."""
        self._tcp.stop()

    def shutdown(self) -> None:
        """Finish the requests in hand, refuse new ones, and return when that is done or time is up."""
        self._tcp.shutdown()
        self.dispatcher.close(timeout_s=_GIVE_UP_S)

    def describe(self) -> str:
        """Return one line for the person who started it."""
        spec = self.dispatcher.spec

        def known(value: object) -> object:
            return "any" if value is None else value

        cameras = "any" if spec.camera_names is None else ", ".join(spec.camera_names) or "none"
        if spec.image_height is not None or spec.image_width is not None:
            cameras += f" ({known(spec.image_height)}x{known(spec.image_width)})"
        chunk = f"{self.dispatcher.chunk_size} (of {spec.chunk_size})"
        return (
            f"policy {spec.policy}, device {self._device}, chunk_size {chunk}, cameras {cameras}, "
            f"state_dim {known(spec.state_dim)}, action_dim {known(spec.action_dim)} "
            f"({known(spec.ctrl_space)} {known(spec.ctrl_type)})"
        )

    def info(self) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` say."""
        spec = self.dispatcher.spec
        return {
            **spec.to_wire(),
            "chunk_size": self.dispatcher.chunk_size,
            "n_action_steps": spec.n_action_steps and min(spec.n_action_steps, self.dispatcher.chunk_size),
            "temporal_agg": self._options.temporal_agg,
            "device": self._device,
            "model_name": self._model_name,
            "max_payload": self._options.max_payload,
            "conventions": _CONVENTIONS,
            "versions": self._versions,
            "version": __version__,
            "protocol_version": PROTOCOL_VERSION,
        }

    @property
    def auth_token(self) -> str | None:
        """What clients must show, if anything."""
        return self._options.auth_token


# The drain has passed when the policy's thread is told to end, so only a policy that hangs is still at work.
_GIVE_UP_S = 0.5


class _PolicyHandler:
    """Answer one connection."""

    def __init__(self, session: Session, server: PolicyServer) -> None:
        self._session = session
        self._server = server

    def payload(self, payload: bytearray) -> Sequence[Buffer]:
        value = loads(payload)
        try:
            reply = self._reply(value)
        except RequestError as error:
            logger.warning("%s got an error, %s: %s", self._session, error.error_type, error)
            self._server.metrics.error(error.error_type)
            reply = self._failure(value, error)
        return encode_frame(reply)

    def line(self, line: str) -> bytes:
        return answer_line(line, self._session, self._server.metrics, self._server.info)

    def close(self) -> None:
        self._session.episode.clear()

    def _reply(self, value: Any) -> Any:
        session = self._session
        request = parse_policy_request(value, self._server.dispatcher.spec.camera_names)
        if isinstance(request, Call) and request.method == "hello":
            return session.hello(request.params, server="policy", auth_token=self._server.auth_token)
        session.admit()
        if isinstance(request, Infer):
            return self._infer(request)
        if isinstance(request, Reset):
            session.episode.clear()
            return {"status": "OK"}
        return self._call(request)

    def _infer(self, request: Infer) -> Any:
        inference = self._server.dispatcher.submit(self._session, request.observations)
        spec = self._server.dispatcher.spec
        batch = request.dialect == "batch"
        # The chunk comes first on the wire: (n, action_dim), or (n, B, action_dim).
        actions = inference.actions.swapaxes(0, 1) if batch else inference.actions[0]
        # MetaAction's own defaults, where a policy leaves open what its actions are.
        chunk = ActionChunk(actions, spec.ctrl_space or "ee", spec.ctrl_type or "delta")
        if self._session.reply == "list":
            return chunk
        timesteps = (
            np.array([[observation.timestep] for observation in request.observations]) if batch else None
        )
        reply = ok(
            actions=actions,
            ctrl_space=chunk.ctrl_space,
            ctrl_type=chunk.ctrl_type,
            timestep=request.observations[0].timestep if timesteps is None else timesteps,
            infer_ms=inference.infer_ms,
        )
        if (raw := inference.raw_actions) is not None:
            reply["raw_actions"] = raw.swapaxes(0, 1) if batch else raw[0]
        return reply

    def _call(self, call: Call) -> dict[str, Any]:
        # Parameters are left alone: none of these has any, and a newer client may send some.
        if call.method == "ping":
            return ok()
        if call.method == "get_info":
            return ok(**self._server.info())
        if call.method == "reset":
            self._session.episode.clear()
            return ok()
        if call.method == "stats":
            return ok(**self._server.metrics.snapshot())
        method = call.method[:40]
        raise UnknownMethod(
            f"the policy port has no method {method!r}.{nearest(method, _METHODS)} "
            f"Known: {', '.join(_METHODS)}"
        )

    def _failure(self, value: Any, error: RequestError) -> Any:
        """Return the reply that tells of an error, in words this client knows.

        One that never said hello is an old client, and knows what clients of each dialect always were told.
        """
        if not self._session.said_hello:
            if isinstance(value, MetaObs):
                return []
            if isinstance(value, dict) and "qpos" in value:
                return {"status": "ERROR", "message": str(error)}
        return error_reply(error)
