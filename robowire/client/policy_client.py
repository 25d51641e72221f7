"""A session with a policy server, which survives the loss of its connection where that is safe.

What is repeated after a failure, and why no action can run twice. The client sends an observation; the caller
executes actions, and only those of a reply that this client returned. So:

- No connection (``ConnectFailed``): tried again, since nothing was sent.
- The connection ended before the reply was complete (``ConnectionLost``): the request is sent again, over a
  new connection. The lost reply was never returned, so nothing was executed. But a new connection is a new
  session, and its episode begins with the repeated observation. A policy without memory answers the same. One
  for which the server keeps something in the session (``get_info()["temporal_agg"]``) answers from this
  observation alone: its next actions are not smoothed with the chunks before the loss. A warning says so.
- ``Overloaded``, ``ShuttingDown``: the server did not execute the request, so it is sent again, later.
- No reply in time (``RequestTimeout``): never repeated. The server may still be working on it, and what to do
  with an action that is late is the caller's decision. The connection is closed.
- Any other error of the server: never repeated, as it would be the same again. The connection stays open.

A request is repeated at most ``retries`` times, with exponential backoff and full jitter.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, TypeVar

import numpy as np

from robowire.chunking import ActionChunk, ChunkCursor
from robowire.client.image_options import ImageOptions
from robowire.client.packed_requests import PackedRequests
from robowire.client.session import ClientSession, client_context
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    InternalError,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
    RobowireError,
    ShuttingDown,
    SpecMismatch,
    Unauthenticated,
    UnknownMethod,
)
from robowire.meta import MetaAction, MetaObs
from robowire.specs import PolicySpec, ctrl_type_name
from robowire.transport.connection import Connection
from robowire.wire.arrays import are_finite, is_numeric
from robowire.wire.messages import raise_for_status
from robowire.wire.packed import PACKED_VERSION
from robowire.wire.packed_policy import PackedObservation, packed_observation
from robowire.wire.pickle.writer import Buffer, encode_frame
from robowire.wire.text_safety import quoted

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

__all__ = ["PolicyClient"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Before repetition n the client waits between 0 and min(_BACKOFF_MAX_S, _BACKOFF_S * 2**n) seconds, for three
# at most 3.5 s: enough for a dropped connection. A server that loads its model again needs more retries.
_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 8.0

# A server that closes on hello has been cut off, or restarts behind a proxy; some older servers close too.
# After so many in a row the older form is tried, which both answer.
_HELLOS_BEFORE_OLDER_FORM = 3

# What a request is repeated after: the module says why.
_REPEATED = (ConnectFailed, ConnectionLost, Overloaded, ShuttingDown)


class PolicyClient:
    """A session with a policy server. Needs numpy and nothing else.

    ::

        with PolicyClient("localhost", 5000) as client:
            chunk = client.infer(MetaObs(image=image, state=state, timestep=0))  # (chunk_size, action_dim)

    It connects at the first request, or by :meth:`connect`. With servers that do not know ``hello`` it uses
    the older form; they answer observations and :meth:`reset` only. A ``hello`` that was cut off is repeated
    as a lost request is; only where three in a row end without a reply is the older form tried.

    Not thread-safe, except :meth:`interrupt`: a session is one episode, so open a client for each thread. A
    second thread is refused.

    Args:
        host: Name or address of the server; ``unix:PATH`` of one on this machine.
        port: Its policy port.
        chunk_size: Most actions of a reply that are returned; ``None`` for all.
        ctrl_space: What the caller expects of the actions; a server that declares another is refused when
            the client connects. ``None`` for any.
        ctrl_type: The same; ``"abs"`` is ``"absolute"``.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete.
        retries: Repetitions of one request (the module says of which); 0 for none.
        token: Token shown to the server, where it wants one.
        n_action_steps: Actions of each chunk that :meth:`select_action` returns; ``None`` means all.
        tls: Whether the server speaks TLS, or a context to use.
        ca: PEM file of the certificates to trust, in the place of the system's; implies ``tls``.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        image_encoding: How images are sent: ``"raw"``, ``"jpeg"``, or ``"png"``, which loses nothing.
            For slow links. Needs Pillow, here and on the server.
        jpeg_quality: 1 to 100.
        resize: Send images in the policy's own size, by Pillow's bilinear interpolation, stretched.
        open_connection: Makes the connection; tests pass their own, as they do for the next three.
        rng: Draws the jitter.
        sleep: Waits between repetitions.
        clock: Seconds, monotonic.

    Every method that asks the server raises:
        ConnectFailed: Nothing answers there, after the last repetition.
        TlsFailed: A certificate is refused, or only one side speaks TLS.
        ConnectionLost: The connection ended before the reply, after the last repetition.
        RequestTimeout: No reply in time.
        RequestError: The server's own error, as its class: ``SpecMismatch``, ``InvalidParams``, ...
        RemoteProtocolError: The reply can't be read, or is not of this wire.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5000,
        chunk_size: int | None = None,
        ctrl_space: str | None = None,
        ctrl_type: str | None = None,
        *,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        retries: int = 3,
        token: str | None = None,
        n_action_steps: int | None = None,
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
        image_encoding: str = "raw",
        jpeg_quality: int = 90,
        resize: bool = False,
        open_connection: Callable[..., Connection] = Connection.connect,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if retries < 0:
            raise ValueError(f"retries is {retries}, expected 0 or more")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, expected at least 1")
        self.host = host
        self.port = port
        self.chunk_size = chunk_size
        self._expected = PolicySpec(ctrl_space=ctrl_space, ctrl_type=ctrl_type)
        self._images = ImageOptions(image_encoding, jpeg_quality, resize)
        self._retries = retries
        self._token = token
        self._rng = rng or random.Random()
        self._sleep = sleep
        self._clock = clock
        self._busy = threading.Lock()
        self._session = ClientSession(
            host,
            port,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            tls=client_context(tls, ca, tls_cert, tls_key),
            wait_s=wait_s,
            open_connection=open_connection,
            sleep=sleep,
            clock=clock,
        )
        self._tls = bool(tls or ca or tls_cert)
        self._packed: PackedRequests | None = None  # of the connection; None: the server does not know them
        self._info: dict[str, Any] | None = None  # of the server connected to; None: it does not know hello
        self._warned_of_raw = False
        self._answered = 0  # observations that this session had a reply to since its episode began
        self._hellos_lost = 0  # in a row, without a reply

        self._cursor = ChunkCursor(n_action_steps)
        self._kept = ActionChunk(np.zeros((0, 0)), "", "")  # the chunk in the cursor
        self._last_t = -1

    def connect(self) -> None:
        """Connect, unless connected already."""
        with self._one_thread():
            self._with_retries(lambda: None)

    def disconnect(self) -> None:
        """End the session and drop the kept chunk. May be called twice; the next request connects again."""
        with self._one_thread():
            self._session.close()
            self._info = None
            self._answered = 0
            self._forget_chunk()

    def interrupt(self) -> None:
        """End the request that another thread waits for, as if the connection was lost.

        It may be repeated as any lost one, so this is for clients with ``retries=0``.
        """
        self._session.interrupt()

    def __enter__(self) -> PolicyClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def reset(self) -> None:
        """Begin a new episode, in the server's session and here."""
        self._forget_chunk()
        with self._one_thread():
            self._answered = 0  # the old episode is over whatever happens now: losing it needs no warning
            self._request("RESET")

    def infer(self, obs: MetaObs) -> np.ndarray:
        """Return the next actions, not normalised.

        The observation's arrays are sent from where they are, so leave them alone until this returns.

        Returns:
            float (chunk_size, action_dim); (chunk_size, B, action_dim) for a batch. A fresh array.
        """
        return self.infer_chunk(obs).actions

    def infer_chunk(self, obs: MetaObs) -> ActionChunk:
        """Return the same actions as :meth:`infer`, with the other fields of the reply."""
        self._begin_request()
        try:
            reply = self._request_chunk(obs)
            try:
                # A packed reply was read and checked already.
                chunk = reply if type(reply) is ActionChunk else _read_chunk(reply)
                _require_answer(chunk, obs, self._info or {})
            except RemoteProtocolError:
                self._session.close()
                raise
            self._answered += 1
            if self.chunk_size is not None and len(chunk.actions) > self.chunk_size:
                chunk = replace(chunk, actions=chunk.actions[: self.chunk_size])
            return chunk
        finally:
            self._busy.release()

    def send_meta_obs(self, obs: MetaObs) -> list[Any]:
        """Return the next actions in the form this wire is documented with.

        Returns:
            A list of :class:`MetaAction`, one for each step of the chunk. For a batch, a list over the chunk
            of object arrays (B,) of dicts with the fields of a MetaAction. All actions view one array.
        """
        chunk = self.infer_chunk(obs)
        if chunk.actions.ndim == 2:
            return [_record(chunk, action) for action in chunk.actions]
        return _rows(chunk)

    def inference(self, obs: MetaObs) -> list[Any]:
        """Return the next actions in the form that ILStudio's policies return.

        Returns:
            A list over the chunk of object arrays (B,) of dicts with the fields of a MetaAction; B is 1 where
            the observation is no batch.
        """
        chunk = self.infer_chunk(obs)
        if chunk.actions.ndim == 2:
            chunk = replace(chunk, actions=chunk.actions[:, np.newaxis])
        return _rows(chunk)

    def select_action(self, obs: MetaObs, t: int, return_all: bool = False) -> Any:
        """Return the action to execute now; ask the server only where the last chunk is used up.

        Args:
            obs: The observation now. Sent with ``timestep`` set to ``t``; itself unchanged.
            t: Step of the episode. One that does not advance begins a new episode: the kept chunk is dropped.
            return_all: Return everything left of the chunk at once, and so use it up.

        Returns:
            A :class:`MetaAction`, or a list of them with ``return_all``; of (B, action_dim) each for a batch.
        """
        if t <= self._last_t:
            self._forget_chunk()
        if not len(self._cursor):
            self._kept = self.infer_chunk(_at(obs, t))
            self._cursor.put(self._kept.actions)
        self._last_t = t
        if return_all:
            return [_record(self._kept, self._cursor.next()) for _ in range(len(self._cursor))]
        return _record(self._kept, self._cursor.next())

    @property
    def spec(self) -> PolicySpec:
        """What the policy needs and gives, from the server's info when this client connected."""
        with self._one_thread():
            return self._with_retries(lambda: PolicySpec.from_wire(self._known_info("spec")))

    def get_info(self) -> dict[str, Any]:
        """Return the server's info, on its policy and itself; requested each time."""
        with self._one_thread():
            return self._with_retries(lambda: self._call("get_info"))

    def ping(self) -> float:
        """Return the seconds of one round trip, on a connection that is open before."""

        def timed() -> float:
            begun = self._clock()
            self._call("ping")
            return self._clock() - begun

        with self._one_thread():
            return self._with_retries(timed)

    def _request(self, value: Any) -> Any:
        buffers = encode_frame(value)  # first: what can't be encoded opens no connection
        return self._with_retries(lambda: self._exchange(buffers, method="reset"))

    def _request_chunk(self, obs: MetaObs) -> Any:
        """Return the reply to an observation, which goes packed where both sides can."""
        packed_requests = self._packed
        if packed_requests is None or self._session.connection is None:
            return self._request_other(obs)
        request = packed_requests.like_last(obs)
        if request is None:
            return self._request_other(obs)
        try:  # the common case
            return self._exchange(*request)
        except _REPEATED as exc:
            if not self._pause_after(exc, 0):
                raise
        return self._request_other(obs, repetition=1)

    def _request_other(self, obs: MetaObs, *, repetition: int = 0) -> Any:
        """Return the reply to an observation that is not like the last, or that is sent again.

        Args:
            obs: The observation.
            repetition: How often it was repeated before.
        """
        # What is sent, made once for all attempts.
        prepared: list[tuple[MetaObs, PackedObservation | None]] = []
        pickled: list[Buffer] = []
        if not self._images.change:
            prepared.append((obs, packed_observation(obs)))
            if prepared[0][1] is None:
                pickled.extend(encode_frame(obs))  # first: what can't be encoded opens no connection

        def attempt() -> Any:
            if not prepared:  # the server said when it was connected which size it takes
                smaller = self._images.resized(obs, self._info)
                packed = packed_observation(smaller)
                prepared.append((smaller, None if packed is None else self._images.encoded(packed)))
            sent, packed = prepared[0]
            if packed is not None and self._packed is not None:
                request = self._packed.request(packed, None if self._images.change else obs)
                if request is not None:
                    return self._exchange(*request)
            if self._images.encodes and sent.image is not None and not self._warned_of_raw:
                self._warned_of_raw = True
                _log.warning("an observation that cannot be packed is sent with raw images")
            if not pickled:
                pickled.extend(encode_frame(sent))
            return self._exchange(pickled)

        return self._with_retries(attempt, repetition)

    def _call(self, method: str) -> dict[str, Any]:
        self._known_info(method)
        return self._session.call(method)

    def _known_info(self, wanted: str) -> dict[str, Any]:
        if self._info is None and self._hellos_lost:
            self._session.close()  # so that the next attempt says hello again
            raise ConnectionLost(
                f"{self._session.address} closed {self._hellos_lost} connections on hello: "
                f"it restarts, or is an older server, which has no {wanted}"
            )
        if self._info is None:
            raise UnknownMethod(
                f"{self._session.address} is an older server of this wire: "
                f"it answers observations and 'RESET', and has no {wanted}"
            )
        return self._info

    def _with_retries(self, attempt: Callable[[], T], repetition: int = 0) -> T:
        """Return ``attempt()``, made on an open connection, repeated as the module's rules allow.

        Args:
            attempt: Sends the request.
            repetition: How often it was repeated before.
        """
        while True:
            lost_an_episode = self._answered > 0 and self._session.connection is None
            waits = self._session.waits
            try:
                self._ensure_connected()
                if lost_an_episode:
                    self._answered = 0
                    self._warn_of_new_session()
                return attempt()
            except _REPEATED as exc:
                if (waits and isinstance(exc, ConnectFailed)) or not self._pause_after(exc, repetition):
                    raise
                repetition += 1

    def _pause_after(self, exc: RobowireError, repetition: int) -> bool:
        """Wait before a request is repeated; return ``False`` at once where there were repetitions enough.

        Args:
            exc: Why it is repeated.
            repetition: How often it was repeated before.
        """
        if isinstance(exc, ShuttingDown):
            self._session.close()  # the server that comes after it answers on a new connection only
        if repetition == self._retries:
            return False
        delay_s = self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0**repetition))
        _log.warning("%s; repetition %d of %d in %.2f s", exc, repetition + 1, self._retries, delay_s)
        self._sleep(delay_s)
        return True

    def _warn_of_new_session(self) -> None:
        info = self._info or {}
        if info.get("temporal_agg") is False and not info.get("stateful"):
            level, effect = logging.INFO, "the old one kept nothing, so its answers are the same"
        else:
            level, effect = logging.WARNING, "what the old one kept, such as temporal ensembling, is lost"
        _log.log(level, "the episode goes on in a new session of %s: %s", self._session.address, effect)

    def _exchange(
        self,
        buffers: Sequence[Buffer],
        read: Callable[[bytearray], Any] | None = None,
        *,
        method: str = "infer",
    ) -> Any:
        """Return the decoded reply to one frame. After any failure the connection is closed."""
        reply = self._session.exchange(buffers, read=read, method=method)
        if type(reply) is not ActionChunk and isinstance(reply, dict) and "status" in reply:
            raise_for_status(reply)
        return reply

    def _ensure_connected(self) -> None:
        if self._session.connection is not None:
            return
        # What is lost is repeated as ``retries`` says.
        self._info = self._session.wait_for_server(self._greet, hello_repeats=0)
        _log.info("connected to %s%s", self._session.address, "" if self._info else ", an older server")

    def _greet(self) -> dict[str, Any] | None:
        """Open the session and return the server's ``get_info``; ``None`` where it does not know hello."""
        self._packed = None
        self._session.dial()
        try:
            return self._say_hello()
        except BaseException:
            self._session.close()
            raise

    def _say_hello(self) -> dict[str, Any] | None:
        session = self._session
        # One array instead of 64 objects: 5 times faster on both sides.
        said: dict[str, Any] = {"reply": "chunk", "packed": PACKED_VERSION}
        if self._token is not None:
            said["token"] = self._token
        try:
            reply = session.hello(**said)
        except ConnectionLost as exc:
            self._hellos_lost += 1
            if not self._may_be_older():
                raise
            reply = exc
        except RemoteProtocolError as exc:
            # Older servers take it for a broken observation: they close, or answer [] or an untyped error.
            reply = exc
        if not isinstance(reply, ConnectionLost):
            self._hellos_lost = 0
        if isinstance(reply, dict) and reply.get("status") == "ok":
            if reply.get("server", "policy") != "policy":
                raise ConfigurationError(
                    f"{session.address} is a {reply['server']} server, not a policy server: "
                    "use its policy port, or SimulatorClient"
                )
            info = session.call("get_info")
            self._require_expected(info)
            self._images.require_server(info, session.address)
            if reply.get("packed") == PACKED_VERSION:
                self._packed = PackedRequests(
                    session.call, session.share if reply.get("shared_memory") == 1 else None
                )
            return info
        if isinstance(reply, dict):
            try:
                raise_for_status(reply)
            except (UnknownMethod, InternalError) as exc:
                reply = exc
        if self._token is not None:
            raise Unauthenticated(
                f"{session.address} does not understand hello, so it can't be shown the token: "
                "leave the token out to use an older server"
            )
        _log.debug("%s does not know hello: %s", session.address, reply)
        self._images.require_server(None, session.address)
        session.dial()
        return None

    def _require_expected(self, info: dict[str, Any]) -> None:
        for name in ("ctrl_space", "ctrl_type"):
            expected, declared = getattr(self._expected, name), ctrl_type_name(info.get(name))
            if expected is not None and declared is not None and declared != expected:
                raise SpecMismatch(
                    f"{name}: this client expects {expected!r}, the policy of {self._session.address} "
                    f"answers {quoted(declared)}"
                )

    def _may_be_older(self) -> bool:
        """Return whether a server that closes on hello may be one that does not know it."""
        # One that takes tokens, speaks TLS, or understood hello before is not: its connection was lost.
        if self._token is not None or self._tls or self._info is not None:
            return False
        return self._hellos_lost >= _HELLOS_BEFORE_OLDER_FORM

    def _forget_chunk(self) -> None:
        self._cursor.clear()
        self._last_t = -1

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        self._begin_request()
        try:
            yield
        finally:
            self._busy.release()

    def _begin_request(self) -> None:
        if not self._busy.acquire(False):
            raise LocalProtocolError("another thread is using this PolicyClient: open one for each thread")


def _rows(chunk: ActionChunk) -> list[Any]:
    """Return each step of a batch's chunk as an object array (B,) of dicts."""
    steps = []
    for step in chunk.actions:
        rows = np.empty(len(step), dtype=object)
        rows[:] = [dict(vars(_record(chunk, action))) for action in step]
        steps.append(rows)
    return steps


def _record(chunk: ActionChunk, action: np.ndarray) -> MetaAction:
    return MetaAction(chunk.ctrl_space, chunk.ctrl_type, action)


def _at(obs: MetaObs, t: int) -> MetaObs:
    """Return a shallow copy of the observation at step ``t``: the same arrays."""
    batched = isinstance(obs.timestep, np.ndarray) and obs.timestep.ndim == 2
    return replace(obs, timestep=np.full_like(obs.timestep, t) if batched else t)


def _read_chunk(reply: Any) -> ActionChunk:
    """Return the actions in a reply: of the chunk form, or of the list form.

    Raises:
        InternalError: The inference failed, and the server is too old to say why.
        RemoteProtocolError: There are no actions in it.
    """
    raw, timestep = None, None
    if isinstance(reply, dict):
        timestep = reply.get("timestep")
        actions, ctrl_space, ctrl_type = (reply.get(key) for key in ("actions", "ctrl_space", "ctrl_type"))
        raw = reply.get("raw_actions")
    elif isinstance(reply, list) and not reply:
        raise InternalError("the server answered [], no actions: the inference failed, and its log says why")
    else:
        try:
            first = reply[0] if isinstance(reply[0], (MetaAction, dict)) else reply[0][0]
            ctrl_space, ctrl_type = first["ctrl_space"], first["ctrl_type"]
            actions = np.stack([_stack(step) for step in reply])
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            raise RemoteProtocolError(
                f"the reply is a {type(reply).__name__} without actions: {exc}"
            ) from exc
    if not isinstance(actions, np.ndarray):
        raise RemoteProtocolError(
            f"the actions in the reply are a {type(actions).__name__}, expected an array"
        )
    if actions.dtype.kind != "f" or actions.ndim not in (2, 3) or not actions.size:
        raise RemoteProtocolError(
            f"the actions in the reply are {actions.dtype} {actions.shape}, "
            "expected float (chunk_size, action_dim) or (chunk_size, B, action_dim)"
        )
    if raw is not None and not (
        isinstance(raw, np.ndarray) and raw.dtype.kind == "f" and raw.shape[1:] == actions.shape[1:]
    ):
        shape = raw.shape if isinstance(raw, np.ndarray) else type(raw).__name__
        raise RemoteProtocolError(
            f"the raw_actions in the reply are {shape}, but the actions have shape {actions.shape}"
        )
    return ActionChunk(actions, str(ctrl_space), str(ctrl_type_name(ctrl_type)), raw, timestep)


def _require_answer(chunk: ActionChunk, obs: MetaObs, info: dict[str, Any]) -> None:
    """Accept a chunk that answers this observation and has the shape that the server announced.

    Args:
        chunk: Of the reply.
        obs: Of the request.
        info: Of the server, where it has any.

    Raises:
        RemoteProtocolError: It is the reply to another observation, as after a repeated frame: every later
            action would be one late. Or its actions are not finite, or not of the announced shape.
    """
    echo, asked = chunk.timestep, obs.timestep
    same = type(echo) is type(asked) is int and echo == asked  # the common case
    if not same and echo is not None and not _is_echo(echo, asked):
        echoed, sent = quoted(echo), quoted(asked)
        raise RemoteProtocolError(
            f"the reply is for timestep {echoed}, the request was for {sent}: "
            "requests and replies are out of step"
        )
    if not are_finite(chunk.actions):
        raise RemoteProtocolError("the actions in the reply are not finite")
    shape = chunk.actions.shape
    if (info.get("chunk_size"), info.get("action_dim")) == (shape[0], shape[-1]):  # the common case
        return
    for name, size in (("chunk_size", shape[0]), ("action_dim", shape[-1])):
        announced = info.get(name)
        if isinstance(announced, int) and announced != size:
            raise RemoteProtocolError(
                f"the actions in the reply have shape {shape}, but the server announced {name} {announced}"
            )


def _is_echo(echoed: Any, sent: Any) -> bool:
    """Return whether a reply's timestep is the request's; it has one for each row of a batch."""
    if not isinstance(echoed, (int, np.integer)) and not is_numeric(echoed, "iu"):
        return False
    ours, theirs = np.ravel(sent), np.ravel(echoed)
    return len(theirs) > 0 and len(ours) in (1, len(theirs)) and bool((theirs == ours).all())


def _stack(step: Any) -> np.ndarray:
    """Return one step of the list form: (action_dim,), or (B, action_dim) from an object array of rows."""
    if isinstance(step, (MetaAction, dict)):
        return np.asarray(step["action"])
    return np.stack([np.asarray(row["action"]) for row in step])
