"""The simulator port: which connection speaks for which session, and how all of them end."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from robowire.errors import (
    ConfigurationError,
    InvalidParams,
    Overloaded,
    SessionNotFound,
    ShuttingDown,
    SimulatorAlreadySelected,
)
from robowire.interfaces import TaskOptions
from robowire.registry import Entry, nearest
from robowire.serving.metrics import Metrics
from robowire.serving.rpc import answer_call
from robowire.serving.sessions import Session
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.pool import SimulatorPool
from robowire.serving.simulator.process import SimulatorProcess
from robowire.serving.simulator.session import SimulatorSession
from robowire.serving.simulator.snapshot_store import SnapshotStore
from robowire.serving.tcp.frontend import TcpServer
from robowire.serving.text import answer_line
from robowire.version import __version__
from robowire.wire.messages import PROTOCOL_VERSION, Call, ok
from robowire.wire.methods import check_params, take_number
from robowire.wire.pickle.writer import Buffer

__all__ = ["SimulatorServer", "SimulatorServerOptions"]

logger = logging.getLogger(__name__)

# After the drain a session's thread only has to notice that its process was killed, and to reap it.
_REAPING_S = 5.0


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
        self.simulators: Mapping[str, Entry] = dict(simulators)
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
        self._tcp = TcpServer(options, lambda session: _Connection(self, session), self.metrics)
        self._changed = threading.Condition()  # guards what follows
        self._running: set[SimulatorSession] = set()
        self._closing = False
        self._guests = 0  # requests in hand that came without a connection
        self._drain_ends: float | None = None  # set by stop, which may take no lock
        self._watch: threading.Thread | None = None  # ends sessions that nobody came back to
        self.pool = SimulatorPool(
            self.simulators, self.pythons, warm=options.warm, load_timeout_s=options.load_timeout_s
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""
        return self._tcp.address

    def __enter__(self) -> SimulatorServer:
        self._tcp.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
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
        if self._drain_ends is None:
            self._drain_ends = time.monotonic() + self.options.drain_s
        self._tcp.stop()

    @contextmanager
    def guest(self, token: str | None = None, *, label: str = "guest") -> Iterator[SimulatorSession]:
        """Lend a session to one request of a front door that has no connections; its lock is held meanwhile.

        Args:
            token: Whose session. ``None`` makes a new one, which the request gives a simulator: then it waits
                for others that show its token. It ends if the request fails.
            label: Who a new one belongs to, for the log.

        Raises:
            SessionNotFound: No session has this token.
            ShuttingDown: The server takes no new requests.
        """
        with self._changed:
            if self._drain_ends is not None:
                raise ShuttingDown("the server shuts down and takes no new requests")
            self._guests += 1
        try:
            if token is None:
                yield from self._begin_session(label)
            else:
                yield from self._lend_session(token)
        finally:
            with self._changed:
                self._guests -= 1
                self._changed.notify_all()

    def _begin_session(self, label: str) -> Iterator[SimulatorSession]:
        session = SimulatorSession(self, label)
        session.owner, session.resumable = self, True  # not forgotten while it is made
        with session.lock:
            try:
                yield session
            except BaseException:
                session.close()
                raise
            session.touch()
            if not self.detach(session):
                session.close()

    def _lend_session(self, token: str) -> Iterator[SimulatorSession]:
        session = self.find(token)
        with session.lock:  # after the request that another one has in hand
            if session.token != token:
                raise SessionNotFound("the session of this token has just ended")
            session.touch()
            try:
                yield session
            finally:
                session.touch()

    def enter(self, session: SimulatorSession) -> None:
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

    def leave(self, session: SimulatorSession) -> None:
        """Take the place back, if it has one."""
        with self._changed:
            self._running.discard(session)
            self._changed.notify_all()

    def start_process(
        self, name: str, *, label: str, client_has_left: Callable[[], bool]
    ) -> SimulatorProcess:
        """Return a process of a simulator, which lives until it is closed or the server ends.

        Raises:
            BackendError: It cannot be started.
            ShuttingDown: The server has ended.
        """
        process = self.pool.take(name, label=label, client_has_left=client_has_left)
        if self._closing:
            process.kill()
        return process

    def task_was_loaded(self, name: str, params: Mapping[str, Any]) -> None:
        """Take note of how a task of a simulator was loaded: the next one may be loaded alike."""
        self.pool.task_was_loaded(name, params)

    def detach(self, session: SimulatorSession) -> bool:
        """Keep a session until its deadline, for a connection that shows its token; its lock is held.

        Returns:
            Whether it may be kept. One that may not is the caller's to close.
        """
        with self._changed:
            if (
                self._closing
                or session.token is None
                or not session.selected
                or session.deadline <= time.monotonic()
            ):
                return False
            session.owner = None
            if self._watch is None:
                self._watch = threading.Thread(target=self._end_forgotten, name="watch", daemon=True)
                self._watch.start()
            self._changed.notify_all()
        return True

    def find(self, token: str) -> SimulatorSession:
        """Return the session of a token.

        Raises:
            SessionNotFound: There is none, or no longer.
        """
        shown = token.encode("utf-8", "surrogatepass")  # what comes over a wire can be no Unicode
        with self._changed:
            for session in self._running:
                if session.token is not None and hmac.compare_digest(session.token.encode(), shown):
                    return session
        raise SessionNotFound(
            "no session has this token: it ended, or nothing was asked of it for "
            f"{self.options.session_timeout_s:g} s"
        )

    def list_simulators(self) -> dict[str, Any]:
        """Return the reply to ``list_simulators``."""
        return ok(
            simulators=sorted(self.simulators),
            summaries={name: entry.summary for name, entry in self.simulators.items()},
        )

    def room(self) -> dict[str, Any]:
        """Return what ``stats`` says of simulators: how many are in use, and of how many."""
        with self._changed:
            return {"simulator_sessions": len(self._running), "max_sessions": self.options.max_sessions}

    def facts(self) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` say of the server."""
        with self._changed:
            sessions = [session.summary() for session in self._running if session.selected]
        return {
            "server": "simulator",
            "version": __version__,
            "protocol_version": PROTOCOL_VERSION,
            "simulators": sorted(self.simulators),
            "sessions": sessions,
            "max_sessions": self.options.max_sessions,
            "warm": self.pool.ready(),
            "session_timeout_s": self.options.session_timeout_s,
            "call_timeout_s": self.options.call_timeout_s,
            "load_timeout_s": self.options.load_timeout_s,
        }

    def _end_forgotten(self) -> None:
        """Be the thread that ends sessions without a connection when their time is up."""
        while True:
            with self._changed:
                if self._closing:
                    return
                waiting = [session for session in self._running if session.owner is None]
                session = min(waiting, key=lambda session: session.deadline, default=None)
                left = None if session is None else session.deadline - time.monotonic()
                if session is None or (left is not None and left > 0):
                    self._changed.wait(left)
                    continue
            with session.lock:
                if session.owner is None and session.deadline <= time.monotonic():
                    logger.info("a session that nobody came back to ends")
                    session.close()

    def _kill_all(self) -> None:
        """End the simulators of requests that did not finish within the drain, and of sessions that wait."""
        self.stop()  # where something else than a word of ours ended the serving
        assert self._drain_ends is not None
        with self._changed:
            left = self._drain_ends - time.monotonic()
            self._changed.wait_for(lambda: not self._guests, timeout=max(left, 0))
            self._closing = True  # before the round below: a process that is just being started sees it
            for session in self._running:
                session.kill()
            waiting = [session for session in self._running if session.owner is None]
            self._changed.notify_all()
        for session in waiting:
            with session.lock:
                session.close()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._running, timeout=_REAPING_S):
                logger.warning("%d simulator sessions did not end", len(self._running))
        self.pool.close()
        if self._watch is not None:
            self._watch.join()


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


class _Connection:
    """What one connection asks: of the server, or of its session."""

    def __init__(self, server: SimulatorServer, session: Session) -> None:
        self._server = server
        self._session = session
        self._simulation = SimulatorSession(server, str(session), session.has_left)
        self._simulation.owner = self
        self._methods: Mapping[str, Callable[..., dict[str, Any]]] = {
            "list_simulators": server.list_simulators,
            "list_snapshots": lambda: ok(snapshots=server.snapshots.describe()),
            "delete_snapshot": self._delete_snapshot,
            "resume": self._resume,
            "get_info": self._get_info,
            "renew": lambda: ok(session_timeout_s=server.options.session_timeout_s),
            "ping": lambda: ok(),
            "stats": lambda: ok(**server.metrics.snapshot(), **server.room()),
        }

    def payload(self, payload: bytearray) -> Sequence[Buffer]:
        """Return the frame that answers one request."""
        try:
            return answer_call(payload, self._session, self._server.metrics, self._answer)
        finally:
            if self._simulation.owner is self:
                self._simulation.touch()

    def line(self, line: str) -> bytes:
        """Return the line that answers a line of text."""
        return answer_line(line, self._session, self._server.metrics, self._facts)

    def close(self) -> None:
        """End the session, or let it wait for another connection."""
        if self._simulation.owner is not self:
            return  # another connection has it, and may be busy with it
        with self._simulation.lock:
            if self._simulation.owner is self and not self._server.detach(self._simulation):
                self._simulation.close()

    def _answer(self, call: Call) -> dict[str, Any] | Buffer:
        if call.method == "hello":
            reply = self._session.hello(
                call.params, server="simulator", auth_token=self._server.options.auth_token
            )
            self._simulation.resumable = call.params.get("resumable") is True
            return reply
        self._session.admit()
        call, number = take_number(call)
        params = check_params(call)  # and the method
        if call.method in self._methods:
            return self._methods[call.method](**params)
        with self._simulation.lock:
            self._require_ours()
            return self._simulation.execute(call.method, params, number)

    def _require_ours(self) -> None:
        if self._simulation.owner is not self:
            raise SessionNotFound("another connection resumed this session")

    def _delete_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        self._server.snapshots.delete(snapshot_id, asker=self._simulation)
        return ok()

    def _resume(self, token: str) -> dict[str, Any]:
        if self._simulation.selected:
            raise SimulatorAlreadySelected(
                "this session runs a simulator already: open another connection, or disconnect first"
            )
        simulation = self._server.find(token)
        with simulation.lock:  # after the request that another connection left behind
            if simulation.token != token:
                raise SessionNotFound("the session of this token has just ended")
            simulation.owner = self
            self._simulation = simulation
            return ok(**simulation.describe())

    def _get_info(self) -> dict[str, Any]:
        with self._simulation.lock:
            self._require_ours()
            return ok(**self._facts(), **self._simulation.info())

    def _facts(self) -> dict[str, Any]:
        return {**self._server.facts(), "session": self._session.id}
