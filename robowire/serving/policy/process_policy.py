"""A policy whose process is kept running: started again after its end, and replaced where it leaks."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectionLost,
    InvalidParams,
    Overloaded,
    ShuttingDown,
)
from robowire.interfaces import EpisodeSession
from robowire.meta import MetaObs
from robowire.serving.policy.process import (
    PolicyProcess,
    PolicySource,
    ReportedPolicy,
)
from robowire.serving.policy.restarts import Restarts
from robowire.serving.policy.validation import observation_kind
from robowire.serving.process_memory import can_be_measured
from robowire.specs import PolicySpec
from robowire.worker.policy_frames import END, RESET

__all__ = ["ProcessOptions", "ProcessPolicy", "SessionProcessPolicy", "start_policy"]

logger = logging.getLogger(__name__)

# How often the memory of a process is looked at, which takes some milliseconds.
_LOOK_S = 1.0

# A process above its limit is replaced between two inferences; one that is above it by this much, at once.
_TOO_MUCH = 1.5

# A process that hangs does not delay the end of the server by more than this.
_GIVE_UP_S = 0.5

_CLOSED = "was ended with the server"


@dataclass(frozen=True)
class ProcessOptions:
    """How a policy in a process of its own is run.

    Attributes:
        policy_timeout_s: Seconds for one inference of a policy in a process of its own; then the process is
            killed and started again.
        policy_start_timeout_s: Seconds for such a process to load its policy.
        max_policy_mb: Memory of such a process and its children, in megabytes, above which it is replaced
            between two inferences, or at once where it is half as much again; no limit by default.
    """

    # SmolVLA's first inference on two cores takes some seconds.
    policy_timeout_s: float = 60.0
    # torch and several gigabytes of weights from a slow disk.
    policy_start_timeout_s: float = 600.0
    max_policy_mb: float | None = None

    def __post_init__(self) -> None:
        for name in ("policy_timeout_s", "policy_start_timeout_s", "max_policy_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} is {value}, expected a number above 0")
        if self.max_policy_mb is not None and not can_be_measured():
            raise ConfigurationError("max_policy_mb needs Linux, whose /proc shows the memory of a process")


class ProcessPolicy:
    """A :class:`Policy` that asks a process of its own. Start, restarts and end are a thread's.

    The constructor returns when the policy is loaded.

    Args:
        source: What the process loads.
        options: Limits.
        label: For the log.

    Attributes:
        reported: What the first process said of its policy. Later ones must say the same spec.
        restarts: Number of processes that took the place of another.

    Raises:
        ConfigurationError: The policy cannot be loaded; the message says why.
    """

    reported: ReportedPolicy
    spec: PolicySpec
    device: str
    foreign_versions: Mapping[str, str]
    any_thread = True  # the work is in the process: a thread of its own would only cost switches

    def __init__(self, source: PolicySource, options: ProcessOptions, *, label: str) -> None:
        self.restarts = 0
        self._source = source
        self._options = options
        self._label = label
        self._changed = threading.Condition()  # guards what follows
        self._process: PolicyProcess | None = None
        self._starting: PolicyProcess | None = None
        self._ready = False  # whether a process answers
        self._retry_at: float | None = None  # when the next one is started, while nothing is done
        self._failure = ""  # how the last one ended
        self._closing = False
        self._first: ReportedPolicy | None = None
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {label}", daemon=True)
        self._keeper.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._retry_at is not None)
            failed = not self._ready
        if failed or self._first is None:
            self.close()
            raise ConfigurationError(self._failure)
        self.reported = self._first
        self.spec = self.reported.spec
        self.device = self.reported.device
        self.foreign_versions = self.reported.versions

    @property
    def max_batch_size(self) -> int:
        """Largest number of observations it takes at once."""
        return self.reported.max_batch_size or 16

    @property
    def pid(self) -> int:
        """Number of the process that answers; 0 while none does."""
        process = self._process
        return process.pid if process is not None and self.ready else 0

    @property
    def ready(self) -> bool:
        """Whether a process is loaded and runs; no lock is taken."""
        process = self._process
        # A call that found it ended is faster than the thread that keeps it.
        return self._ready and process is not None and process.end is None

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation, as the policy does in its process.

        Where a process is being started, this waits for it.

        Raises:
            PolicyProcessEnded: The process died or did not answer in time.
            Overloaded: Process after process ended, and the next one is started later.
            RequestError: The policy's own error.
        """
        return self.usable().infer(observations, timeout_s=self.timeout_s)

    def close(self) -> None:
        """End the process, also one that hangs. May be called twice."""
        with self._changed:
            self._closing = True
            self._ready = False
            self._changed.notify_all()
            starting, process = self._starting, self._process
        if starting is not None:
            starting.kill(_CLOSED)
        if process is not None:
            process.close(_CLOSED, give_up_s=_GIVE_UP_S)
        self._keeper.join()

    @property
    def timeout_s(self) -> float:
        """Seconds for one inference."""
        return self._options.policy_timeout_s

    def usable(self) -> PolicyProcess:
        """Return the process that answers, after its start if it is being started.

        Raises:
            Overloaded: Process after process ended, and the next one is started later.
            ShuttingDown: :meth:`close` was called.
        """
        if self._ready and (process := self._process) is not None and process.end is None:
            return process
        with self._changed:
            # An ended process is noticed by the thread in a moment.
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or self._retry_at is not None
                    or (self._ready and self._process is not None and self._process.end is None)
                )
            )
            if self._closing:
                raise ShuttingDown("the server shuts down and takes no new requests")
            if self._retry_at is None:
                assert self._process is not None
                return self._process
            pause_s = max(self._retry_at - time.monotonic(), 0.0)
            raise Overloaded(
                f"{self._failure[:400]}: it is started again in {pause_s:.1f} s, try again later"
            )

    def _keep(self) -> None:
        """Keep a process running until :meth:`close`; processes end with the thread that started them."""
        restarts = Restarts()
        while True:
            begun = time.monotonic()
            process = self._start()
            lived_s = 0.0
            if process is not None:
                begun = time.monotonic()
                end = self._watch(process)
                lived_s = time.monotonic() - begun
                with self._changed:
                    self._ready = False
                    self._failure = f"the policy process {end}"
                if not self._closing:
                    logger.warning("%s: process %d %s; another one starts", self._label, process.pid, end)
            pause_s = restarts.pause_s(lived_s)
            with self._changed:
                if self._first is None and not self._closing:  # the first one did not start at all
                    pause_s = max(pause_s, 1.0)
                if pause_s and not self._closing:
                    self._retry_at = time.monotonic() + pause_s
                    self._changed.notify_all()
                    logger.warning("%s: %s; started again in %g s", self._label, self._failure, pause_s)
                    self._changed.wait_for(lambda: self._closing, pause_s)
                self._retry_at = None
                if self._closing:
                    self._changed.notify_all()
                    return
                self.restarts += 1

    def _start(self) -> PolicyProcess | None:
        """Return a process that answers; ``None`` where none could be started, which is in ``_failure``."""
        process: PolicyProcess | None = None
        try:
            process = PolicyProcess(self._source, label=self._label)
            with self._changed:
                self._starting = process
                if self._closing:
                    process.kill(_CLOSED)
            reported = process.wait_until_ready(timeout_s=self._options.policy_start_timeout_s)
            if self._first is not None and reported.spec != self._first.spec:
                process.close()
                raise BackendError(
                    "the policy's spec differs from that of the process before, so its checkpoint has "
                    "changed: start the server again"
                )
        except BackendError as exc:
            with self._changed:
                self._failure, self._starting = str(exc), None
            return None
        with self._changed:
            self._starting, self._process, self._ready = None, process, True
            if self._first is None:
                self._first = reported
            self._changed.notify_all()
        return process

    def _watch(self, process: PolicyProcess) -> str:
        """Return how the process ended, when it is gone: by itself, in a call, by its memory, by close()."""
        limit = (self._options.max_policy_mb or 0.0) * 1e6
        while not process.wait_for_end(0 if self._closing else _LOOK_S):
            if self._closing:
                process.close(_CLOSED)
                break
            if not limit or (held := process.memory()) <= limit:
                continue
            why = f"held {held / 1e6:.0f} MB, more than max_policy_mb {limit / 1e6:g}, and was ended"
            with self._changed:
                self._ready = False  # calls wait for the next one
            if held > _TOO_MUCH * limit:
                process.kill(why)
            process.close(why)  # after the call in hand
            break
        process.close()
        assert process.end is not None
        return process.end


class SessionProcessPolicy:
    """A :class:`SessionPolicy` that asks a process of its own, in which its sessions are.

    Args:
        policy: Owned by this object from now on.
    """

    def __init__(self, policy: ProcessPolicy) -> None:
        self.process_policy = policy
        self.spec = policy.spec
        self.device = policy.device
        self.foreign_versions = policy.foreign_versions
        self._numbers = itertools.count(1)

    @property
    def stateful(self) -> bool:
        """Whether an answer depends on earlier observations of the session."""
        return bool(self.process_policy.reported.stateful)

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation, without a session."""
        return self.process_policy.infer(observations)

    def open_session(self) -> EpisodeSession:
        """Return a new session, which the process opens with the first observation."""
        return _ProcessSession(self.process_policy, next(self._numbers), stateful=self.stateful)

    def close(self) -> None:
        """End the process, also one that hangs. May be called twice."""
        self.process_policy.close()


class _ProcessSession:
    def __init__(self, policy: ProcessPolicy, number: int, *, stateful: bool) -> None:
        self._policy = policy
        self._number = number
        self._stateful = stateful
        self._process: PolicyProcess | None = None  # that knows the session
        self._begun = False  # whether it knows observations of the running episode

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        process = self._policy.usable()
        if self._begun and self._stateful and process is not self._process:
            raise ConnectionLost("the policy process was replaced in the middle of the episode")
        if len({observation_kind(observation) for observation in observations}) > 1:
            raise InvalidParams("the observations of one request differ in the shape or dtype of an array")
        self._process, self._begun = process, True
        return process.infer(observations, timeout_s=self._policy.timeout_s, session=self._number)

    def reset(self) -> None:
        self._tell(RESET)
        self._begun = False

    def close(self) -> None:
        self._tell(END)
        self._process = None

    def _tell(self, kind: int) -> None:
        if self._process is not None and self._process.end is None:
            self._process.tell(kind, self._number)


def start_policy(
    source: PolicySource, options: ProcessOptions, *, label: str
) -> ProcessPolicy | SessionProcessPolicy:
    """Return a policy in a process of its own, loaded; with sessions where the policy has some.

    Raises:
        ConfigurationError: It cannot be loaded; the message says why.
    """
    policy = ProcessPolicy(source, options, label=label)
    return policy if policy.reported.stateful is None else SessionProcessPolicy(policy)
