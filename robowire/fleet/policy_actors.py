"""Replicas of a policy as Ray actors: each starts the policy's process on the machine that Ray chose.

Every machine needs this checkout, and the policy's interpreter and checkpoint, under the same paths as here.
The extra is ``ray``. Ray carries observations and actions; between an actor and its process they cross in
shared memory, and a crash, hang or leak of the process is treated on its machine. Here an actor that is lost,
with its machine, is placed again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from robowire.errors import ConfigurationError, Overloaded, RequestError, RobowireError, ShuttingDown
from robowire.errors import request_error as error_of
from robowire.meta import MetaObs
from robowire.serving.policy.process import PolicyProcessEnded, PolicySource, ReportedPolicy
from robowire.serving.policy.process_policy import ProcessOptions, ProcessPolicy
from robowire.serving.policy.restarts import Restarts
from robowire.wire.text_safety import printable

__all__ = ["ActorPolicy", "join_cluster", "leave_cluster"]

logger = logging.getLogger(__name__)

# What a call of an actor may take in addition to the inference: queues of Ray, and a start of the process.
_MARGIN_S = 30.0
# Between two questions after an actor's process: usually, and while the process is being started again.
_LOOK_S, _LOOK_SOON_S = 1.0, 0.1


def join_cluster(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine for ``None``.

    Raises:
        ConfigurationError: It cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            configure_logging=False,
            log_to_driver=False,
        )
    except Exception as exc:  # a plain one where its processes do not start in time
        what = f"join the Ray cluster {address!r}" if address else "start Ray on this machine"
        raise ConfigurationError(f"cannot {what}: {printable(exc)}") from exc


def leave_cluster() -> None:
    """Leave the cluster, which ends if it was started here."""
    ray.shutdown()


class ActorPolicy:
    """A replica whose process runs where Ray placed its actor.

    Args:
        source: What the process loads.
        options: Limits.
        label: For the log.
        num_cpus: Cores that Ray reserves for it.
        num_gpus: GPUs, or a part of one, likewise.

    Raises:
        ConfigurationError: The policy cannot be loaded there.
    """

    def __init__(
        self,
        source: PolicySource,
        options: ProcessOptions,
        *,
        label: str,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
    ) -> None:
        self._source, self._options, self._label = source, options, label
        self._reserved = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._changed = threading.Condition()  # guards what follows
        self._actor: Any = None
        self._placing: Any = None  # one that loads the policy
        self._closing = False
        self._failure = ""
        self._ends = Restarts()
        self._since = time.monotonic()
        self._state = _ProcessState(0, 0, ready=False)
        self._restarts_before = 0  # those of earlier actors and their processes
        try:
            self._actor, self.reported = self._place()
        except RobowireError as exc:
            raise ConfigurationError(str(exc)) from exc
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {label}", daemon=True)
        self._keeper.start()

    @property
    def ready(self) -> bool:
        """Whether its actor is placed, and the process there answered when it was last asked."""
        return self._actor is not None and self._state.ready

    @property
    def pid(self) -> int:
        """Number of the process on its machine, at most a second old; 0 while there is none."""
        return self._state.pid if self._actor is not None else 0

    @property
    def restarts(self) -> int:
        """Number of processes that took the place of another, and of actors that did."""
        return self._restarts_before + self._state.restarts

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation; waits while an actor is placed.

        Raises:
            PolicyProcessEnded: The process or the actor was lost.
            RequestError: The policy's own error.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._failure or self._actor is not None)
            if self._closing:
                raise ShuttingDown("the server shuts down and takes no new requests")
            if self._actor is None:
                raise Overloaded(f"{self._failure[:400]}: it is placed again, try again later")
            actor = self._actor
        try:
            # As plain data: an actor need not know under which name our clients pickle an observation.
            call = actor.infer.remote([vars(observation) for observation in observations])
            answer = ray.get(call, timeout=self._options.policy_timeout_s + _MARGIN_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as exc:
            reason = printable(str(exc).partition("\n")[0], 200)
            self._lost(actor, f"the actor of the policy was lost: {reason}")
            raise PolicyProcessEnded(
                f"the actor of the policy was lost during an inference: {reason}"
            ) from exc
        if isinstance(answer, np.ndarray):
            return answer if answer.flags.writeable else answer.copy()
        error_type, message, ended = answer
        if not ended:
            raise error_of(error_type, message)
        with self._changed:
            if actor is self._actor:  # others answer meanwhile
                self._state = _ProcessState(0, self._state.restarts, ready=False)
                self._changed.notify_all()
        raise PolicyProcessEnded(message)

    def close(self) -> None:
        """End the actor and its process. May be called twice."""
        with self._changed:
            self._closing = True
            actors, self._actor, self._placing = (self._actor, self._placing), None, None
            self._changed.notify_all()
        for actor in actors:
            if actor is not None and ray.is_initialized():
                ray.kill(actor)  # its process ends with it
        # A call of Ray after the cluster was left would start another one.
        self._keeper.join(_MARGIN_S)

    def _place(self) -> tuple[Any, ReportedPolicy]:
        actor: Any = (
            ray.remote(_PolicyActor)
            .options(**self._reserved, max_concurrency=4)  # its state is asked for during an inference
            .remote(self._source, self._options, self._label)
        )
        with self._changed:
            self._placing = actor
            if self._closing:
                ray.kill(actor)
        try:
            found = ray.get(actor.load.remote(), timeout=self._options.policy_start_timeout_s + _MARGIN_S)
        except ray.exceptions.RayError as exc:
            if not self._closing:
                ray.kill(actor)
            raise ConfigurationError(
                f"Ray cannot place {self._label}: {printable(str(exc).partition(chr(10))[0], 300)}"
            ) from exc
        if isinstance(found, str):
            ray.kill(actor)
            raise ConfigurationError(found)
        with self._changed:
            self._placing = None
        reported, self._state = found
        self._since = time.monotonic()
        return actor, reported

    def _lost(self, actor: Any, why: str) -> None:
        with self._changed:
            if self._closing or actor is not self._actor:
                return
            self._actor = None
            self._restarts_before += self._state.restarts
            self._state = _ProcessState(0, 0, ready=False)
            self._changed.notify_all()
        logger.warning("%s: %s; another one is placed", self._label, why)

    def _keep(self) -> None:
        """Until the end, ask the actor for the state of its process, and replace one that is lost."""
        while True:
            with self._changed:
                if self._actor is not None and not self._closing:
                    self._changed.wait(_LOOK_S if self._state.ready else _LOOK_SOON_S)
                if self._closing:
                    return
                actor = self._actor
            if actor is None:
                self._replace()
                continue
            try:
                found = ray.get(actor.state.remote(), timeout=_MARGIN_S)
            except ray.exceptions.RayActorError as exc:
                reason = printable(str(exc).partition("\n")[0], 200)
                self._lost(actor, f"the actor of the policy was lost: {reason}")
            except ray.exceptions.RayError as exc:  # an inference finds out whether it is lost
                logger.debug("%s: its actor did not say how its process is: %s", self._label, exc)
            else:
                with self._changed:
                    if actor is self._actor:
                        self._state = found

    def _replace(self) -> None:
        lived_s = time.monotonic() - self._since
        while not self._closing:
            pause_s = self._ends.pause_s(lived_s)
            with self._changed:
                if pause_s and self._changed.wait_for(lambda: self._closing, pause_s):
                    return
                self._failure = ""
            try:
                actor, reported = self._place()
                if reported.spec != self.reported.spec:
                    raise ConfigurationError("the policy's spec differs from that of the actor before")
            except Exception as exc:  # the top of this thread
                lived_s = 0.0
                with self._changed:
                    self._failure = str(exc)
                    self._changed.notify_all()
                logger.warning("%s: %s", self._label, exc)
                continue
            with self._changed:
                self._actor = None if self._closing else actor
                self._restarts_before += 1
                self._changed.notify_all()
            if self._closing:
                ray.kill(actor)
            return


@dataclass(frozen=True)
class _ProcessState:
    """What an actor says of the process it runs.

    Attributes:
        pid: Its number; 0 while there is none.
        restarts: Number of processes that took the place of another in this actor.
        ready: Whether it is loaded and runs.
    """

    pid: int
    restarts: int
    ready: bool


class _PolicyActor:
    """Actor that runs the policy's process on its machine."""

    def __init__(self, source: PolicySource, options: ProcessOptions, label: str) -> None:
        self._source, self._options, self._label = source, options, label
        self._policy: ProcessPolicy | None = None

    def load(self) -> tuple[ReportedPolicy, _ProcessState] | str:
        """Return what the policy reports, and its process; or why it cannot be loaded."""
        try:
            self._policy = ProcessPolicy(self._source, self._options, label=self._label)
        except ConfigurationError as exc:
            return str(exc)
        return self._policy.reported, self.state()

    def state(self) -> _ProcessState:
        """Return how its process is."""
        assert self._policy is not None, "load comes first"
        return _ProcessState(self._policy.pid, self._policy.restarts, ready=self._policy.ready)

    def infer(self, observations: Sequence[Mapping[str, Any]]) -> np.ndarray | tuple[str, str, bool]:
        """Return the actions, or an error's type and message, and whether the process ended."""
        assert self._policy is not None, "load comes first"
        rows = []
        for values in observations:
            row = MetaObs()
            vars(row).update(values)
            rows.append(row)
        try:
            return self._policy.infer(rows)
        except RequestError as exc:
            return exc.error_type, str(exc), isinstance(exc, PolicyProcessEnded)
