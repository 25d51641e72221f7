"""What the simulator port answers: calls are put in order, and a process of each session does the work."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from robowire.contracts import TaskOptions
from robowire.errors import (
    BackendError,
    ConfigurationError,
    InvalidParams,
    NoSimulatorSelected,
    NoTaskLoaded,
    NotReset,
    Overloaded,
    RequestError,
    SimulatorAlreadySelected,
    UnknownSimulator,
)
from robowire.registry import Entry, nearest
from robowire.serving.metrics import Metrics
from robowire.serving.sessions import Session
from robowire.serving.simulator_process import Answer, SimulatorProcess
from robowire.serving.simulator_requests import check_action, check_actions, check_params
from robowire.serving.snapshots import SnapshotStore
from robowire.serving.tcp import TcpOptions, TcpServer
from robowire.serving.text import answer_line
from robowire.specs import SimulatorSpec
from robowire.version import __version__
from robowire.wire.encoding import Buffer, encode_frame
from robowire.wire.framing import frame_header
from robowire.wire.messages import PROTOCOL_VERSION, Call, error_reply, ok, parse_call
from robowire.wire.pickling import loads

__all__ = ["SimulatorServer", "SimulatorServerOptions"]

logger = logging.getLogger(__name__)

# After the drain a session's thread only has to notice that its process was killed, and to reap it.
_REAPING_S = 5.0


@dataclass(frozen=True)
class SimulatorServerOptions(TcpOptions):
    """Every option of a simulator server but the simulators and how tasks are built.

    Attributes:
        session_timeout_s: Seconds without a request after which a session and its simulator are ended.
        max_sessions: Simulators at one time; the next select_simulator is told "overloaded".
        call_timeout_s: Seconds for one call, or one chunk; a simulator that needs longer is killed.
        load_timeout_s: The same for select_simulator, load_task, reset and verify.
        max_snapshot_mb: Room for snapshots, all together, in megabytes.
        snapshot_dir: Folder to keep snapshots in, where other servers find them too; memory by default.
    """

    port: int = 5555
    session_timeout_s: float = 300.0
    # A robosuite process takes about 0.3 GB, and a core while it renders.
    max_sessions: int = 8
    # A chunk of 64 steps of the slowest LIBERO suite, rendered on a CPU, takes 15 s.
    call_timeout_s: float = 60.0
    # Compiling a large scene takes seconds, a simulator that starts a game engine takes a minute or two.
    load_timeout_s: float = 300.0
    # A snapshot of robosuite takes 0.1 to 0.3 MB.
    max_snapshot_mb: float = 256.0
    snapshot_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sessions < 1:
            raise ConfigurationError(f"max_sessions is {self.max_sessions}, expected at least 1")
        if not self.max_snapshot_mb > 0:
            raise ConfigurationError(f"max_snapshot_mb is {self.max_snapshot_mb}, expected more than 0")
        for name in ("call_timeout_s", "load_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )


class SimulatorServer:
    """Serve simulators, each session one in a process of its own. The port is bound when the object is made.

    Then use it as a context manager, which serves in a thread, or call :meth:`serve_forever`.

    Args:
        simulators: What clients may select. They can't name anything else: a name leads to code.
        options: Where to listen, and the limits.
        task: How tasks are built where a client does not say.
        pythons: Interpreter for a simulator; one that is not named runs with the server's own.

    Raises:
        ConfigurationError: The address can't be listened on, or an option is unusable.
    """

    def __init__(
        self,
        simulators: Mapping[str, Entry],
        options: SimulatorServerOptions,
        *,
        task: TaskOptions | None = None,
        pythons: Mapping[str, str] | None = None,
    ) -> None:
        self.simulators = dict(simulators)
        self.options = options
        self.task = _checked(task or TaskOptions())
        self.pythons = dict(pythons or {})
        for name in self.pythons:
            if name not in self.simulators:
                raise ConfigurationError(
                    f"simulator_python names {name!r}, which is no simulator here."
                    f"{nearest(name, simulators)} Known: {', '.join(sorted(simulators))}"
                )
        self.snapshots = SnapshotStore(
            max_bytes=int(options.max_snapshot_mb * 1e6),
            folder=None if options.snapshot_dir is None else Path(options.snapshot_dir),
        )
        self.metrics = Metrics()
        self._tcp = TcpServer(options, lambda session: _SimulatorSession(self, session), self.metrics)
        self._changed = threading.Condition()  # guards what follows
        self._running: set[_SimulatorSession] = set()
        self._closing = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""
        return self._tcp.address

    @property
    def closing(self) -> bool:
        """Whether every simulator process is to be killed."""
        return self._closing

    def __enter__(self) -> SimulatorServer:
        self._tcp.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._tcp.__exit__(kind, error, traceback)
        finally:
            self._kill_all()

    def describe(self) -> str:
        """Return one line for a person."""
        names = ", ".join(sorted(self.simulators)) or "no simulator"
        return f"simulators: {names}; at most {self.options.max_sessions} at one time"

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`; then drain. No simulator process is left when it returns."""
        try:
            self._tcp.serve_forever()
        finally:
            self._kill_all()

    def stop(self) -> None:
        """Tell :meth:`serve_forever` to end. May be called in a signal handler."""
        self._tcp.stop()

    def enter(self, session: _SimulatorSession) -> None:
        """Give a session one of the places for simulators.

        Raises:
            Overloaded: All are taken.
        """
        with self._changed:
            if len(self._running) >= self.options.max_sessions:
                raise Overloaded(
                    f"all {self.options.max_sessions} simulator sessions are taken; try again later"
                )
            self._running.add(session)

    def leave(self, session: _SimulatorSession) -> None:
        """Take the place back, if it has one."""
        with self._changed:
            self._running.discard(session)
            self._changed.notify_all()

    def _kill_all(self) -> None:
        """End the simulators of requests that did not finish within the drain."""
        self._closing = True  # before the round below: a process that is just being started sees it
        with self._changed:
            for session in self._running:
                session.kill()
            if not self._changed.wait_for(lambda: not self._running, timeout=_REAPING_S):
                logger.warning("%d simulator sessions did not end", len(self._running))


def _checked(task: TaskOptions) -> TaskOptions:
    """Return the options, read as a client's are.

    Raises:
        ConfigurationError: One has a value that no client could send.
    """
    options = {option.name: getattr(task, option.name) for option in fields(TaskOptions)}
    try:
        checked = check_params(Call("load_task", {"task_name": "", **options}))
    except InvalidParams as exc:
        raise ConfigurationError(str(exc)) from exc
    return TaskOptions(**{name: checked[name] for name in options})


class _SimulatorSession:
    """What one connection selected, loaded and reset. Its thread calls it, but for :meth:`kill`."""

    def __init__(self, server: SimulatorServer, session: Session) -> None:
        self._server = server
        self._session = session
        self._options = server.options
        self._name: str | None = None  # the selected simulator
        self._process: SimulatorProcess | None = None  # its process, which may have died
        self._spec: SimulatorSpec | None = None  # of the loaded task
        self._begun = False  # whether the task was reset since it was loaded
        self._not_reset: str | None = None  # why there is no episode to step in; None while there is one
        self._methods: Mapping[str, Callable[..., dict[str, Any] | Answer]] = {
            "list_simulators": self._list_simulators,
            "select_simulator": self._select_simulator,
            "list_tasks": self._list_tasks,
            "load_task": self._load_task,
            "reset": self._reset,
            "step": self._step,
            "step_chunk": self._step_chunk,
            "render": self._render,
            "snapshot": self._snapshot,
            "restore": self._restore,
            "verify": self._verify,
            "list_snapshots": lambda: ok(snapshots=server.snapshots.describe()),
            "delete_snapshot": self._delete_snapshot,
            "get_info": self._get_info,
            "ping": lambda: ok(),
            "stats": lambda: ok(**server.metrics.snapshot()),
            "disconnect": self._disconnect,
        }

    # -- the connection
    # -----------------------------------------------------------------------------------------

    def payload(self, payload: bytearray) -> Sequence[Buffer]:
        """Return the frame that answers one request."""
        value = loads(payload)
        started = time.monotonic()
        try:
            call = parse_call(value)
            if call.method == "hello":
                reply: dict[str, Any] | Answer = self._session.hello(
                    call.params, server="simulator", auth_token=self._options.auth_token
                )
            else:
                self._session.admit()
                params = check_params(call)  # and the method
                reply = self._methods[call.method](**params)
        except RequestError as exc:
            self._server.metrics.error(exc.error_type)
            logger.debug("%s: %s: %s", self._session, exc.error_type, exc)
            return encode_frame(error_reply(exc))
        self._server.metrics.observe(call.method, time.monotonic() - started)
        if isinstance(reply, Answer):
            return [frame_header(len(reply.payload)), reply.payload]
        return encode_frame(reply)

    def line(self, line: str) -> bytes:
        """Return the line that answers a line of text."""
        return answer_line(line, self._session, self._server.metrics, self._facts)

    def close(self) -> None:
        """End the simulator."""
        if self._process is not None:
            self._process.close()
        self._name = self._process = self._spec = None
        self._server.leave(self)

    def kill(self) -> None:
        """End the simulator at once, from another thread."""
        process = self._process
        if process is not None:
            process.kill()

    # -- the methods
    # --------------------------------------------------------------------------------------------

    def _list_simulators(self) -> dict[str, Any]:
        return ok(
            simulators=sorted(self._server.simulators),
            summaries={name: entry.summary for name, entry in self._server.simulators.items()},
        )

    def _select_simulator(self, simulator: str) -> dict[str, Any]:
        if self._name is not None:
            raise SimulatorAlreadySelected(
                f"this session runs {self._name!r} already: open another connection, or disconnect first"
            )
        known = self._server.simulators
        if simulator not in known:
            raise UnknownSimulator(
                f"no simulator is called {simulator!r}."[:200]
                + f"{nearest(simulator[:100], known)} Known: {', '.join(sorted(known))}"
            )
        self._server.enter(self)
        try:
            self._start(simulator)
        except BaseException:
            self.close()
            raise
        self._name = simulator
        return ok(simulator=simulator)

    def _list_tasks(self, suite: str | None) -> Answer:
        self._ensure_alive()
        return self._call("list_tasks", {"suite": suite}, self._options.load_timeout_s)

    def _load_task(self, task_name: str, observation_format: str, **requested: Any) -> Answer:
        self._ensure_alive()
        params = {"task_name": task_name, "observation_format": observation_format}
        for option in fields(TaskOptions):
            asked = requested[option.name]
            params[option.name] = getattr(self._server.task, option.name) if asked is None else asked
        self._spec, self._begun, self._not_reset = None, False, "reset comes before step"
        answer = self._call("load_task", params, self._options.load_timeout_s)
        self._spec = SimulatorSpec.from_wire(answer.read())
        return answer

    def _reset(self, seed: int | None, init_state: int | None) -> Answer:
        self._require_task()
        self._not_reset = "the last reset failed: reset again"
        answer = self._call("reset", {"seed": seed, "init_state": init_state}, self._options.load_timeout_s)
        self._begun, self._not_reset = True, None
        return answer

    def _step(self, action: Any) -> Answer:
        spec = self._require_episode()
        return self._advance("step", {"action": check_action(action, spec.action_dim)})

    def _step_chunk(self, actions: Any) -> Answer:
        spec = self._require_episode()
        return self._advance("step_chunk", {"actions": check_actions(actions, spec.action_dim)})

    def _render(self, camera_name: str | None) -> Answer:
        self._require_task()
        if not self._begun:
            raise NotReset("reset comes before render")
        return self._call("render", {"camera_name": camera_name}, self._options.call_timeout_s)

    def _snapshot(self) -> dict[str, Any]:
        self._require_episode()
        answer = self._call("snapshot", {}, self._options.call_timeout_s)
        payload = answer.read()["payload"]
        return ok(snapshot_id=self._server.snapshots.put(payload), bytes=len(payload))

    def _restore(self, snapshot_id: str) -> Answer:
        self._require_task()
        payload = self._server.snapshots.get(snapshot_id)
        try:
            answer = self._call("restore", {"payload": payload}, self._options.call_timeout_s)
        except BackendError:  # any other error came before the first change
            self._not_reset = "the last restore failed: reset or restore again"
            raise
        self._begun, self._not_reset = True, None
        return answer

    def _verify(self, snapshot_id: str, steps: int) -> Answer:
        self._require_task()
        payload = self._server.snapshots.get(snapshot_id)
        try:
            return self._call("verify", {"payload": payload, "steps": steps}, self._options.load_timeout_s)
        except BackendError:
            self._not_reset = "the last verify failed: reset or restore again"
            raise

    def _delete_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        self._server.snapshots.delete(snapshot_id)
        return ok()

    def _get_info(self) -> dict[str, Any]:
        info = self._facts()
        if self._spec is not None:
            answer = self._call("get_info", {}, self._options.call_timeout_s)
            info.update(self._spec.to_wire())
            info["process"] = {key: value for key, value in answer.read().items() if key != "status"}
        return ok(**info)

    def _disconnect(self) -> dict[str, Any]:
        self.close()
        return ok()

    # -- what they share
    # ----------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        return {
            "server": "simulator",
            "version": __version__,
            "protocol_version": PROTOCOL_VERSION,
            "session": self._session.id,
            "simulators": sorted(self._server.simulators),
            "simulator": self._name,
            "task": None,
            "max_sessions": self._options.max_sessions,
            "session_timeout_s": self._options.session_timeout_s,
            "call_timeout_s": self._options.call_timeout_s,
            "load_timeout_s": self._options.load_timeout_s,
        }

    def _start(self, name: str) -> None:
        self._process = SimulatorProcess(
            name,
            self._server.simulators[name],
            label=str(self._session),
            python=self._server.pythons.get(name, sys.executable),
            client_has_left=self._session.has_left,
        )
        if self._server.closing:
            self._process.kill()
        self._process.wait_until_ready(timeout_s=self._options.load_timeout_s)

    def _ensure_alive(self) -> None:
        """Start a new process in the place of one that died."""
        if self._name is None or self._process is None:
            raise NoSimulatorSelected("select_simulator comes first")
        if self._process.end is not None:
            self._start(self._name)

    def _require_task(self) -> SimulatorSpec:
        if self._process is None:
            raise NoSimulatorSelected("select_simulator comes first")
        self._process.require_alive()
        if self._spec is None:
            raise NoTaskLoaded("load_task comes first")
        return self._spec

    def _require_episode(self) -> SimulatorSpec:
        spec = self._require_task()
        if self._not_reset is not None:
            raise NotReset(self._not_reset)
        return spec

    def _advance(self, method: str, params: Mapping[str, Any]) -> Answer:
        try:
            answer = self._call(method, params, self._options.call_timeout_s)
        except BackendError:  # any other error came before the action was executed
            self._not_reset = "the simulator failed in the middle of the episode: reset begins another"
            raise
        if answer.over:
            self._not_reset = "the episode is over: reset begins the next one"
        return answer

    def _call(self, method: str, params: Mapping[str, Any], timeout_s: float) -> Answer:
        assert self._process is not None
        try:
            return self._process.call(method, params, timeout_s=timeout_s)
        except BackendError:
            if self._process.end is not None:
                self._spec = None
            raise
