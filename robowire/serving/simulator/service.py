"""The simulator service: which client has which session, and how all sessions end. No socket, no bytes."""

from __future__ import annotations

import hmac
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from robowire.errors import (
    ConfigurationError,
    InvalidParams,
    Overloaded,
    SessionNotFound,
    SimulatorAlreadySelected,
    Unauthenticated,
)
from robowire.interfaces import TaskOptions
from robowire.registry import Entry, nearest
from robowire.serving.service import Service
from robowire.serving.sessions import Peer, Session
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.pool import ProcessPool
from robowire.serving.simulator.process import SimulatorProcess
from robowire.serving.simulator.session import SimulatorSession
from robowire.serving.simulator.snapshot_store import SnapshotStore
from robowire.version import __version__
from robowire.wire.messages import PROTOCOL_VERSION, Request, ok
from robowire.wire.methods import METHODS, check_params, handlers, methods_of_scope, take_number
from robowire.wire.packed_simulator import StepRequest
from robowire.wire.pickle.writer import Buffer
from robowire.wire.shared_reply import SharedReply
from robowire.wire.text_safety import quoted
from robowire.worker.shared_memory import SharedMemory

__all__ = ["SimulatorClientSession", "SimulatorService"]

logger = logging.getLogger(__name__)

# Below it, a reply that lies in shared memory is not faster than one on a Unix socket (`perf/steps.py`).
SHARED_MIN = 256 * 1024

# After the drain a session's thread only has to notice that its process was killed, and to reap it.
_REAPING_S = 5.0


@dataclass(eq=False)
class SimulatorClientSession(Session):
    """One client's session with the service, and the simulator session it speaks for.

    Attributes:
        simulation: Its own simulator session, or one that it resumed.
        slots: Memory that its client has the descriptor of, by its slot.
        in_memory: The last reply that lies there: it stays until the client, which has read it, asks again.
    """

    packs: ClassVar[bool] = True

    simulation: SimulatorSession = field(kw_only=True)
    slots: dict[int, SharedMemory] = field(default_factory=dict)
    in_memory: Buffer | None = None

    def shared(self, reply: Buffer) -> Buffer:
        """Return what is sent of a reply: where it lies, if its client can read that, or itself.

        The lock of the simulator session is held, so that its memory is not closed meanwhile.
        """
        found = self.simulation.region_of(reply) if len(reply) >= SHARED_MIN else None
        if found is None:
            return reply
        slot, memory = found
        new = self.slots.get(slot) is not memory
        if new:
            try:
                memory.seal_against_writing()
                self.descriptor = os.dup(memory.fd)
            except OSError as exc:  # an older kernel, or no descriptor is left
                logger.info("%s: replies are sent without shared memory: %s", self, exc)
                self.reads_shared = False
                return reply
            self.slots[slot] = memory
        self.in_memory = reply
        return SharedReply(slot, new, len(reply), memory.size).payload()


class SimulatorService(Service[SimulatorClientSession]):
    """Run simulators for clients, each session in a process of its own.

    Args:
        simulators: What clients may select. They can't name anything else: a name leads to code.
        options: Limits, timeouts, snapshots.
        task: How tasks are built where a client does not say.
        pythons: Interpreter of a simulator; one that is not named runs with the server's own.

    Raises:
        ConfigurationError: An option is unusable.

    Attributes:
        simulators: As given.
        options: As given.
        task: As given, checked.
        pythons: As given.
        snapshots: Snapshots of all sessions.
        pool: Warm processes.
    """

    kind = "simulator"
    methods = frozenset(METHODS)

    def __init__(
        self,
        simulators: Mapping[str, Entry],
        options: SimulatorServerOptions,
        *,
        task: TaskOptions | None = None,
        pythons: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(token=options.token)
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
        self._changed = threading.Condition()  # guards what follows
        self._running: set[SimulatorSession] = set()
        self._numbers = itertools.count(1)
        self._closing = False
        self._watch: threading.Thread | None = None  # ends sessions that no client resumed in time
        self.pool = ProcessPool(
            self.simulators,
            self.pythons,
            warm=options.warm,
            load_timeout_s=options.load_timeout_s,
            fork=options.fork_sessions,
        )
        self._server_methods = handlers(self, methods_of_scope("server"))
        self._client_methods = handlers(self, methods_of_scope("connection"))
        self._report_gauges()

    def _report_gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("simulator_sessions", "Simulator sessions in use.", lambda: len(self._running))
        gauge("simulator_sessions_max", "Capacity for sessions.", lambda: self.options.max_sessions)
        gauge(
            "simulators_warm", "Simulator processes that are kept ready.", self.pool.ready, label="simulator"
        )
        gauge("simulator_memory_bytes", "Memory of all simulator processes in use.", self._memory)
        gauge("snapshots", "Snapshots that are kept.", lambda: self.snapshots.usage()[0])
        gauge("snapshot_bytes", "Size of the snapshots that are kept.", lambda: self.snapshots.usage()[1])
        gauge("snapshot_bytes_max", "Limit of their size.", lambda: self.snapshots.max_bytes)

    def _memory(self) -> int:
        with self._changed:
            running = list(self._running)
        return sum(session.memory() for session in running)

    # -- requests of connected clients ---------------------------------------------------------------------

    def _make_session(self, number: int, peer: Peer, *, authenticated: bool) -> SimulatorClientSession:
        simulation = SimulatorSession(self, f"client #{number}", peer.has_left, wire=peer.wire)
        session = SimulatorClientSession(number, peer, authenticated, simulation=simulation)
        simulation.owner = session
        return session

    def close_session(self, session: SimulatorClientSession) -> None:
        """End the simulator, or keep it for a client that resumes the session."""
        session.in_memory = None  # now, and not when the collector finds the session: it holds a descriptor
        session.slots.clear()
        simulation = session.simulation
        if simulation.owner is session:  # otherwise another client has it, and may be using it
            with simulation.lock:
                if simulation.owner is session:
                    if self.detach(simulation):
                        simulation.detached_at = time.monotonic()
                    else:
                        simulation.close()
        super().close_session(session)

    def _hello(self, session: SimulatorClientSession, params: Mapping[str, Any]) -> dict[str, Any]:
        reply = super()._hello(session, params)
        session.simulation.resumable = params.get("resumable") is True
        return reply

    def _execute(self, session: SimulatorClientSession, request: Request) -> dict[str, Any] | Buffer:
        started = time.monotonic()
        known = request.known if isinstance(request, StepRequest) else None
        try:
            request, number = take_number(request)
            params = check_params(request)  # and the method
            if request.method in self._server_methods:
                reply: dict[str, Any] | Buffer = self._server_methods[request.method](**params)
            elif request.method in self._client_methods:
                reply = self._client_methods[request.method](session, **params)
            else:
                with session.simulation.lock:
                    self._require_owner(session)
                    session.in_memory = None
                    reply = session.simulation.execute(request.method, params, number, known=known)
                    if session.reads_shared:
                        reply = session.shared(reply)
        finally:
            if session.simulation.owner is session:
                session.simulation.touch()
        self.metrics.observe(request.method, time.monotonic() - started)
        return reply

    def _list_simulators(self) -> dict[str, Any]:
        return self.list_simulators()

    def _list_snapshots(self) -> dict[str, Any]:
        return ok(snapshots=self.snapshots.describe())

    def _renew(self) -> dict[str, Any]:
        return ok(session_timeout_s=self.options.session_timeout_s)

    def _ping(self) -> dict[str, Any]:
        return ok()

    def _get_status(self, session: SimulatorClientSession, **params: Any) -> dict[str, Any]:
        return ok(**self.status(session, **params))

    def _end_session(self, asker: SimulatorClientSession, session: str) -> dict[str, Any]:
        self._require_operator(asker)
        if not self.control:
            raise Unauthenticated(
                "sessions are ended by their clients: start the server with --dashboard_control to end others"
            )
        found = self._find_shown(session)
        if found is None:
            raise SessionNotFound(f"no session is called {quoted(session, 75)}")
        logger.info("%s ends %s", asker, session)
        found.kill()  # a request in hand fails, and its thread lets go of the lock
        with found.lock:
            found.close()
        return ok()

    def _find_shown(self, name: str) -> SimulatorSession | None:
        with self._changed:
            found = [session for session in self._running if name == f"simulator {session.number}"]
        return found[0] if found else None

    def _stats(self) -> dict[str, Any]:
        return ok(**self.stats())

    def _require_owner(self, session: SimulatorClientSession) -> None:
        if session.simulation.owner is not session:
            raise SessionNotFound("another connection resumed this session")

    def _delete_snapshot(self, session: SimulatorClientSession, snapshot_id: str) -> dict[str, Any]:
        self.snapshots.delete(snapshot_id, asker=session.simulation)
        return ok()

    def _resume(self, session: SimulatorClientSession, token: str) -> dict[str, Any]:
        if session.simulation.selected:
            raise SimulatorAlreadySelected(
                "this session runs a simulator already: open another connection, or disconnect first"
            )
        simulation = self.find(token)
        with simulation.lock:  # after the request that another connection left behind
            if simulation.token != token:
                raise SessionNotFound("the session of this token has just ended")
            simulation.owner, simulation.detached_at = session, None
            session.simulation = simulation
            return ok(**simulation.describe())

    def _get_info(self, session: SimulatorClientSession) -> dict[str, Any]:
        with session.simulation.lock:
            self._require_owner(session)
            return ok(**self.info(session), **session.simulation.info())

    # -- requests without a connection ---------------------------------------------------------------------

    @contextmanager
    def borrow_session(
        self,
        token: str | None = None,
        *,
        label: str = "a client",
        lasting: bool = False,
        wire: str = "http",
    ) -> Iterator[SimulatorSession]:
        """Lend a simulator session to one request of a wire without connections; its lock is held meanwhile.

        Args:
            token: Token of the session. ``None`` makes a new one, in which the request selects a simulator:
                then it waits for further requests with its token. It ends if the request fails.
            label: Client of a new session, for the log.
            lasting: Whether a new session waits without a timeout.
            wire: Name of the frontend, for recordings of a new session.

        Raises:
            SessionNotFound: No session has this token.
            ShuttingDown: The service accepts no new requests.
        """
        with self.request_in_hand():
            if token is None:
                yield from self._begin_session(label, lasting=lasting, wire=wire)
            else:
                yield from self._lend_session(token)

    def _begin_session(self, label: str, *, lasting: bool, wire: str) -> Iterator[SimulatorSession]:
        session = SimulatorSession(self, label, lasting=lasting, wire=wire)
        session.owner, session.resumable = self, True  # not ended as abandoned while it is made
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
            session.detached_at = None
            try:
                yield session
            finally:
                session.touch()

    def release(self, session: SimulatorSession) -> None:
        """Let a session yield its place after ``detached_grace_s`` where a new client needs one.

        Its next request withdraws that. The session is borrowed.
        """
        session.detached_at = time.monotonic()

    # -- what simulator sessions use -----------------------------------------------------------------------

    def enter(self, session: SimulatorSession) -> None:
        """Reserve one of ``max_sessions`` simulators for a session.

        Where all are in use, sessions end whose client has been gone for ``detached_grace_s``.

        Raises:
            Overloaded: All are in use.
        """
        while True:
            with self._changed:
                if len(self._running) < self.options.max_sessions:
                    self._running.add(session)
                    session.number = next(self._numbers)
                    return
            if not self._end_one_detached():
                raise Overloaded(
                    f"all {self.options.max_sessions} simulator sessions are taken; try again later"
                )

    def _end_one_detached(self) -> bool:
        """End the session whose client has been gone longest, if that is long enough; return whether."""
        before = time.monotonic() - self.options.detached_grace_s
        with self._changed:
            gone = [
                (session.detached_at, session)
                for session in self._running
                if session.detached_at is not None and session.detached_at <= before
            ]
        for _, session in sorted(gone, key=lambda entry: entry[0]):
            # Not blocking: the caller holds the lock of its own session, and a held one is being resumed.
            if session.lock.acquire(blocking=False):
                try:
                    if session.owner is None and session.detached_at is not None:
                        logger.info("a session whose client is gone yields its place to a new client")
                        session.close()
                        return True
                finally:
                    session.lock.release()
        return False

    def leave(self, session: SimulatorSession) -> None:
        """Release what :meth:`enter` reserved, if anything."""
        with self._changed:
            self._running.discard(session)
            self._changed.notify_all()

    def start_process(
        self, name: str, *, label: str, client_has_left: Callable[[], bool]
    ) -> SimulatorProcess:
        """Return a process of a simulator, which lives until it is closed or the service ends.

        Raises:
            BackendError: It can't be started.
            ShuttingDown: The service has ended.
        """
        process = self.pool.take(name, label=label, client_has_left=client_has_left)
        self.metrics.simulator_started()
        if self._closing:
            process.kill()
        return process

    def task_was_loaded(self, name: str, params: Mapping[str, Any]) -> None:
        """Remember how a task of a simulator was loaded: the next one may be loaded alike."""
        self.pool.task_was_loaded(name, params)

    def detach(self, session: SimulatorSession) -> bool:
        """Keep a session until its deadline, for a client that sends its token; its lock is held.

        Returns:
            Whether it is kept. Otherwise the caller closes it.
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
                self._watch = threading.Thread(target=self._end_abandoned, name="watch", daemon=True)
                self._watch.start()
            self._changed.notify_all()
        return True

    def find(self, token: str) -> SimulatorSession:
        """Return the session of a token.

        Raises:
            SessionNotFound: There is none, or no longer.
        """
        sent = token.encode("utf-8", "surrogatepass")  # text from a wire may be invalid Unicode
        with self._changed:
            for session in self._running:
                if session.token is not None and hmac.compare_digest(session.token.encode(), sent):
                    return session
        raise SessionNotFound(
            "no session has this token: it ended, or nothing was asked of it for "
            f"{self.options.session_timeout_s:g} s"
        )

    # -- what it says of itself ----------------------------------------------------------------------------

    def describe(self) -> str:
        """Return one line for a person."""
        names = ", ".join(sorted(self.simulators)) or "no simulator"
        return f"simulators: {names}; at most {self.options.max_sessions} at one time"

    def list_simulators(self) -> dict[str, Any]:
        """Return the reply to ``list_simulators``."""
        return ok(
            simulators=sorted(self.simulators),
            summaries={name: entry.summary for name, entry in self.simulators.items()},
        )

    def capacity(self) -> dict[str, Any]:
        """Return how many simulator sessions are in use, and how many there may be."""
        with self._changed:
            return {"simulator_sessions": len(self._running), "max_sessions": self.options.max_sessions}

    def load(self) -> dict[str, int]:
        """Return how many simulators run, and how many may."""
        return self.capacity()

    def session_rows(self) -> list[dict[str, Any]]:
        """Return a row for each simulator session, and for each client without one."""
        with self._changed:
            running = sorted(self._running, key=lambda session: session.number)
        clients = [session for session in self._clients() if not session.simulation.selected]
        return [
            *(session.row() for session in running),
            *({**self._client_row(session), "state": "no_simulator"} for session in clients),
        ]

    def session_images(self, name: str) -> dict[str, Any] | None:
        """Return an image of a simulator session, rendered now."""
        session = self._find_shown(name)
        return None if session is None else session.shown()

    def stats(self) -> dict[str, Any]:
        """Return what ``stats`` reports."""
        return {**self.metrics.snapshot(), **self.capacity()}

    def info(self, session: SimulatorClientSession | None = None) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` report of the service, and the id of the client's session."""
        with self._changed:
            sessions = [running.summary() for running in self._running if running.selected]
        info = {
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
        return info if session is None else {**info, "session": session.id}

    # -- life ----------------------------------------------------------------------------------------------

    def _end_abandoned(self) -> None:
        """End sessions without a client when their time is up; the target of a thread."""
        while True:
            with self._changed:
                if self._closing:
                    return
                waiting = [session for session in self._running if session.owner is None]
                session = min(waiting, key=lambda session: session.deadline, default=None)
                left = None if session is None else session.deadline - time.monotonic()
                if session is None or (left is not None and left > 0):
                    # Not longer than a lock can wait: a session without a timeout ends at infinity.
                    self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
                    continue
            with session.lock:
                if session.owner is None and session.deadline <= time.monotonic():
                    logger.info("a session that no client came back to ends")
                    session.close()

    def close(self) -> None:
        """End the simulators of requests that did not finish within the drain, and of all sessions."""
        with self._changed:
            self._closing = True  # before the loop below: a process that is being started sees it
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
        super().close()


def _checked(task: TaskOptions) -> TaskOptions:
    """Return the options, checked as a client's are.

    Raises:
        ConfigurationError: One has a value that no client could send.
    """
    options = {option.name: getattr(task, option.name) for option in fields(TaskOptions)}
    try:
        checked = check_params(Request("load_task", {"task_name": "", **options}))
    except InvalidParams as exc:
        raise ConfigurationError(str(exc)) from exc
    return TaskOptions(**{name: checked[name] for name in options})
