"""One simulator process, as the server starts it, calls it under a deadline, and ends it.

The family's own Python may run it. Whatever goes wrong in it, a crash, a hang or a kill, becomes one
``BackendError`` of :meth:`SimulatorProcess.call`; by then the process is gone and reaped.
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robowire.errors import BackendError, ConnectionLost, RemoteProtocolError, RequestTimeout
from robowire.progress import LEAST_S, Pace, duration_in_words
from robowire.registry import Entry
from robowire.serving.worker_process import WorkerProcess
from robowire.tracing.spans import active_tracing
from robowire.wire.messages import raise_for_status
from robowire.wire.packed_simulator import step_request
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode
from robowire.worker.process_frames import NO_REGION, call_frame, read_answer
from robowire.worker.shared_memory import SharedMemory

if TYPE_CHECKING:
    from robowire.serving.simulator.template import SimulatorTemplate

__all__ = ["Answer", "SimulatorProcess", "worker_start"]

logger = logging.getLogger(__name__)

_WORKER = "robowire.worker.simulator_worker"

# Once an answer has begun, the rest of it follows from a buffer: at a gigabyte a second, 64 MiB take 0.06 s.
_FINISH_S = 10.0

# How often a waiting server checks that the client is still connected, and how long it goes on after one that
# left. It does not stop at once: a script may send its requests, end its half of the connection, and read on.
_LOOK_S = 0.5
_LEFT_S = 3.0

# Of address space in each of two regions; memory is provided as it is written. What is larger goes through
# the socket.
_REGION_SIZE = 256 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class Answer:
    """Result of a call.

    Attributes:
        payload: The reply, ready to be sent: a pickle, or packed. It may be shared memory, which is not
            written to while this very object is referenced; a slice of it alone does not count.
        over: Whether the reply says that the episode ended.
    """

    payload: Buffer
    over: bool

    def read(self) -> dict[str, Any]:
        """Return the reply dict of a pickle, a copy."""
        reply: dict[str, Any] = loads(bytearray(self.payload))
        return reply


def worker_start(name: str, entry: Entry) -> dict[str, Any]:
    """Return what a worker is told of the simulator that it runs."""
    return {
        "name": name,
        "target": entry.target,
        "extra": entry.extra,
        "install": entry.install,
        "environ": dict(entry.environ),
    }


class SimulatorProcess:
    """A simulator in a process of its own. One thread calls it; any thread may :meth:`kill` it.

    The thread that starts it must outlive it: Linux ends a process with the thread that started it, so that a
    killed server leaves no workers behind.

    Args:
        name: Name of the simulator in the server's table.
        entry: Its row.
        label: Client of the session, for the log: ``client #3``.
        python: Interpreter to run it with; one other than ours needs numpy and what the simulator needs.
        client_has_left: Returns whether the client has disconnected; checked now and then during a call.
        template: Process of the same simulator to fork it from; ``None`` starts a new one.

    Raises:
        BackendError: There is no such interpreter, or the system can't start another process.

    Attributes:
        end_reason: How it ended during a call: ``"died"``, ``"timeout"`` or ``"client_left"``; ``""`` before.
    """

    def __init__(
        self,
        name: str,
        entry: Entry,
        *,
        label: str,
        python: str = sys.executable,
        client_has_left: Callable[[], bool] = lambda: False,
        template: SimulatorTemplate | None = None,
    ) -> None:
        self.name = name
        self._client_has_left = client_has_left
        self._tracing = active_tracing()
        self._ready = False
        self._ahead: tuple[dict[str, Any], Answer] | None = None  # a task built before it was requested
        self._end: str | None = None  # how the process ended, in words
        self.end_reason = ""
        # Two regions: the last reply is kept where a client may ask for it again, and sent from where it is.
        self._worker = WorkerProcess(
            _WORKER,
            worker_start(name, entry),
            name=name,
            label=label,
            python=python,
            regions=2,
            region_size=_REGION_SIZE,
            fork=None if template is None else template.fork,
        )
        self._regions = self._worker.regions
        self._lent: list[weakref.ref[memoryview] | None] = [None] * len(self._regions)
        self._connection = self._worker.connection
        self.pid = self._worker.pid
        logger.info("%s: simulator %s runs in process %d", label, name, self.pid)

    @property
    def end(self) -> str | None:
        """How the process ended, in words; ``None`` while it is believed to run."""
        return self._end

    @property
    def has_task_ahead(self) -> bool:
        """Whether :meth:`load_ahead` built a task that was not requested yet."""
        return self._ahead is not None

    def wait_until_ready(self, *, timeout_s: float) -> None:
        """Wait until the simulator has been imported; comes before :meth:`call`. After an error it is gone.

        Raises:
            BackendError: It can't be imported, or not in time; gives the reason.
        """
        if self._ready:
            return
        try:
            self._receive("start", timeout_s)
        except BaseException:
            self.close()
            raise
        self._ready = True

    def load_ahead(self, params: Mapping[str, Any], *, timeout_s: float) -> None:
        """Build a task now, so that a first ``load_task`` with these parameters is answered at once.

        It is reset too, since a first reset takes far longer than others: robosuite's makes its GL context.

        Raises:
            RequestError: As :meth:`call`.
        """
        answer = self.call("load_task", params, timeout_s=timeout_s)
        built = dict(params), Answer(bytes(answer.payload), answer.over)
        # No seed: a later episode without one must not continue the same random numbers in every process.
        self.call("reset", {"seed": None, "init_state": None}, timeout_s=timeout_s)
        self._ahead = built

    def adopt(self, *, label: str, client_has_left: Callable[[], bool]) -> None:
        """Belong to another session from now on; the arguments are those of the class."""
        logger.info("%s: takes simulator process %d, which was kept warm", label, self.pid)
        self._worker.label, self._client_has_left = label, client_has_left

    def ended(self) -> bool:
        """Return whether the process has ended, between two calls."""
        return self._end is not None or self._connection.ended()

    def memory(self) -> int:
        """Return the bytes of memory that it and its children hold."""
        return self._worker.memory()

    def require_alive(self) -> None:
        """Do nothing, if the process is believed to run.

        Raises:
            BackendError: It ended; the message says how.
        """
        if self._end is not None:
            raise self._ended_error()

    def call(
        self, method: str, params: Mapping[str, Any], *, timeout_s: float, known: int | None = None
    ) -> Answer:
        """Return the answer to one call.

        Args:
            method: Its name.
            params: Its parameters.
            timeout_s: Seconds until the answer begins.
            known: Of a step whose client reads packed replies: the layout it knows, 0 for none.

        Raises:
            BackendError: The process died or did not answer in time, and is gone now; or, with :attr:`end`
                still ``None``, the simulator raised an exception.
            RequestError: Any other error the simulator answered.
        """
        self.require_alive()
        if method == "load_task":
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == params:
                return ahead[1]
        self._worker.forget_output()  # the last output is that of the last call
        call: Sequence[Buffer]
        if known is None:
            call = encode({"method": method, **params})
        else:
            call = [step_request(method, params, known)]
        try:
            self._connection.send(call_frame(self._free_region(), call), timeout_s=timeout_s)
        except (ConnectionLost, RequestTimeout) as exc:
            raise self._died(method, exc, timeout_s) from exc
        return self._receive(method, timeout_s)

    def close(self) -> None:
        """Let the process close its simulator, then end it. Returns when it is gone; may be called twice."""
        self._worker.reap()
        if self._end is None:
            self._end = "was closed"
            logger.info("%s: simulator process %d is closed", self._worker.label, self.pid)

    def kill(self) -> None:
        """End the process at once; a :meth:`call` in another thread raises ``BackendError``."""
        if self._end is None:  # later the number may be another's
            self._worker.kill()

    def _receive(self, method: str, timeout_s: float) -> Answer:
        """Return the answer to the call that was sent, or end the process and raise."""
        try:
            payload = self._payload(self._wait(method, timeout_s))
            head = read_answer(payload)
            if head is None:
                raise_for_status(loads(payload))
                raise RemoteProtocolError("the process answered without a reply")
            if self._tracing is not None and head.began:
                self._tracing.worked(head.began, head.executed, method, self.pid)
            if head.region == NO_REGION:
                return Answer(memoryview(payload)[head.size :], head.over)
            if head.region >= len(self._regions):
                raise RemoteProtocolError(f"the process answered in region {head.region}")
            view = self._regions[head.region].view(head.length)
            self._lent[head.region] = weakref.ref(view)
            return Answer(view, head.over)
        except (ConnectionLost, RequestTimeout, RemoteProtocolError) as exc:
            raise self._died(method, exc, timeout_s) from exc

    def region_of(self, payload: Buffer) -> tuple[int, SharedMemory] | None:
        """Return the number and the memory that hold a reply, of :meth:`call`; ``None`` where none does."""
        for number, lent in enumerate(self._lent):
            if lent is not None and lent() is payload:
                return number, self._regions[number]
        return None

    def _free_region(self) -> int:
        """Return a region whose last reply nobody holds any more."""
        for number, lent in enumerate(self._lent):
            if lent is None or lent() is None:
                return number
        return NO_REGION

    def _wait(self, method: str, timeout_s: float) -> float:
        """Wait for an answer, less long for a client that left, and return the remaining seconds.

        A call that takes long, such as a load_task, is in the log with its time.
        """
        begun, pace, mentioned = time.monotonic(), Pace(LEAST_S), False
        deadline = begun + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._connection.stream.peek(1, min(left, _LOOK_S))  # a third of what a selector costs
                break
            except RequestTimeout:
                elapsed_s = time.monotonic() - begun
                if pace.due(elapsed_s):
                    mentioned = True
                    self._log_time(method, f"{duration_in_words(elapsed_s)} so far")
                if self._client_has_left():
                    deadline = min(deadline, time.monotonic() + _LEFT_S)
        if mentioned and left > 0:
            self._log_time(method, f"done after {duration_in_words(time.monotonic() - begun)}")
        return max(left, 0.0)

    def _log_time(self, method: str, text: str) -> None:
        logger.info("%s: %s of simulator process %d: %s", self._worker.label, method, self.pid, text)

    def _payload(self, timeout_s: float) -> bytearray:
        payload = self._connection.receive(wait_s=timeout_s, finish_s=_FINISH_S)
        if payload is None:
            raise ConnectionLost("the process closed its socket")
        assert isinstance(payload, bytearray)
        return payload

    def _died(self, method: str, exc: Exception, timeout_s: float) -> BackendError:
        """End what is left of the process and return the error that reports it."""
        if isinstance(exc, RequestTimeout):
            self.kill()
            self._worker.reap()
            if self._client_has_left():
                self.end_reason = "client_left"
                self._end = f"was killed during {method!r}, as its client has left"
            else:
                self.end_reason = "timeout"
                self._end = f"did not answer {method!r} within {timeout_s:g} s and was killed"
        else:
            self._worker.reap()
            self.end_reason = "died"
            self._end = f"{self._worker.how_it_ended()} during {method!r}"
        logger.warning("%s: simulator process %d %s", self._worker.label, self.pid, self._end)
        return self._ended_error()

    def _ended_error(self) -> BackendError:
        return BackendError(
            f"the simulator process {self._end}: load_task starts a new one{self._worker.last_output}"
        )
