"""Lifecycle of one fleet service: health checks, restart backoff, recycling. Pure: the clock is passed in."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from robowire.errors import ConfigurationError

__all__ = ["Lifecycle", "LifecycleOptions", "Order", "State"]

# A service that was told to end keeps to its own drain_s, and then has a moment to end its simulators.
_ENDING_S = 5.0


class State(enum.Enum):
    """State of a service between its start and its end."""

    STARTING = "starting"
    HEALTHY = "healthy"  # the only state in which new clients are redirected to it
    UNHEALTHY = "unhealthy"  # it runs and does not answer
    BACKING_OFF = "backing off"  # it ended, and is started again after a pause
    DRAINING = "draining"  # it ends once its sessions have ended
    STOPPED = "stopped"


class Order(enum.Enum):
    """What to do with a service's process now."""

    WAIT = "wait"
    START = "start"
    TERMINATE = "terminate"  # ask it to finish
    KILL = "kill"


@dataclass(frozen=True)
class LifecycleOptions:
    """When a service counts as broken, and how it is replaced.

    Attributes:
        start_timeout_s: Seconds a service may take until it first answers.
        unhealthy_s: Seconds without an answer after which a service is killed and started again.
        backoff_s: Seconds before a service that ended is started again; twice as many each time.
        max_backoff_s: Longest such pause.
        steady_s: Seconds of health after which the next end of a service counts as its first.
        max_service_mb: Memory of a service and its simulators, in megabytes, above which it is replaced, once
            another one takes clients; no limit by default.
        recycle_wait_s: Seconds that a service which is replaced or removed waits for its sessions to end.
    """

    # Importing the server takes a second; on a machine that starts many at once it takes many.
    start_timeout_s: float = 120.0
    # A machine whose cores are all busy with physics can be slow to answer, and losing sessions costs more.
    unhealthy_s: float = 30.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    steady_s: float = 60.0
    max_service_mb: float | None = None
    # An episode of LIBERO, rendered on a CPU, takes up to three minutes.
    recycle_wait_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("start_timeout_s", "unhealthy_s", "backoff_s", "max_backoff_s", "steady_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )
        if not self.recycle_wait_s >= 0:
            raise ConfigurationError(f"recycle_wait_s is {self.recycle_wait_s}, expected 0 or more seconds")
        if self.max_service_mb is not None and not self.max_service_mb > 0:
            raise ConfigurationError(f"max_service_mb is {self.max_service_mb}, expected more than 0")


class Lifecycle:
    """Lifecycle of one slot of the fleet, in which one process after the other serves.

    Events go in by :meth:`started`, :meth:`answered`, :meth:`missed`, :meth:`ended` and :meth:`retire`;
    :meth:`order` returns what to do now.

    Args:
        options: Timeouts and limits.
        now: Seconds of one monotonic clock, as in every method here.
        drain_s: Seconds that a process which was told to end may take to finish its requests.

    Attributes:
        state: State of the service.
        reason: Reason for the state, in words; may be empty.
        restarts: Number of processes that replaced another one.
    """

    def __init__(self, options: LifecycleOptions, now: float, *, drain_s: float) -> None:
        self.state = State.BACKING_OFF
        self.reason = ""
        self.restarts = 0
        self._options = options
        self._drain_s = drain_s
        self._due = now  # when to start the next process
        self._since = now  # when it entered the state
        self._failures = 0  # ends in a row that came too early
        self._healthy_at: float | None = None  # when this process first answered
        self._answered_at = now
        self._sessions = 0
        self._retired = False  # no other process replaces it
        self._wait_s = 0.0  # how long it waits for its sessions while it drains
        self._terminated_at: float | None = None  # when it was told to end
        self._ended_for = ""  # why we end this process, where we do

    def order(self, now: float) -> Order:
        """Return what to do now."""
        options, lasted = self._options, now - self._since
        silent = now - self._answered_at > options.unhealthy_s
        if self.state is State.BACKING_OFF and now >= self._due:
            return Order.START
        if self.state is State.STARTING and lasted > options.start_timeout_s:
            self._ended_for = f"did not answer within {options.start_timeout_s:g} s of its start"
            return Order.KILL
        if self.state is State.UNHEALTHY and silent:
            self._ended_for = f"did not answer for {options.unhealthy_s:g} s"
            return Order.KILL
        if self.state is State.DRAINING:
            if self._terminated_at is None:
                if self._sessions and lasted < self._wait_s and not silent:
                    return Order.WAIT
                self._terminated_at = now
                return Order.TERMINATE
            if now - self._terminated_at > self._drain_s + _ENDING_S:
                return Order.KILL
        return Order.WAIT

    def started(self, now: float) -> None:
        """Record that a process was started."""
        self._enter(State.STARTING, now, self.reason)
        self._healthy_at, self._terminated_at, self._ended_for = None, None, ""
        self._answered_at, self._sessions = now, 0

    def answered(self, now: float, *, sessions: int, memory_mb: float, needed: bool = False) -> None:
        """Record an answer to a health check.

        Args:
            now: The time.
            sessions: Number of its sessions.
            memory_mb: Its memory.
            needed: Whether no other service could take new clients while this one is replaced: then it stays
                for now, however large.
        """
        self._answered_at, self._sessions = now, sessions
        if self.state in (State.STARTING, State.UNHEALTHY):
            self._healthy_at = self._healthy_at or now
            self._enter(State.HEALTHY, now)
        limit = self._options.max_service_mb
        if self.state is State.HEALTHY and limit is not None and memory_mb > limit and not needed:
            self._wait_s = self._options.recycle_wait_s
            self._ended_for = f"has {memory_mb:.0f} MB, of {limit:g}"
            self._enter(State.DRAINING, now, self._ended_for)

    def missed(self, now: float, reason: str) -> None:
        """Record a health check that was not answered in time."""
        if self.state is State.HEALTHY:
            self._enter(State.UNHEALTHY, now, reason)

    def ended(self, now: float, reason: str) -> None:
        """Record that its process has ended, whatever the reason."""
        if self._retired:
            self._enter(State.STOPPED, now, self.reason)
            return
        self.restarts += 1
        steady = self._healthy_at is not None and now - self._healthy_at >= self._options.steady_s
        if steady:
            self._failures = 0
        if steady and self.state is State.DRAINING:  # we ended it
            self._due = now
        else:
            # 2.0**1024 overflows
            delay = self._options.backoff_s * 2.0 ** min(self._failures, 64)
            self._due = now + min(delay, self._options.max_backoff_s)
            self._failures += 1
        self._enter(State.BACKING_OFF, now, self._ended_for or reason)

    def retire(self, now: float, *, wait: bool) -> None:
        """End it for good: no other process replaces it.

        Args:
            now: The time.
            wait: Whether it first waits for its sessions to end, ``recycle_wait_s`` at most.
        """
        self._retired = True
        if self.state is State.BACKING_OFF:  # there is no process
            self._enter(State.STOPPED, now)
        elif self.state is not State.STOPPED:
            self._wait_s = self._options.recycle_wait_s if wait else 0.0
            if self.state is not State.DRAINING:
                self._enter(State.DRAINING, now)

    @property
    def retired(self) -> bool:
        """Whether no other process will replace it."""
        return self._retired

    def _enter(self, state: State, now: float, reason: str = "") -> None:
        self.state, self._since, self.reason = state, now, reason
