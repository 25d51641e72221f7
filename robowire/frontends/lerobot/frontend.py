"""The LeRobot frontend: gRPC AsyncInference, so that LeRobot's robot_client runs as it is.

The messages are raw bytes to grpcio; every call is a stream to it, so that the token is looked at before a
message is read, and a message that does not come holds no thread for longer than ``frame_timeout_s``.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc

from robowire.chunking import ActionChunk
from robowire.errors import (
    ConfigurationError,
    InternalError,
    Overloaded,
    RemoteProtocolError,
    RequestError,
    Unauthenticated,
)
from robowire.frontends.lerobot.clients import Client, Clients
from robowire.frontends.lerobot.codec import (
    GET_ACTIONS,
    MAX_MESSAGE,
    READY,
    SEND_OBSERVATIONS,
    SEND_POLICY_INSTRUCTIONS,
    SERVICE,
    PieceJoiner,
    TimedObservation,
    decode_instructions,
    decode_observation,
    encode_actions,
    encode_data,
    read_data,
    timed_actions,
)
from robowire.frontends.lerobot.features import RobotFeatures, check_policy
from robowire.frontends.named_observations import ObservationAdapter, make_adapter
from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.serving.policy.service import PolicyService
from robowire.serving.tcp.listener import listen
from robowire.transport.tls import server_tls
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable

__all__ = ["LerobotFrontend"]

logger = logging.getLogger(__name__)

# LeRobot's own server holds a call for so long while there is no observation.
_HOLD_S = 2.0

# Its client asks again at once after an error, so errors that do not go away by themselves take a while.
_ERROR_DELAY_S = 1.0

# LeRobot's rate where nobody says another.
_DEFAULT_HZ = 30.0

# Two calls at one time are all that its client makes.
_CALLS_PER_CONNECTION = 8

# Instructions name a robot's joints and cameras.
_MAX_INSTRUCTIONS = 256 * 1024

# Threads for calls without a place: those that wait after a wrong token, and those that are refused.
_DELAYED_CALLS = 16
_SPARE_THREADS = 16

# How long a call that was cancelled may take to end here.
_CANCELLED_CALL_S = 0.2
# A connection without a call is closed after this; LeRobot's client always has one.
_IDLE_CONNECTION_S = 300.0
# A robot that lost power never closes its connection: ask after a minute, give up 20 s later.
_KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S = 60.0, 20.0

_TIMER_S = 0.25

_STATUS: Mapping[str, Any] = {
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "invalid_params": grpc.StatusCode.INVALID_ARGUMENT,
    "spec_mismatch": grpc.StatusCode.INVALID_ARGUMENT,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "shutting_down": grpc.StatusCode.UNAVAILABLE,  # its client tries again
}


class _NotReady(RequestError):
    """The client's instructions are missing, or do not fit the policy."""

    error_type = "spec_mismatch"


class _Reported(Exception):
    """An error of a request, which the service has counted and logged."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(str(error))
        self.error = error


class _Reset:
    """``Ready`` as a request to the service."""

    method = "reset"

    def read(self) -> Request:
        return Request(self.method)

    def reply(self, value: Any) -> bytes | RequestError:
        return b""

    def failure(self, error: RequestError) -> bytes | RequestError:
        return error


class _Inference:
    """An observation that waited, as a request to the service, and the chunk as its reply."""

    method = "infer"

    def __init__(
        self,
        observation: TimedObservation,
        features: RobotFeatures,
        adapter: ObservationAdapter,
        *,
        actions_per_chunk: int,
        control_hz: float,
    ) -> None:
        self._observation = observation
        self._features = features
        self._adapter = adapter
        self._actions_per_chunk = actions_per_chunk
        self._control_hz = control_hz

    def read(self) -> Request:
        observation = self._adapter.observation(self._features.named(self._observation))
        return Request(self.method, observations=(observation,))

    def reply(self, value: Any) -> bytes | RequestError:
        chunk: ActionChunk = value
        actions = self._adapter.actions(chunk.actions)[: self._actions_per_chunk]
        message = self._encode(actions)
        if len(message) > MAX_MESSAGE:
            fits = math.floor(len(actions) * MAX_MESSAGE / len(message) * 0.95)
            logger.warning("a chunk of %d actions is cut to %d: gRPC takes 4 MiB", len(actions), fits)
            message = self._encode(actions[:fits])
        return message

    def failure(self, error: RequestError) -> bytes | RequestError:
        return error

    def _encode(self, actions: Any) -> bytes:
        observation = self._observation
        chunk = timed_actions(
            actions,
            timestamp=observation.timestamp,
            timestep=observation.timestep,
            control_hz=self._control_hz,
        )
        return encode_data(encode_actions(chunk))


class LerobotFrontend:
    """LeRobot's wire of a policy service. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Port, limits, token, TLS, and the names of cameras.

    Attributes:
        name: ``"lerobot"``.
        address: Host and port it listens on; the port is never 0.

    Raises:
        ConfigurationError: The address can't be listened on, a TLS file can't be used, or the key map does
            not fit the policy.
    """

    name = "lerobot"

    def __init__(self, service: PolicyService, options: PolicyFrontendOptions) -> None:
        spec = service.dispatcher.spec
        self._service = service
        self._options = options
        self._adapter = make_adapter(spec, options, strided_images=service.strided_images)
        self._control_hz = spec.control_hz or _DEFAULT_HZ
        self._clients = Clients(
            service, max_clients=options.max_connections, session_timeout_s=options.session_timeout_s
        )
        self._delayed = threading.BoundedSemaphore(_DELAYED_CALLS)
        self._stopping = threading.Event()
        self._deadlines: dict[Any, float] = {}  # calls whose messages are being received
        self._deadlines_lock = threading.Lock()
        self._timer = threading.Thread(target=self._watch, name="lerobot-timer", daemon=True)
        credentials = _credentials(options)
        # Two calls of each client can wait at one time, and must not keep others from being served.
        self._threads = ThreadPoolExecutor(
            2 * options.max_connections + _DELAYED_CALLS + _SPARE_THREADS, "lerobot"
        )
        self._server = grpc.server(self._threads, options=_server_options(options))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self.address = _bind(self._server, options, credentials)
        self._started = False
        self._stopped: Any = None

    def describe(self) -> str:
        """Return where it listens, for a person."""
        host, port = self.address
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        words = "with TLS" if self._options.tls_cert is not None else "gRPC"
        return f"for LeRobot's robot_client, {words}: --server_address={host}:{port}"

    def start(self) -> None:
        """Answer clients, in threads of its own."""
        self._started = True
        self._server.start()
        self._timer.start()

    def stop_listening(self) -> None:
        """Accept no further connection or call; calls in hand go on, and those that wait end."""
        self._stopping.set()
        self._clients.stop()
        self._end_receiving_before(math.inf)  # nobody would act on what they send
        if self._started and self._stopped is None:
            self._stopped = self._server.stop(self._options.drain_s)

    def drain(self, deadline: float) -> None:
        """Wait for the replies in hand, at most until the deadline."""
        if self._stopped is not None:
            self._stopped.wait(max(deadline - time.monotonic(), 0))

    def close(self) -> None:
        """End every thread and free the port."""
        self.stop_listening()
        if not self._started:  # grpcio frees the port of a server that was started only
            self._server.start()
        self._server.stop(0).wait()
        self._threads.shutdown(wait=True)
        if self._timer.ident is not None:
            self._timer.join()
        self._clients.close()

    # -- calls ---------------------------------------------------------------------------------------------

    def _handlers(self) -> Any:
        methods = {
            READY: self._ready,
            SEND_POLICY_INSTRUCTIONS: self._send_policy_instructions,
            SEND_OBSERVATIONS: self._send_observations,
            GET_ACTIONS: self._get_actions,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.stream_unary_rpc_method_handler(self._call(name, handle))
                for name, handle in methods.items()
            },
        )

    def _call(
        self, name: str, handle: Callable[[Client, Iterator[bytes], Any], bytes]
    ) -> Callable[[Iterator[bytes], Any], bytes]:
        """Return what answers a call: authorised, with a place, and each error with its status."""

        def answer(messages: Iterator[bytes], context: Any) -> bytes:
            address = _address(context.peer())
            client = None
            try:
                self._authorise(context, address)
                client = self._clients.begin_call(address)
                return handle(client, messages, context)
            except _Reported as exc:
                error = exc.error
            except RequestError as exc:
                error = exc
                self._service.count_error(error, str(client.session if client else address))
            except RemoteProtocolError as exc:
                who = client.session if client else address
                logger.warning("%s sent what cannot be read: %s", who, printable(exc))
                self._service.metrics.error("unreadable")
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, printable(exc))
            except grpc.RpcError:  # the call has ended already
                logger.debug("a call of %s ended before it was complete", address)
                raise
            except Exception:
                logger.exception("%s of %s met a bug of this server", name, address)
                error = InternalError("the server failed on this request; its log says why")
                self._service.metrics.error(error.error_type)
            finally:
                if client is not None:
                    self._clients.end_call(client)
            if client is None and name == GET_ACTIONS and self._delayed.acquire(blocking=False):
                self._stopping.wait(_ERROR_DELAY_S)
                self._delayed.release()
            status = (
                grpc.StatusCode.FAILED_PRECONDITION
                if isinstance(error, _NotReady)
                else _STATUS.get(error.error_type, grpc.StatusCode.INTERNAL)
            )
            context.abort(status, printable(f"{error.error_type}: {error}"))
            raise AssertionError("unreachable: abort raises")

        return answer

    def _authorise(self, context: Any, address: str) -> None:
        service = self._service
        if not service.needs_token:
            return
        host = address.rpartition(":")[0]
        delay_s = service.token_delay_s(host)
        if delay_s:
            if not self._delayed.acquire(blocking=False):
                raise Overloaded("too many wrong tokens: try again later")
            try:
                self._stopping.wait(delay_s)
            finally:
                self._delayed.release()
        header = dict(context.invocation_metadata()).get("authorization", "")
        kind, _, token = (header if isinstance(header, str) else "").partition(" ")
        if kind.lower() != "bearer":
            raise Unauthenticated(
                "this server wants a token: send the metadata 'authorization: Bearer TOKEN', which LeRobot's "
                "own client does not do; docs/coming_from_lerobot.md says how it learns to"
            )
        service.require_token(token.strip(), host)

    def _ready(self, client: Client, messages: Iterator[bytes], context: Any) -> bytes:
        client.reset()
        return self._answered(client, _Reset(), context)

    def _send_policy_instructions(self, client: Client, messages: Iterator[bytes], context: Any) -> bytes:
        with self._receiving(client, context):
            message = next(messages, b"")
        if len(message) > _MAX_INSTRUCTIONS:
            raise RemoteProtocolError(f"policy instructions of {len(message)} bytes are too long")
        with self._service.request_in_hand(client.session):
            client.session.requests += 1
            instructions = decode_instructions(read_data(message))
            try:
                check_policy(instructions, self._service.info(client.session))
                features = RobotFeatures.of(instructions)
                features.check(self._adapter, max_payload=self._options.max_payload)
            except RequestError as exc:
                raise _NotReady(str(exc)) from exc
            client.features, client.actions_per_chunk = features, instructions.actions_per_chunk
        return self._counted(b"", len(message))

    def _send_observations(self, client: Client, messages: Iterator[bytes], context: Any) -> bytes:
        _require_instructions(client)
        joiner = PieceJoiner(self._options.max_payload)
        payload, received, began = None, 0, 0.0
        with self._receiving(client, context):
            for message in messages:
                began = began or time.monotonic()  # the library has received the first piece
                received += len(message)
                payload = joiner.add(message)
                if payload is not None:
                    break
        if payload is None:
            raise RemoteProtocolError("an observation ended before its last piece")
        self._service.metrics.phase(self.name, "infer", "receive", time.monotonic() - began)
        with self._service.request_in_hand(client.session):
            client.session.requests += 1
            kept = client.put(decode_observation(payload))
        logger.debug("< %s observation of %d bytes%s", client.session, received, _WORDS[kept])
        return self._counted(b"", received)

    def _get_actions(self, client: Client, messages: Iterator[bytes], context: Any) -> bytes:
        if not client.inferring.acquire(blocking=False):
            raise Overloaded("this connection waits for actions already")
        try:
            if client.features is None:
                self._stopping.wait(_ERROR_DELAY_S)
            features = _require_instructions(client)
            observation = client.take(_HOLD_S, context)
            if observation is None:
                return b""
            exchange = _Inference(
                observation,
                features,
                self._adapter,
                actions_per_chunk=client.actions_per_chunk,
                control_hz=self._control_hz,
            )
            return self._answered(client, exchange, context)
        finally:
            client.inferring.release()

    def _answered(self, client: Client, exchange: _Reset | _Inference, context: Any) -> bytes:
        """Return the service's reply, counted, and count when it was sent."""
        service, session = self._service, client.session
        if service.tracing is not None:
            metadata = {
                name: value for name, value in context.invocation_metadata() if isinstance(value, str)
            }
            service.begin_span(session, metadata)
        try:
            reply = self._counted(service.answer(session, exchange))
        except BaseException:
            service.end_span(session)
            raise
        method, span, answered = session.method, session.span, time.monotonic()
        session.span = None

        def sent() -> None:
            send_s = time.monotonic() - answered
            service.metrics.phase(self.name, method, "send", send_s)
            if span is not None:
                service.end_span(session, span, send_s=send_s, bytes_sent=len(reply))

        if not context.add_callback(sent):  # the call has ended already
            sent()
        return reply

    def _counted(self, reply: bytes | RequestError, received: int = 0) -> bytes:
        """Return a reply, counted, or raise the error that the service has counted."""
        if isinstance(reply, RequestError):
            raise _Reported(reply)
        self._service.metrics.request(bytes_received=received, bytes_sent=len(reply), frontend="lerobot")
        return reply

    # -- time ----------------------------------------------------------------------------------------------

    def _receiving(self, client: Client, context: Any) -> _Receiving:
        return _Receiving(self, client, context)

    def begin_receiving(self, context: Any) -> None:
        """Let a call that receives end after ``frame_timeout_s``."""
        with self._deadlines_lock:
            self._deadlines[context] = time.monotonic() + self._options.frame_timeout_s

    def end_receiving(self, context: Any) -> None:
        """Forget the deadline of a call."""
        with self._deadlines_lock:
            self._deadlines.pop(context, None)

    def _watch(self) -> None:
        while not self._stopping.wait(_TIMER_S):
            self._end_receiving_before(time.monotonic())
            self._clients.forget_idle()

    def _end_receiving_before(self, now: float) -> None:
        with self._deadlines_lock:
            late = [context for context, deadline in self._deadlines.items() if deadline <= now]
        for context in late:
            logger.warning("ended a call of %s: its message was not complete in time", context.peer())
            context.cancel()


_WORDS = {True: "", False: ", which was predicted already"}


def _require_instructions(client: Client) -> RobotFeatures:
    if client.features is None:
        raise _NotReady("send Ready and SendPolicyInstructions first: restart the client")
    return client.features


class _Receiving:
    """Received by one call of a client at one time, and not for ever."""

    def __init__(self, frontend: LerobotFrontend, client: Client, context: Any) -> None:
        self._frontend, self._client, self._context = frontend, client, context

    def __enter__(self) -> None:
        # A call that was cancelled ends here a little after its client knows it.
        if not self._client.receiving.acquire(timeout=_CANCELLED_CALL_S):
            raise Overloaded("this connection sends a message already")
        self._frontend.begin_receiving(self._context)

    def __exit__(self, *error: object) -> None:
        self._frontend.end_receiving(self._context)
        self._client.receiving.release()


def _address(peer: str) -> str:
    """Return the ``host:port`` of what grpcio calls a peer, such as ``ipv6:%5B::1%5D:40000``."""
    return unquote(peer.partition(":")[2])


def _server_options(options: PolicyFrontendOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
        ("grpc.max_connection_idle_ms", int(_IDLE_CONNECTION_S * 1e3)),
        ("grpc.server_handshake_timeout_ms", int(options.frame_timeout_s * 1e3)),
        ("grpc.keepalive_time_ms", int(_KEEPALIVE_S * 1e3)),
        ("grpc.keepalive_timeout_ms", int(_KEEPALIVE_TIMEOUT_S * 1e3)),
        # 4 MiB can unfold to 4 GiB, and LeRobot's client compresses nothing.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.per_message_decompression", 0),
    ]


def _credentials(options: PolicyFrontendOptions) -> Any:
    """Return the server's TLS credentials; ``None`` for plain TCP."""
    if options.tls_cert is None:
        return None
    # Says of each file what is wrong with it, which grpcio does not.
    server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
    certificate = Path(options.tls_cert).read_bytes()
    key = certificate if options.tls_key is None else Path(options.tls_key).read_bytes()
    authority = None if options.tls_client_ca is None else Path(options.tls_client_ca).read_bytes()
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authority, require_client_auth=authority is not None
    )


def _bind(server: Any, options: PolicyFrontendOptions, credentials: Any) -> tuple[str, int]:
    """Open the port, and return its host and port."""
    port = options.lerobot_port
    assert port is not None
    # Says what is wrong with an address, which grpcio does not.
    listener = listen(options.host, port, flags="--lerobot_")
    host = listener.getsockname()[0]
    listener.close()
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = (
            server.add_insecure_port(target)
            if credentials is None
            else server.add_secure_port(target, credentials)
        )
    except RuntimeError as exc:
        raise ConfigurationError(f"cannot listen on {target}: choose another with --lerobot_port") from exc
    return host, bound
