"""One policy process, as the server starts it, calls it under a deadline, and ends it.

Its own Python may run it. Whatever goes wrong in it, a crash, a hang or a kill, becomes one
:class:`PolicyProcessEnded`; by then the process is gone and reaped.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from robowire.errors import BackendError, ConnectionLost, RemoteProtocolError, RequestTimeout
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import Entry
from robowire.serving.worker_process import WorkerProcess
from robowire.specs import PolicySpec
from robowire.tracing.spans import active_tracing
from robowire.wire.messages import raise_for_status
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode_frame
from robowire.worker.policy_frames import (
    ERROR,
    NO_REGION,
    CallWriter,
    read_answer_head,
    session_frame,
)
from robowire.worker.policy_worker import ANSWER_REGION, CALL_REGION, SHARED_MIN

__all__ = ["PolicyProcess", "PolicyProcessEnded", "PolicySource", "ReportedPolicy"]

logger = logging.getLogger(__name__)

_WORKER = "robowire.worker.policy_worker"

# A process that does not take a few hundred bytes in this time has another fault than a long queue.
_SEND_S = 10.0
# Once an answer has begun, the rest of it follows from a buffer.
_FINISH_S = 10.0


class PolicyProcessEnded(BackendError):
    """The process of the policy ended or was ended; the requests in hand are lost, and not repeated."""


@dataclass(frozen=True)
class PolicySource:
    """What a process loads, and with which interpreter.

    Attributes:
        name: Name of the policy in the server's table.
        entry: Its row.
        options: What its factory is given.
        python: Interpreter to run it with; one other than ours needs numpy and what the policy needs.
    """

    name: str
    entry: Entry
    options: PolicyOptions
    python: str = sys.executable


@dataclass(frozen=True)
class ReportedPolicy:
    """What a process says of its policy once it is loaded.

    Attributes:
        spec: What the policy needs and gives.
        max_batch_size: Largest number of observations it takes at once; ``None`` where it does not say.
        stateful: Whether its answers depend on earlier observations of a session; ``None`` where it has no
            sessions.
        device: Device it runs on.
        python: Version of its interpreter.
        versions: Versions of what it imported.
    """

    spec: PolicySpec
    max_batch_size: int | None
    stateful: bool | None
    device: str
    python: str
    versions: Mapping[str, str]


class PolicyProcess:
    """A policy in a process of its own. Any thread may call it; calls take turns.

    The thread that starts it must outlive it: see :class:`WorkerProcess`.

    Args:
        source: What it loads.
        label: For the log: ``policy act``, ``replica 2 of policy act``.

    Attributes:
        pid: Number of the process.
        reported: What it says of its policy; after :meth:`wait_until_ready`.

    Raises:
        BackendError: There is no such interpreter, or the system can't start another process.
    """

    reported: ReportedPolicy

    def __init__(self, source: PolicySource, *, label: str) -> None:
        self._source = source
        self._label = label
        self._tracing = active_tracing()
        self._end: str | None = None  # how the process ended, in words
        self._killed_for: str | None = None
        self._lock = threading.Lock()  # held during a call, and while the process is ended
        self._writer = CallWriter()
        self._told: deque[list[Buffer]] = deque()
        self._shared = True  # whether calls may be written to shared memory
        self._worker = WorkerProcess(
            *(_WORKER, {}), name=source.name, label=label, python=source.python, regions=2
        )
        self.pid = self._worker.pid
        logger.info("%s runs in process %d", label, self.pid)

    @property
    def end(self) -> str | None:
        """How the process ended, in words; ``None`` while it is believed to run."""
        return self._end

    def wait_until_ready(self, *, timeout_s: float) -> ReportedPolicy:
        """Load the policy and return what it says of itself; comes before :meth:`infer`.

        Raises:
            BackendError: It can't be loaded, or not in time; gives the reason. The process is gone.
        """
        source, entry = self._source, self._source.entry
        order = {
            "name": source.name,
            "target": entry.target,
            "extra": entry.extra,
            "install": entry.install,
            "environ": dict(entry.environ),
            "options": asdict(source.options),
        }
        with self._lock:
            try:
                # Through the socket: options may be secret, and a command line is not.
                self._worker.connection.send(encode_frame(order), timeout_s=_SEND_S)
                reply = raise_for_status(loads(self._receive(timeout_s)))
                self.reported = ReportedPolicy(
                    PolicySpec.from_wire(reply["spec"]),
                    reply["max_batch_size"],
                    reply["stateful"] if reply["has_sessions"] else None,
                    reply["device"],
                    reply["python"],
                    reply["versions"],
                )
            except (ConnectionLost, RequestTimeout, RemoteProtocolError) as exc:
                raise self._died("its start", exc, timeout_s) from exc
            except BaseException:
                self._close()
                raise
        return self.reported

    def infer(self, observations: Sequence[MetaObs], *, timeout_s: float, session: int = 0) -> np.ndarray:
        """Return the next actions for each observation: what ``Policy.infer`` does, in a fresh array.

        Args:
            observations: At least one; they share the shape and dtype of every array.
            timeout_s: Seconds until the answer begins.
            session: Number of the session that is asked; 0 for none. One that is new is opened.

        Raises:
            PolicyProcessEnded: The process died or did not answer in time, and is gone now.
            RequestError: The policy's own error.
        """
        with self._lock:
            if self._end is not None:
                raise self._ended_error()
            self._worker.forget_output()  # the last output is that of the last call
            try:
                call = self._writer.write(observations, session=session, allocate=self._allocate)
                told: list[Buffer] = []
                while self._told:
                    told += self._told.popleft()
                self._worker.connection.send([*told, *call], timeout_s=_SEND_S)
                return self._answer(timeout_s)
            except (ConnectionLost, RequestTimeout, RemoteProtocolError) as exc:
                raise self._died("an inference", exc, timeout_s) from exc

    def tell(self, kind: int, session: int) -> None:
        """Send a ``RESET`` or an ``END`` of a session with the next call. Never waits."""
        self._told.append(session_frame(kind, session))

    def wait_for_end(self, timeout_s: float) -> bool:
        """Return, at the latest after ``timeout_s``, whether the process has ended."""
        return self._worker.wait_for_end(timeout_s)

    def memory(self) -> int:
        """Return the bytes of memory that it and its children hold."""
        return self._worker.memory()

    def close(self, why: str = "was closed", *, give_up_s: float = -1) -> None:
        """Wait for the call in hand, and end the process. Returns when it is gone; may be called twice.

        Args:
            why: What is said of its end, unless it has ended by itself.
            give_up_s: Seconds after which it is ended in spite of a call in hand; -1 for never.
        """
        if not self._lock.acquire(timeout=give_up_s):
            self.kill(why)
            self._lock.acquire()
        try:
            if self._end is None:
                ended = self._worker.wait_for_end(0)
                self._close(self._killed_for if ended else why)
        finally:
            self._lock.release()

    def kill(self, why: str) -> None:
        """End the process at once; an :meth:`infer` in another thread raises :class:`PolicyProcessEnded`."""
        if self._end is None:
            self._killed_for = why
            self._worker.kill()

    def _answer(self, timeout_s: float) -> np.ndarray:
        payload = self._receive(timeout_s)
        head = read_answer_head(payload)
        if head.kept and self._shared:
            logger.warning(
                "%s keeps arrays of its observations: they are sent through a socket from now on, which is "
                "slower than shared memory",
                self._label,
            )
            self._shared = False
        if head.kind == ERROR:
            raise_for_status(loads(payload[head.size :]))
        if self._tracing is not None:
            self._tracing.worked(head.began, head.executed, "infer", self.pid)
        numbers: np.ndarray
        if head.region == NO_REGION:
            # The payload is nobody else's: the array may view it.
            numbers = np.frombuffer(payload, np.float32, offset=head.size)
        elif head.region == ANSWER_REGION:
            view = self._worker.regions[ANSWER_REGION].view(head.length)
            numbers = np.frombuffer(view, np.float32).copy()
        else:
            raise RemoteProtocolError(f"the process answered in region {head.region}")
        return numbers.reshape(head.shape)

    def _allocate(self, length: int) -> tuple[int, memoryview]:
        if length < SHARED_MIN or not self._shared:
            return NO_REGION, memoryview(bytearray(length))
        return CALL_REGION, self._worker.regions[CALL_REGION].allocate(length)

    def _receive(self, timeout_s: float) -> bytearray:
        payload = self._worker.connection.receive(wait_s=timeout_s, finish_s=_FINISH_S)
        if payload is None:
            raise ConnectionLost("the process closed its socket")
        assert isinstance(payload, bytearray)
        return payload

    def _died(self, during: str, exc: Exception, timeout_s: float) -> PolicyProcessEnded:
        """End what is left of the process and return the error that reports it."""
        if self._killed_for is not None:
            self._close(self._killed_for)
        elif isinstance(exc, RequestTimeout):
            self._worker.kill()
            self._close(f"did not finish {during} within {timeout_s:g} s and was killed")
        elif isinstance(exc, RemoteProtocolError):
            self._worker.kill()
            self._close(f"broke the protocol during {during} and was killed: {exc}")
        else:
            self._close()
            self._end = f"{self._end} during {during}"
        return self._ended_error()

    def _close(self, end: str | None = None) -> None:
        self._worker.reap()
        self._end = end or self._worker.how_it_ended()

    def _ended_error(self) -> PolicyProcessEnded:
        return PolicyProcessEnded(f"the policy process {self._end}{self._worker.last_output}")
