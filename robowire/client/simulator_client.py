"""Drive a simulator on a simulator server: one session, which outlives a connection that drops.

The address may be a fleet's: it names a simulator server with room, and the session is there.

A request whose reply was lost is sent again over a new connection, under the same number: the server
executes it once and repeats its reply. Where there is no such session, on an older server or without a
simulator, nothing is repeated: a step that got no reply may have been executed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Sequence

from robowire.address import split_address
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    SessionNotFound,
    SimulatorAlreadySelected,
    TransportError,
)
from robowire.images import decode_images, require_pillow
from robowire.interfaces import StepResult
from robowire.specs import SimulatorSpec
from robowire.transport.connection import Connection, require_seconds
from robowire.wire.messages import hello, raise_for_status
from robowire.wire.methods import NUMBERED
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from robowire.meta import MetaAction

__all__ = ["ChunkResult", "ResumedSession", "SimulatorClient"]

logger = logging.getLogger(__name__)

# Saying goodbye lets the server free the simulator before we return; it does so by itself if we are in a
# hurry.
_GOODBYE_S = 5.0

# Between attempts to come back: short enough not to be felt, and not to be a burden for a server that starts.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk of steps gives.

    Attributes:
        observation: After the last step.
        rewards: One for each executed step.
        terminated: The task ended the episode.
        truncated: The step limit ended it.
        info: Of the last step.
        steps: How many were executed; fewer than were sent where the episode ended.
    """

    observation: Any
    rewards: list[float]
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    steps: int


@dataclass(frozen=True)
class ResumedSession:
    """What a client that takes a session over must know.

    Attributes:
        simulator: The selected one.
        spec: Of the loaded task; ``None`` where none is loaded.
        observation: The last one, which the next action answers; ``None`` where there was no reset.
    """

    simulator: str
    spec: SimulatorSpec | None
    observation: Any


class SimulatorClient:
    """A session with a simulator server. Needs numpy and nothing else.

    ::

        with SimulatorClient("localhost", 5555) as simulator:
            simulator.select_simulator("robosuite")
            spec = simulator.load_task("Lift", camera_names=["agentview"])
            observation = simulator.reset(seed=0)
            result = simulator.step(action)  # the simulator's own, or a MetaAction

    It connects at the first request, or by :meth:`connect`. Where the connection drops it comes back to its
    session by itself. Where that fails, or a reply takes too long, the session is over for this client, and
    every request says so until :meth:`connect` begins a new one or :meth:`resume` goes on with one. Not
    thread-safe: open a client for each thread.

    Args:
        host: Name or address of the server, or of a fleet.
        port: Its simulator port.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete. The server
            has limits of its own and says which call it gave up on, so let this be longer than they are.
        token: Shown to the server, where it wants one.
        reconnect_s: Seconds to try to come back to the session when the connection drops. 0 asks for a
            session that ends with its connection.
        decode_images: Whether to decode pictures that come as JPEG or PNG, for which Pillow is needed.
            Otherwise they stay as the wire has them: ``{"encoding", "shape", "data"}``.
        open_connection: Makes the connection; tests pass their own.

    Every method that asks the server raises:
        ConnectFailed: Nobody answers there.
        ConnectionLost: The connection ended before the reply: what was asked may have been done.
        RequestTimeout: No reply in time.
        RequestError: The server's own error, as its class: ``TaskNotFound``, ``NotReset``, ``BackendError``
            ...
        RemoteProtocolError: The reply can't be read, or is not of this wire.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5555,
        *,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 330.0,
        token: str | None = None,
        reconnect_s: float = 30.0,
        decode_images: bool = True,
        open_connection: Callable[..., Connection] = Connection.connect,
    ) -> None:
        require_seconds(connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)
        if reconnect_s < 0:
            raise ValueError(f"reconnect_s is {reconnect_s!r}, expected 0 or more seconds")
        self.host = host
        self.port = port
        self._reconnect_s = reconnect_s
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._token = token
        self._decode_images = decode_images
        self._open_connection = open_connection
        self._connection: Connection | None = None
        self._over: str | None = None  # why the session ended; None before the first and while it lasts
        self._session_token: str | None = None  # what a connection shows to go on with the session
        self._service: str | None = None  # which of a fleet's servers has the session
        self._number = 0  # of the last request that the server may have executed

    # -- the session
    # --------------------------------------------------------------------------------------------

    @property
    def session_token(self) -> str | None:
        """What another client shows to :meth:`resume` this session; ``None`` where there is no simulator."""
        return None if self._session_token is None else self._with_service(self._session_token)

    def connect(self) -> None:
        """Begin a session, unless there is one already."""
        if self._connection is not None:
            return
        self._session_token, self._service, self._number = None, None, 0
        self._connection, self._over = self._greet(), None

    def resume(self, session_token: str) -> ResumedSession:
        """Go on with a session that another connection left behind, or that :meth:`fork` made.

        Raises:
            SessionNotFound: It ended, or never was.
            SimulatorAlreadySelected: This client's own session has a simulator.
        """
        token, _, service = session_token.partition("@")
        if service and (self._connection is None or service != self._service):
            self._move(service)
        self.connect()
        reply = self._resume(token)
        spec, last = reply["spec"], reply["last"]
        return ResumedSession(
            reply["simulator"],
            None if spec is None else SimulatorSpec.from_wire(spec),
            None if last is None else self._observation(last),
        )

    def _greet(self) -> Connection:
        """Return a new connection with a simulator server, of the session's service where it has one."""
        kept, pause = self._service, _FIRST_PAUSE_S
        while True:
            connection, reply = self._say_hello(self.host, self.port, redirect=True, service=kept)
            if reply.get("server") != "fleet":
                break
            connection.close()
            address, self._service = str(self._field(reply, "redirect")), self._field(reply, "service")
            try:
                host, port = split_address(address)
            except ValueError:
                raise RemoteProtocolError(
                    f"the fleet sends to {address[:100]!r}, expected host:port"
                ) from None
            try:
                connection, reply = self._say_hello(host, port)
                break
            except (ConnectFailed, ConnectionLost):
                # It is about to end, and the fleet does not know yet. The next request may name another one.
                if kept is not None or pause > _LONGEST_PAUSE_S:
                    raise
            time.sleep(pause)
            pause *= 2
        if reply.get("server") != "simulator":
            connection.close()
            raise ConfigurationError(
                f"{self.host}:{self.port} is a {reply.get('server')} server, not a simulator server: "
                "use its simulator port, or PolicyClient"
            )
        logger.info("connected to %s, session %s", connection.peer, reply.get("session"))
        return connection

    def _say_hello(self, host: str, port: int, **said: Any) -> tuple[Connection, dict[str, Any]]:
        """Return a new connection and what its server replied to a hello."""
        connection = self._open_connection(host, port, timeout_s=self._connect_timeout_s)
        request = hello(resumable=self._reconnect_s > 0, token=self._token, **said)
        try:
            payload = connection.exchange(encode_frame(request), timeout_s=self._connect_timeout_s)
            return connection, raise_for_status(loads(payload))
        except BaseException:
            connection.close()
            raise

    def _move(self, service: str) -> None:
        """Connect to that service of the fleet, in the place of another one where nothing was begun."""
        if self._connection is not None:
            if self._session_token is not None:
                raise SimulatorAlreadySelected(
                    "this session runs a simulator already: resume with another client, or disconnect first"
                )
            self.disconnect()
        self._session_token, self._service, self._number = None, service, 0
        self._connection, self._over = self._greet(), None

    def _with_service(self, token: str) -> str:
        """Return what leads another client to the server that has the session, too."""
        return token if self._service is None else f"{token}@{self._service}"

    def _resume(self, session_token: str) -> dict[str, Any]:
        reply = self._exchange("resume", {"token": session_token}, timeout_s=self._timeout_s)
        for name in ("simulator", "token", "number", "spec", "last"):
            self._field(reply, name)
        self._session_token = session_token
        self._number = max(self._number, reply["number"])
        return reply

    def disconnect(self) -> None:
        """End the session; its simulator is freed. May be called twice."""
        if self._connection is None:
            return
        try:
            self._exchange("disconnect", {}, timeout_s=min(_GOODBYE_S, self._timeout_s))
        except (TransportError, RequestError, RemoteProtocolError) as exc:
            logger.debug("%s:%d did not say goodbye: %s", self.host, self.port, exc)
        self._end("it was disconnected")
        self._session_token = None

    def __enter__(self) -> SimulatorClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    # -- choosing
    # -----------------------------------------------------------------------------------------------

    def list_simulators(self) -> list[str]:
        """Return the names :meth:`select_simulator` takes."""
        return list(self._call("list_simulators")["simulators"])

    def select_simulator(self, name: str) -> None:
        """Start a simulator for this session, in a process of its own on the server's machine.

        Args:
            name: One of :meth:`list_simulators`; with one of its tasks, ``"gymnasium:FetchReach-v4"``, that
                task is the one that :meth:`load_task` loads where none is named.
        """
        self._session_token = self._call("select_simulator", simulator=name).get("token")

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the names :meth:`load_task` takes; of one suite, where the simulator has suites."""
        return list(self._call("list_tasks", suite=suite)["tasks"])

    def load_task(
        self,
        task_name: str | None = None,
        *,
        robot: str | None = None,
        controller: str | None = None,
        camera_names: Sequence[str] | None = None,
        image_height: int | None = None,
        image_width: int | None = None,
        horizon: int | None = None,
        reward_shaping: bool | None = None,
        control_hz: float | None = None,
        names: str | None = None,
        observation_format: str = "raw",
        observation_keys: Sequence[str] | None = None,
        image_encoding: str = "raw",
        jpeg_quality: int = 95,
    ) -> SimulatorSpec:
        """Build a task, in a new process where the last one died, and return what it gives and takes.

        Args:
            task_name: One of :meth:`list_tasks`; ``None`` means the one that was selected with the simulator.
            robot: For example ``"Panda"``. This and every other option: ``None`` means the server's default.
            controller: For example ``"OSC_POSE"``.
            camera_names: Cameras in the order of ``MetaObs.image``; an empty list for none.
            image_height: Pixels.
            image_width: Pixels.
            horizon: Steps after which an episode is truncated.
            reward_shaping: Dense reward instead of 1 at success.
            control_hz: Actions per second of simulated time.
            names: What raw observations are called: ``"raw"``, or what the simulator offers beside (LIBERO:
                ``"center"``).
            observation_format: ``"raw"``: a dict of the simulator's own names; ``"meta"``: a MetaObs, as
                policies read it.
            observation_keys: Of a raw observation, the names that are to be sent; ``None`` means all. A
                camera that is not in ``camera_names`` is not even drawn.
            image_encoding: How pictures of a raw observation cross the wire: ``"raw"``, ``"jpeg"`` or
                ``"png"``. They arrive as arrays all the same.
            jpeg_quality: 1 to 100.

        Raises:
            MissingDependency: Pictures are to be decoded here, and Pillow is not installed.
        """
        if image_encoding != "raw" and self._decode_images:
            require_pillow(f"image_encoding {image_encoding!r} (without decode_images=False)")
        # An older server refuses parameters that it does not know, so they go where they are asked for only.
        newer: dict[str, Any] = {}
        if observation_keys is not None:
            newer["observation_keys"] = list(observation_keys)
        if image_encoding != "raw":
            newer.update(image_encoding=image_encoding, jpeg_quality=jpeg_quality)
        reply = self._call(
            "load_task",
            task_name=task_name,
            robot=robot,
            controller=controller,
            camera_names=None if camera_names is None else list(camera_names),
            image_height=image_height,
            image_width=image_width,
            horizon=horizon,
            reward_shaping=reward_shaping,
            control_hz=control_hz,
            names=names,
            observation_format=observation_format,
            **newer,
        )
        return SimulatorSpec.from_wire(reply)

    # -- an episode
    # ---------------------------------------------------------------------------------------------

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode and return its first observation, in the loaded task's ``observation_format``.

        Args:
            seed: Of every random choice of the episode; ``None`` draws one.
            init_state: A numbered initial state, where the simulator has them.
        """
        return self._observation(self._call("reset", seed=seed, init_state=init_state))

    def step(self, action: np.ndarray | Sequence[float] | MetaAction) -> StepResult:
        """Execute one action: the simulator's own, (action_dim,), or a MetaAction."""
        reply = self._call("step", action=action)
        names = ("reward", "terminated", "truncated", "info")
        return StepResult(self._observation(reply), **{name: self._field(reply, name) for name in names})

    def step_chunk(self, actions: np.ndarray | Sequence[Any]) -> ChunkResult:
        """Execute actions one after the other, until the episode ends.

        Args:
            actions: (n, action_dim), or a list of what :meth:`step` takes; none is executed if one does not
                fit.
        """
        reply = self._call("step_chunk", actions=actions)
        names = ("rewards", "terminated", "truncated", "info", "steps")
        return ChunkResult(self._observation(reply), **{name: self._field(reply, name) for name in names})

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright; ``None`` means the best view for people."""
        image: np.ndarray = self._field(self._call("render", camera_name=camera_name), "image")
        return image

    # -- instants of an episode
    # -------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Return the id of the episode's whole state, kept by the server; equal states have one id."""
        snapshot_id: str = self._field(self._call("snapshot"), "snapshot_id")
        return snapshot_id

    def restore(self, snapshot_id: str) -> Any:
        """Go to that instant, from which the episode goes on bit for bit, and return its observation.

        A task loaded in the same way is enough; it need not be reset.

        Raises:
            SnapshotNotFound: The server has none of this id.
            SnapshotMismatch: It is of another simulator, task, option, version or model; names it.
        """
        return self._observation(self._call("restore", snapshot_id=snapshot_id))

    def verify(self, snapshot_id: str, steps: int = 50) -> str | None:
        """Step twice from that instant and return what differed first, in words, or ``None``.

        The running episode goes on as if nothing had been.
        """
        reply = self._call("verify", snapshot_id=snapshot_id, steps=steps)
        difference: str | None = self._field(reply, "difference")
        return difference

    def fork(self, snapshot_id: str, n: int) -> list[str]:
        """Return the tokens of n new sessions at that instant, each with a simulator of its own.

        Clients go on with them by :meth:`resume`, within the server's ``session_timeout_s``.
        """
        tokens = self._field(self._call("fork", snapshot_id=snapshot_id, n=n), "tokens")
        return [self._with_service(token) for token in tokens]

    def list_snapshots(self) -> list[dict[str, Any]]:
        """Return ``snapshot_id``, ``bytes``, ``simulator``, ``task``, ``steps`` of all the server keeps."""
        return list(self._field(self._call("list_snapshots"), "snapshots"))

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Make the server forget a snapshot, unless other sessions made the same one and still run.

        Raises:
            SnapshotNotFound: The server has none of this id.
            InvalidParams: Another session made it, and still runs; this one did not.
        """
        self._call("delete_snapshot", snapshot_id=snapshot_id)

    # -- questions
    # ----------------------------------------------------------------------------------------------

    def get_info(self) -> dict[str, Any]:
        """Return what the server says of itself; with a task loaded, its spec and the versions behind it."""
        return {key: value for key, value in self._call("get_info").items() if key != "status"}

    def renew(self) -> float:
        """Keep the session for a while without asking anything of it; return for how many seconds."""
        seconds: float = self._field(self._call("renew"), "session_timeout_s")
        return seconds

    def stats(self) -> dict[str, Any]:
        """Return what the server counts: sessions, requests, errors, and how long they took."""
        return {key: value for key, value in self._call("stats").items() if key != "status"}

    def ping(self) -> float:
        """Return the seconds of one round trip to the server, the connection made before."""
        self._require_session()
        begun = time.perf_counter()
        self._call("ping")
        return time.perf_counter() - begun

    # -- one request
    # --------------------------------------------------------------------------------------------

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._require_session()
        if method in NUMBERED and self._session_token is not None:
            self._number += 1
            params["number"] = self._number
        try:
            return self._exchange(method, params, timeout_s=self._timeout_s)
        except ConnectionLost as exc:
            if self._session_token is None or self._reconnect_s == 0:
                raise
            return self._go_on(method, params, exc)

    def _go_on(self, method: str, params: dict[str, Any], lost: ConnectionLost) -> dict[str, Any]:
        """Come back to the session and ask again what got no reply."""
        assert self._session_token is not None
        deadline, pause = time.monotonic() + self._reconnect_s, _FIRST_PAUSE_S
        while True:
            try:
                self._connection, self._over = self._greet(), None
                self._resume(self._session_token)
                logger.warning("came back to the session with %s:%d: %s", self.host, self.port, lost)
                return self._exchange(method, params, timeout_s=self._timeout_s)
            except (ConnectFailed, ConnectionLost) as exc:
                if time.monotonic() + pause > deadline:
                    self._end("the connection was lost")
                    raise ConnectionLost(
                        f"{lost}; coming back failed for {self._reconnect_s:g} s: {exc}"
                    ) from exc
            except SessionNotFound as exc:
                self._end("it ended while the connection was lost")
                raise ConnectionLost(f"{lost}; meanwhile the session ended: {exc}") from exc
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _require_session(self) -> None:
        if self._over is not None:
            kept = self._session_token is not None
            raise ConnectionLost(
                f"the session with {self.host}:{self.port} is over"
                + (" for this client" if kept else ", and its simulator gone")
                + f", because {self._over}: "
                + ("resume(session_token) goes on with it, and " if kept else "")
                + "connect() begins a new one, with select_simulator and load_task"
            )
        self.connect()

    def _exchange(self, method: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert self._connection is not None
        buffers = encode_frame({"method": method, **params})  # first: what can't be encoded harms no session
        try:
            reply = loads(self._connection.exchange(buffers, timeout_s=timeout_s))
        except ConnectionLost as exc:
            self._end("the connection was lost")
            raise ConnectionLost(f"{exc}. {method!r} may have been executed, so it was not repeated") from exc
        except RequestTimeout as exc:
            self._end("a reply did not come in time")
            raise RequestTimeout(
                f"{exc}. {method!r} was not repeated: raise timeout_s, now {timeout_s:g}, if the server "
                "needs longer"
            ) from exc
        except BaseException:
            self._end("a request failed")
            raise
        return raise_for_status(reply)

    def _end(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._over = reason

    def _observation(self, reply: dict[str, Any]) -> Any:
        observation = self._field(reply, "observation")
        return decode_images(observation) if self._decode_images else observation

    def _field(self, reply: dict[str, Any], name: str) -> Any:
        if name not in reply:
            self._end("a reply was incomplete")
            raise RemoteProtocolError(f"the reply has no {name!r}, only {', '.join(map(repr, reply))}")
        return reply[name]
