"""Drive a simulator on a simulator server: one method of the client for each method of the wire.

The address may be a fleet's: it names a simulator server that has capacity, and the session is there. What
happens when a connection drops stands in ``resumable_session``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Sequence

from robowire.client.resumable_session import ResumableSession
from robowire.client.session import client_context
from robowire.images import decode_images, require_pillow
from robowire.interfaces import StepResult
from robowire.specs import SimulatorSpec
from robowire.transport.connection import Connection
from robowire.wire.methods import LoadTask

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    import numpy as np

    from robowire.meta import MetaAction

__all__ = ["ChunkResult", "ResumedSession", "SimulatorClient"]

# These parameters of load_task have been there from the start. An older server refuses the others, so they
# are sent only where they are used.
_OLDEST_PARAMETERS = (
    *("task_name", "robot", "controller", "camera_names", "image_height", "image_width", "horizon"),
    *("reward_shaping", "control_hz", "names", "observation_format"),
)


@dataclass(frozen=True)
class ChunkResult:
    """Result of a chunk of steps.

    Attributes:
        observation: Observation after the last step.
        rewards: Reward of each executed step.
        terminated: Whether the task ended the episode.
        truncated: Whether the step limit ended it.
        info: Info of the last step.
        steps: Number of executed steps; fewer than were sent where the episode ended.
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
        simulator: Name of the selected simulator.
        spec: Spec of the loaded task; ``None`` where none is loaded.
        observation: Last observation, which the next action answers; ``None`` where there was no reset.
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
        host: Name or address of the server, or of a fleet; ``unix:PATH`` of one on this machine.
        port: Its simulator port.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete. The server
            has limits of its own and says which call it gave up on, so let this be longer than they are.
        token: Token shown to the server, where it wants one.
        reconnect_s: Seconds to try to come back to the session when the connection drops. 0 asks for a
            session that ends with its connection.
        decode_images: Whether to decode images that come as JPEG or PNG, for which Pillow is needed.
            Otherwise they stay as the wire has them: ``{"encoding", "shape", "data"}``.
        tls: Whether the server speaks TLS, or a context to use.
        ca: PEM file of the certificates to trust, in the place of the system's; implies ``tls``.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        open_connection: Makes the connection; tests pass their own.

    Every method that asks the server raises:
        ConnectFailed: Nothing answers there.
        TlsFailed: A certificate is refused, or only one side speaks TLS.
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
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
        open_connection: Callable[..., Connection] = Connection.connect,
    ) -> None:
        self.host = host
        self.port = port
        self._decode_images = decode_images
        self._session = ResumableSession(
            host,
            port,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            token=token,
            reconnect_s=reconnect_s,
            tls=client_context(tls, ca, tls_cert, tls_key),
            wait_s=wait_s,
            open_connection=open_connection,
        )

    @property
    def session_token(self) -> str | None:
        """What another client shows to :meth:`resume` this session; ``None`` where there is no simulator."""
        token = self._session.token
        return None if token is None else self._session.with_service(token)

    def connect(self) -> None:
        """Begin a session, unless there is one already."""
        self._session.connect()

    def resume(self, session_token: str) -> ResumedSession:
        """Go on with a session that another connection left behind, or that :meth:`fork` made.

        Raises:
            SessionNotFound: It ended, or never was.
            SimulatorAlreadySelected: This client's own session has a simulator.
        """
        reply = self._session.resume(session_token)
        spec, last = reply["spec"], reply["last"]
        return ResumedSession(
            reply["simulator"],
            None if spec is None else SimulatorSpec.from_wire(spec),
            None if last is None else self._observation(last),
        )

    def disconnect(self) -> None:
        """End the session; its simulator is freed. May be called twice."""
        self._session.disconnect()

    def __enter__(self) -> SimulatorClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def list_simulators(self) -> list[str]:
        """Return the names :meth:`select_simulator` takes."""
        return list(self._call("list_simulators")["simulators"])

    def select_simulator(self, name: str) -> None:
        """Start a simulator for this session, in a process of its own on the server's machine.

        Args:
            name: One of :meth:`list_simulators`; with one of its tasks, ``"gymnasium:FetchReach-v4"``, that
                task is the one that :meth:`load_task` loads where none is named.
        """
        self._session.token = self._call("select_simulator", simulator=name).get("token")

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the names :meth:`load_task` takes; those of one suite, where the simulator has suites."""
        return list(self._call("list_tasks", suite=suite)["tasks"])

    def load_task(self, task_name: str | LoadTask | None = None, **options: Any) -> SimulatorSpec:
        """Build a task, in a new process where the last one died, and return what it gives and takes.

        Args:
            task_name: One of :meth:`list_tasks`; ``None`` means the one that was selected with the simulator.
                Or a whole :class:`robowire.wire.methods.LoadTask`, without further options.
            **options: Fields of :class:`robowire.wire.methods.LoadTask` by name: ``robot``, ``controller``,
                ``camera_names``, ``image_height``, ``image_width``, ``horizon``, ``reward_shaping``,
                ``control_hz``, ``names``, ``observation_format``, ``observation_keys``, ``image_encoding``,
                ``jpeg_quality``. ``None`` means the server's default. Images that are encoded on the wire
                arrive as arrays all the same.

        Raises:
            MissingDependency: Images are to be decoded here, and Pillow is not installed.
        """
        if isinstance(task_name, LoadTask):
            task = replace(task_name, **options)
        else:
            task = LoadTask(task_name=task_name, **options)
        if task.image_encoding != "raw" and self._decode_images:
            require_pillow(f"image_encoding {task.image_encoding!r} (without decode_images=False)")
        params = task.params()
        for name in ("camera_names", "observation_keys"):
            params[name] = None if params[name] is None else list(params[name])
        sent = {name: params[name] for name in _OLDEST_PARAMETERS}
        if params["observation_keys"] is not None:
            sent["observation_keys"] = params["observation_keys"]
        if task.image_encoding != "raw":
            sent.update(image_encoding=task.image_encoding, jpeg_quality=task.jpeg_quality)
        return SimulatorSpec.from_wire(self._call("load_task", **sent))

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode and return its first observation, in the loaded task's ``observation_format``.

        Args:
            seed: Seed of every random choice of the episode; ``None`` draws one.
            init_state: Number of an initial state, where the simulator has them.
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

    def snapshot(self) -> str:
        """Return the id of the episode's whole state, kept by the server; equal states have one id."""
        snapshot_id: str = self._field(self._call("snapshot"), "snapshot_id")
        return snapshot_id

    def restore(self, snapshot_id: str) -> Any:
        """Go to that instant, from which the episode goes on bit for bit, and return its observation.

        A task loaded in the same way is enough; it need not be reset.

        Raises:
            SnapshotNotFound: The server has none of this id.
            SnapshotMismatch: It was made by another simulator, task, option, version or model; names it.
        """
        return self._observation(self._call("restore", snapshot_id=snapshot_id))

    def verify(self, snapshot_id: str, steps: int = 50) -> str | None:
        """Go on from that instant and return the first difference from the run that was saved, or ``None``.

        What that run gave is known for up to 50 steps after the last snapshots of a session, or it is at that
        instant still. Two runs that were restored are compared with each other too.
        The running episode continues afterwards, unchanged.
        """
        reply = self._call("verify", snapshot_id=snapshot_id, steps=steps)
        difference: str | None = self._field(reply, "difference")
        return difference

    def fork(self, snapshot_id: str, n: int) -> list[str]:
        """Return the tokens of n new sessions at that instant, each with a simulator of its own.

        Clients go on with them by :meth:`resume`, within the server's ``session_timeout_s``.
        """
        tokens = self._field(self._call("fork", snapshot_id=snapshot_id, n=n), "tokens")
        return [self._session.with_service(token) for token in tokens]

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

    def get_info(self) -> dict[str, Any]:
        """Return the server's info; with a task loaded, its spec and the versions that made it."""
        return {key: value for key, value in self._call("get_info").items() if key != "status"}

    def renew(self) -> float:
        """Keep the session for a while without another request; return for how many seconds."""
        seconds: float = self._field(self._call("renew"), "session_timeout_s")
        return seconds

    def stats(self) -> dict[str, Any]:
        """Return what the server counts: sessions, requests, errors, and how long they took."""
        return {key: value for key, value in self._call("stats").items() if key != "status"}

    def ping(self) -> float:
        """Return the seconds of one round trip to the server, on a connection that is open before."""
        self._session.require()
        begun = time.perf_counter()
        self._call("ping")
        return time.perf_counter() - begun

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._session.call(method, params)

    def _observation(self, reply: dict[str, Any]) -> Any:
        observation = self._field(reply, "observation")
        return decode_images(observation) if self._decode_images else observation

    def _field(self, reply: dict[str, Any], name: str) -> Any:
        return self._session.field(reply, name)
