"""One session with a simulator: its requests are executed in order, and each of them once.

A session outlives its connection if its client asked for a token: it waits, with its simulator, until another
connection sends the token or its time is up.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from robowire.errors import (
    BackendError,
    InvalidParams,
    NoSimulatorSelected,
    NoTaskLoaded,
    NotReset,
    RequestError,
    SimulatorAlreadySelected,
    UnknownSimulator,
)
from robowire.interfaces import TaskOptions
from robowire.registry import Entry, family_and_task, nearest
from robowire.serving.metrics import Metrics
from robowire.serving.recorder import Recorder, SessionRecording, recorded
from robowire.serving.session_activity import SessionActivity, image_to_wire
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.process import Answer, SimulatorProcess
from robowire.serving.simulator.snapshot_store import SnapshotStore
from robowire.specs import SimulatorSpec
from robowire.wire.messages import ok
from robowire.wire.methods import (
    METHODS,
    LoadTask,
    check_action,
    check_actions,
    handlers,
    methods_of_scope,
)
from robowire.wire.packed_simulator import STEP_REPLY, StepReplies
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode
from robowire.wire.text_safety import quoted
from robowire.worker.shared_memory import SharedMemory

__all__ = ["SessionContext", "SimulatorSession"]

logger = logging.getLogger(__name__)


# A dashboard waits for so long for a pause between two requests of the client.
_LOOK_S = 0.5
# Cameras that show the task to people; others may be on a wrist. Without one the simulator chooses.
_LOOK_AT = ("agentview", "frontview")


@dataclass(frozen=True, eq=False)
class _Done:
    """A numbered request and its outcome: its reply as it was sent, or an error."""

    number: int
    method: str
    payload: Buffer | None = None
    error: RequestError | None = None

    def repeat(self, method: str, number: int) -> Buffer:
        if number < self.number:
            raise InvalidParams(
                f"number is {number}, but number {self.number} was executed: each request's number is "
                "higher than the one before"
            )
        if method != self.method:
            raise InvalidParams(f"number {number} was a {self.method}, not a {method}")
        if self.error is not None:
            raise self.error
        assert self.payload is not None
        return self.payload


class SessionContext(Protocol):
    """What a session needs of its service.

    Attributes:
        options: Limits and timeouts.
        simulators: Simulators that clients may select.
        task: Defaults of how tasks are built.
        snapshots: Store of snapshots.
        metrics: Counters.
        recorder: Records sessions; ``None`` for nothing.
    """

    options: SimulatorServerOptions
    simulators: Mapping[str, Entry]
    task: TaskOptions
    snapshots: SnapshotStore
    metrics: Metrics
    recorder: Recorder | None

    def enter(self, session: SimulatorSession) -> None:
        """Reserve capacity for a session, or raise ``Overloaded``."""
        ...

    def leave(self, session: SimulatorSession) -> None:
        """Release what :meth:`enter` reserved, if anything."""
        ...

    def detach(self, session: SimulatorSession) -> bool:
        """Keep a session for a connection that sends its token; return whether it is kept."""
        ...

    def start_process(
        self, name: str, *, label: str, client_has_left: Callable[[], bool]
    ) -> SimulatorProcess:
        """Return a process of a simulator."""
        ...

    def task_was_loaded(self, name: str, params: Mapping[str, Any]) -> None:
        """Record how a task of a simulator was loaded: the next one may be loaded alike."""
        ...


class SimulatorSession:
    """A simulator, its task and its episode; of one connection, or waiting for one that sends its token.

    The caller of :meth:`execute` or :meth:`close` holds :attr:`lock`; any thread may :meth:`kill`.

    Args:
        context: Simulators, limits and stores of the service.
        label: Client of the session, for the log: ``client #3``.
        has_left: Returns whether the client may be gone in the middle of a request.
        lasting: Whether it waits for its next request without a timeout.
        wire: Name of the frontend, for recordings.

    Attributes:
        lock: Held while a request is executed, and while the session changes hands.
        owner: The connection it belongs to; ``None`` while it waits for one.
        resumable: Whether its client asked for a token.
        token: Token with which a connection resumes it; ``None`` while there is nothing to resume.
        deadline: When it ends if no request comes, on the clock of :func:`time.monotonic`.
        detached_at: When its connection was lost, on the same clock; ``None`` while it has one, and for
            sessions that need none.
        number: Counts the service's sessions from 1; 0 before it has a simulator.
        activity: What people see of it.
    """

    def __init__(
        self,
        context: SessionContext,
        label: str,
        has_left: Callable[[], bool] = lambda: False,
        *,
        lasting: bool = False,
        wire: str = "",
    ) -> None:
        self.lock = threading.Lock()
        self.owner: object | None = None
        self.resumable = False
        self.token: str | None = None
        self.deadline = 0.0
        self.detached_at: float | None = None
        self.number = 0
        self.activity = SessionActivity()
        self._unrendered = ""  # why there is no image of this task
        self._seen: dict[str, Any] = {"images": {}}  # the last one
        self._context = context
        self._label = label
        self._has_left = has_left
        self._lasting = lasting
        self._options = context.options
        self._wire = wire
        self._recording: SessionRecording | None = None
        self._name: str | None = None  # the selected simulator
        self._process: SimulatorProcess | None = None  # its process, which may have died
        self._selected_task: str | None = None  # the one that was selected with the simulator
        self._task = LoadTask()  # how the task was loaded; forks load it alike
        self._spec: SimulatorSpec | None = None  # of the loaded task
        self._begun = False  # whether the task was reset since it was loaded
        self._not_reset: str | None = None  # why there is no episode to step in; None while there is one
        self._done: _Done | None = None  # the last numbered request
        self._last_observation: Buffer | None = None  # the last reply with an observation
        # Layout that the client of this request knows; None: it wants pickles.
        self._packed: int | None = None
        self._replies = StepReplies()  # reads packed replies for clients that want others
        self._methods: Mapping[str, Callable[..., dict[str, Any] | Answer]] = handlers(
            self, methods_of_scope("session")
        )

    @property
    def selected(self) -> bool:
        """Whether it has a simulator."""
        return self._name is not None

    def summary(self) -> dict[str, Any]:
        """Return what it runs and whether it has a connection; any thread may call it."""
        spec = self._spec
        return {
            "simulator": self._name,
            "task": None if spec is None else spec.task,
            "connected": self.owner is not None,
        }

    def row(self) -> dict[str, Any]:
        """Return what a dashboard shows of it; any thread may call it.

        Its ``state`` is ``"idle"`` without a task, ``"needs_reset"``, ``"running"``, or ``"failed"`` where
        the simulator's process ended.
        """
        process = self._process
        if process is None or self._spec is None:
            state = "idle"
        else:
            state = "running" if self._not_reset is None else "needs_reset"
        if process is not None and self._has_died(process):
            state = "failed"
        return {
            "session": f"simulator {self.number}",
            "client": self._label,
            "frontend": self._wire,
            "simulator": self._name,
            "state": state,
            "connected": self.owner is not None,
            "pid": None if process is None else process.pid,
            "memory_bytes": 0 if process is None else process.memory(),
            **self.activity.summary(),
        }

    def _has_died(self, process: SimulatorProcess) -> bool:
        if process.end is None and self.lock.acquire(blocking=False):  # else a call finds out by itself
            try:
                return process.ended()
            finally:
                self.lock.release()
        return process.end is not None

    def shown(self) -> dict[str, Any]:
        """Return an image of the episode, rendered now, for a dashboard; any thread may call it.

        The simulator renders between two requests of its client, so that only the client of a session that
        somebody looks at waits. A task that cannot be rendered is not asked again.

        Returns:
            ``images`` by camera, and ``message`` where there is none.
        """
        message = self._unrendered
        if not message and self.lock.acquire(timeout=_LOOK_S):
            try:
                return self._rendered()
            except RequestError as exc:
                message = str(exc)
                if self._begun:
                    self._unrendered = message
            finally:
                self.lock.release()
        # Busy for longer than a look waits: the image of two seconds ago is better than none.
        return {**self._seen, "message": message} if message else self._seen

    def _rendered(self) -> dict[str, Any]:
        spec = self._require_task()
        if not self._begun:
            raise NotReset("the episode has not begun")
        cameras = spec.camera_names or ()
        camera = next((name for name in _LOOK_AT if name in cameras), None)
        image = self._call("render", {"camera_name": camera}).read()["image"]
        shown = {camera or "view": image_to_wire(image)}
        self._seen = {"images": shown, "instruction": spec.instruction}
        return self._seen

    def execute(
        self, method: str, params: Mapping[str, Any], number: int | None, *, known: int | None = None
    ) -> Buffer:
        """Return the reply to one request, executed once however often it is repeated.

        It is a pickle, or, where ``known`` allows it, packed. Hold the object itself until it is sent.

        Args:
            method: A method of the scope ``"session"``.
            params: Its parameters, checked.
            number: Number of the request, higher than those before; the last number again repeats its reply.
            known: Of a step whose client reads packed replies: the layout it knows, 0 for none.

        Raises:
            RequestError: The request's own error, which a repeated request repeats too.
        """
        if self.executed(number):
            assert self._done is not None
            assert number is not None
            return self._readable(self._done.repeat(method, number), known)
        # A recording holds values: so its replies are pickles.
        self._packed = known if self._context.recorder is None else None
        if self._packed is not None and not self._replies.knows(self._packed):
            self._packed = 0
        return recorded(
            self._open_recording(), method, lambda: params, lambda: self._execute(method, params, number)
        )

    def _open_recording(self) -> SessionRecording | None:
        if self._recording is None and self._context.recorder is not None:
            self._recording = self._context.recorder.open(
                kind="simulator",
                wire=self._wire,
                client=self._label,
                info={"simulators": sorted(self._context.simulators)},
            )
        return self._recording

    def _execute(self, method: str, params: Mapping[str, Any], number: int | None) -> Buffer:
        try:
            reply = self._methods[method](**params)
        except RequestError as exc:
            if number is not None:
                self._done = _Done(number, method, error=exc)
            raise
        payload = reply.payload if isinstance(reply, Answer) else b"".join(map(bytes, encode(reply)))
        if payload[0] == STEP_REPLY:
            self._replies.learn(payload)
        # Not copied: the process leaves shared memory alone while it is referenced.
        if self.token is not None and METHODS[method].observing:
            self._last_observation = payload
        if number is not None:
            self._done = _Done(number, method, payload=payload)
        return payload

    def region_of(self, payload: Buffer) -> tuple[int, SharedMemory] | None:
        """Return the number and the memory that hold a reply of :meth:`execute`; ``None`` where none does."""
        if self._process is None or self._process.end is not None:
            return None
        return self._process.region_of(payload)

    def _readable(self, payload: Buffer, known: int | None) -> Buffer:
        """Return a kept reply as this client reads it: another one may have asked for it first."""
        if payload[0] != STEP_REPLY or known is not None:
            return payload
        return b"".join(map(bytes, encode(self._replies.read(bytearray(payload)))))

    def _decoded(self, payload: Buffer) -> dict[str, Any]:
        copied = bytearray(payload)
        reply: dict[str, Any] = self._replies.read(copied) if copied[0] == STEP_REPLY else loads(copied)
        return reply

    def executed(self, number: int | None) -> bool:
        """Return whether the request of this number was executed, so that another one repeats its reply."""
        return number is not None and self._done is not None and number <= self._done.number

    def describe(self) -> dict[str, Any]:
        """Return what a connection that resumes it needs to know."""
        return {
            "simulator": self._name,
            "token": self.token,
            "number": self._done.number if self._done is not None else 0,
            "spec": self._spec.to_wire() if self._spec is not None else None,
            "last": self._decoded(self._last_observation) if self._last_observation is not None else None,
        }

    def info(self) -> dict[str, Any]:
        """Return what it runs: the task's spec and the process behind it, once a task is loaded."""
        info: dict[str, Any] = {"simulator": self._name, "task": None}
        if self._spec is not None:
            answer = self._call("get_info", {})
            info.update(self._spec.to_wire())
            info["process"] = {key: value for key, value in answer.read().items() if key != "status"}
        return info

    def memory(self) -> int:
        """Return the bytes of memory that its process holds; 0 without one. Any thread may ask."""
        process = self._process
        return 0 if process is None or process.end is not None else process.memory()

    def touch(self) -> None:
        """Restart the time after which the session ends."""
        self.activity.touch()
        self.deadline = math.inf if self._lasting else time.monotonic() + self._options.session_timeout_s

    def close(self) -> None:
        """End the simulator."""
        if self._process is not None:
            self._process.close()
        self._name = self._process = self._spec = self.token = self._done = self._last_observation = None
        self._context.snapshots.release(self)
        self._context.leave(self)
        if self._recording is not None:
            self._recording.close()
            self._recording = None

    def kill(self) -> None:
        """End the simulator at once, from another thread."""
        process = self._process
        if process is not None:
            process.kill()

    # -- the methods -----------------------------------------------------------------------------------------

    def _select_simulator(self, simulator: str) -> dict[str, Any]:
        if self._name is not None:
            raise SimulatorAlreadySelected(
                f"this session runs {self._name!r} already: open another connection, or disconnect first"
            )
        known = self._context.simulators
        simulator, task_name = family_and_task(simulator, known)
        if simulator not in known:
            raise UnknownSimulator(
                f"no simulator is called {quoted(simulator)}."
                + f"{nearest(simulator[:100], known)} Known: {', '.join(sorted(known))}"
            )
        self._context.enter(self)
        try:
            self._select(simulator)
        except BaseException:
            self.close()
            raise
        self._selected_task = task_name
        return ok(simulator=simulator) if self.token is None else ok(simulator=simulator, token=self.token)

    def _list_tasks(self, suite: str | None) -> Answer:
        self._ensure_alive()
        return self._call("list_tasks", {"suite": suite})

    def _load_task(self, **params: Any) -> Answer:
        self._ensure_alive()
        requested = LoadTask(**params)
        task = replace(
            requested.with_defaults(self._context.task),
            task_name=requested.task_name or self._selected_task,
        )
        if task.task_name is None:
            raise InvalidParams("load_task needs 'task_name': no task was selected with the simulator")
        self._spec, self._begun, self._not_reset = None, False, "reset comes before step"
        self._task, self._last_observation = task, None
        self.activity.task, self._unrendered, self._seen = task.task_name, "", {"images": {}}
        answer = self._load()
        assert self._name is not None
        self._context.task_was_loaded(self._name, task.params())
        return answer

    def _reset(self, seed: int | None, init_state: int | None) -> Answer:
        self._require_task()
        self._replace_if_grown()
        self._not_reset = "the last reset failed: reset again"
        answer = self._call("reset", {"seed": seed, "init_state": init_state})
        self._begun, self._not_reset = True, None
        return answer

    def _step(self, action: Any) -> Answer:
        spec = self._require_episode()
        return self._advance("step", {"action": check_action(action, spec.action_dim)}, 1)

    def _step_chunk(self, actions: Any) -> Answer:
        spec = self._require_episode()
        checked = check_actions(actions, spec.action_dim)
        return self._advance("step_chunk", {"actions": checked}, len(checked))

    def _render(self, camera_name: str | None) -> Answer:
        self._require_task()
        if not self._begun:
            raise NotReset("reset comes before render")
        return self._call("render", {"camera_name": camera_name})

    def _snapshot(self) -> dict[str, Any]:
        self._require_episode()
        answer = self._call("snapshot", {})
        payload = answer.read()["payload"]
        return ok(snapshot_id=self._context.snapshots.put(payload, maker=self), bytes=len(payload))

    def _restore(self, snapshot_id: str) -> Answer:
        self._require_task()
        payload = self._context.snapshots.get(snapshot_id)
        self._replace_if_grown()
        try:
            answer = self._call("restore", {"payload": payload})
        except BackendError:  # any other error came before the first change
            self._not_reset = "the last restore failed: reset or restore again"
            raise
        self._begun, self._not_reset = True, None
        return answer

    def _verify(self, snapshot_id: str, steps: int) -> Answer:
        self._require_task()
        payload = self._context.snapshots.get(snapshot_id)
        try:
            return self._call("verify", {"payload": payload, "steps": steps})
        except BackendError:
            self._not_reset = "the last verify failed: reset or restore again"
            raise

    def _fork(self, snapshot_id: str, n: int) -> dict[str, Any]:
        self._require_task()
        payload = self._context.snapshots.get(snapshot_id)
        children: list[SimulatorSession] = []
        try:
            for index in range(n):  # each only when there is capacity for it: n is the client's number
                child = SimulatorSession(self._context, f"fork {index} of {self._label}")
                child.owner = self  # not ended as abandoned while it is made
                self._context.enter(child)
                children.append(child)
            with ThreadPoolExecutor(min(n, os.cpu_count() or 1), "fork") as pool:
                list(pool.map(lambda child: child._begin_like(self, payload), children))
        except BaseException:
            for child in children:
                child.close()
            raise
        tokens = [child.token for child in children]
        for child in children:
            child.touch()
            if not self._context.detach(child):
                child.close()
        return ok(tokens=tokens)

    def _begin_like(self, parent: SimulatorSession, payload: bytes) -> None:
        """Start the parent's simulator with its task, and restore a snapshot in it."""
        assert parent._name is not None
        self.resumable = True
        self._select(parent._name)
        self._task = parent._task
        self._load()
        self._last_observation = bytes(self._call("restore", {"payload": payload}, within="fork").payload)
        self._begun, self._not_reset = True, None

    def _disconnect(self) -> dict[str, Any]:
        self.close()
        return ok()

    # -- what they share -------------------------------------------------------------------------------------

    def _select(self, name: str) -> None:
        self._start(name)
        self._name = name
        if self.resumable:
            self.token = secrets.token_urlsafe(18)

    def _start(self, name: str) -> None:
        self._process = self._context.start_process(
            name,
            label=self._label,
            # A client that may come back has not left.
            client_has_left=lambda: self.token is None and self._has_left(),
        )
        self._process.wait_until_ready(timeout_s=self._timeout_s("select_simulator"))

    def _load(self) -> Answer:
        """Load the task that was requested, and keep its spec."""
        answer = self._call("load_task", self._task.params())
        self._spec = SimulatorSpec.from_wire(answer.read())
        return answer

    def _replace_if_grown(self) -> None:
        """Load the task in a new process, if this one holds more memory than max_session_mb."""
        limit_mb = self._options.max_session_mb
        assert self._process is not None
        assert self._name is not None
        if not limit_mb or (held_mb := self._process.memory() / 1e6) <= limit_mb:
            return
        old = self._process
        self._spec = None  # if this fails, there is no task
        self._begun, self._not_reset = False, "the simulator was replaced: reset or restore"
        old.close()
        self._start(self._name)
        self._load()
        self._context.metrics.simulator_replaced()
        logger.warning(
            "%s: simulator process %d held %.0f MB, more than max_session_mb %g allows, and was replaced by "
            "process %d, which begins with %.0f MB",
            *(self._label, old.pid, held_mb, limit_mb, self._process.pid, self._process.memory() / 1e6),
        )

    def _ensure_alive(self) -> None:
        """Replace a process that died by a new one."""
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

    def _advance(self, method: str, params: Mapping[str, Any], steps: int) -> Answer:
        begun = time.monotonic()
        try:
            answer = self._call(method, params, known=self._packed)
        except BackendError:  # any other error came before the action was executed
            self._not_reset = "the simulator failed in the middle of the episode: reset begins another"
            raise
        self.activity.step((time.monotonic() - begun) * 1e3, steps)
        if answer.over:
            self._not_reset = "the episode is over: reset begins the next one"
        return answer

    def _timeout_s(self, method: str) -> float:
        """Return how many seconds the simulator has for a method."""
        limits = {"call": self._options.call_timeout_s, "load": self._options.load_timeout_s}
        deadline = METHODS[method].deadline
        assert deadline is not None, method
        return limits[deadline]

    def _call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        within: str | None = None,
        known: int | None = None,
    ) -> Answer:
        """Call the simulator's process, with the deadline of the method, or of the one it is a part of."""
        assert self._process is not None
        ended_before = self._process.end is not None
        try:
            return self._process.call(
                method, params, timeout_s=self._timeout_s(within or method), known=known
            )
        except BackendError:
            if self._process.end is not None:
                self._spec = None
                if not ended_before:
                    self._context.metrics.simulator_ended(self._process.end_reason or "died")
            raise
