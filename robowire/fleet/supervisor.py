"""Thread that starts services, checks them, replaces them, and ends them."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from robowire.address import join_address
from robowire.errors import InvalidParams, Overloaded, SessionNotFound
from robowire.fleet.engine import CannotStart, Engine, RunningService, ServiceSpec
from robowire.fleet.lifecycle import Lifecycle, Order, State
from robowire.fleet.options import MAX_SERVICES, FleetOptions
from robowire.fleet.placement import Load, least_loaded, to_remove
from robowire.fleet.probe import Probe

__all__ = ["Supervisor", "Variation"]

logger = logging.getLogger(__name__)

# Interval of looking for ended processes: what one costs its clients in addition to its start.
_TICK_S = 0.1

# Changes within this time are reported together: many services start at one time.
_REPORT_S = 1.0

# A client that connects while the only service restarts should wait and not fail; less than clients wait for
# the reply to hello.
_READY_S = 3.0

# Words and environment variables of the service of an index.
Variation = Callable[[int], tuple[Sequence[str], Mapping[str, str]]]


class _Slot:
    """One slot of the fleet, and the process that runs in it."""

    def __init__(self, number: int, index: int, lifecycle: Lifecycle) -> None:
        self.number = number
        self.index = index  # smallest that no other slot has
        self.launches = 0
        self.lifecycle = lifecycle
        self.service: RunningService | None = None
        self.probe: Probe | None = None
        self.load = Load()
        self.memory_mb = 0.0

    @property
    def name(self) -> str:
        """Name of the process: the next process in this slot has another name, and other sessions."""
        return f"{self.number}.{self.launches}"

    @property
    def serves(self) -> bool:
        """Whether it takes new clients."""
        alive = self.service is not None and self.service.ended() is None
        return alive and self.lifecycle.state is State.HEALTHY

    def describe(self) -> dict[str, Any]:
        """Return a row of the fleet's table."""
        address = self.service.address() if self.service is not None else None
        answers = self.lifecycle.state in (State.HEALTHY, State.UNHEALTHY, State.DRAINING)
        return {
            "service": self.name,
            "address": "" if address is None else join_address(*address),
            "state": self.lifecycle.state.value,
            "reason": self.lifecycle.reason,
            "sessions": self.load.count(time.monotonic()),
            "max_sessions": self.load.max_sessions if answers else 0,
            "memory_mb": round(self.memory_mb),
            "restarts": self.lifecycle.restarts,
            "gpu": self.service.gpu if self.service is not None else "",
            "cores": self.service.cores if self.service is not None else "",
            "pid": self.service.pid if self.service is not None else 0,
        }


class Supervisor:
    """Keep the wanted number of services running.

    Args:
        engine: Starts the services; closed at the end.
        options: Number of services, and how they are watched.
        command: Command line of each: see :class:`robowire.fleet.engine.ServiceSpec`.
        drain_s: Seconds that a service which is told to end has to finish its requests.
        token: Token that services and their clients share; none by default.
        tls: TLS context for connections with services; ``None`` if they speak plain TCP.
        on_change: Called with the fleet's rows when the state of a service changes, once a second at most.
        variation: Returns what is different for the service of an index, 0, 1, ...: words that follow the
            command, and environment variables. No two services have one index at one time.

    Attributes:
        command: Command line of each service.
    """

    def __init__(
        self,
        engine: Engine,
        options: FleetOptions,
        command: Sequence[str],
        *,
        drain_s: float,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        on_change: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
        variation: Variation = lambda index: ((), {}),
    ) -> None:
        self._variation = variation
        self._engine = engine
        self._options = options
        self.command = tuple(command)
        self._drain_s = drain_s
        self._token = token
        self._tls = tls
        self._on_change = on_change
        self._reported: list[Any] = []  # the states of the last call of on_change
        self._reported_at = float("-inf")
        self._changed = threading.Condition()  # guards what follows; this thread alone changes the slots
        self._wanted = options.num_services
        self._stopping = False
        self._slots: list[_Slot] = []
        self._numbers = 0  # slots made so far: no number is used twice
        self._wake = threading.Event()
        # Not a daemon: Linux would end the services with it, before they are done.
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def start(self) -> None:
        """Start the thread, which starts the services."""
        self._thread.start()

    def stop(self) -> None:
        """End all services, which finish their requests in hand, and return when they have ended."""
        with self._changed:
            self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._engine.close()

    def scale(self, num_services: int) -> None:
        """Change the number of services. Surplus ones finish their sessions first.

        Raises:
            InvalidParams: The number is too large.
        """
        if num_services > MAX_SERVICES:
            raise InvalidParams(f"num_services is {num_services}, expected 0 to {MAX_SERVICES}")
        with self._changed:
            logger.info("scaled from %d services to %d", self._wanted, num_services)
            self._wanted = num_services
        self._wake.set()

    def place_client(self, *, host: str) -> tuple[str, str]:
        """Return the name and address of the service with the most capacity, for a client that connects now.

        Args:
            host: Host under which the client reaches this machine.

        Raises:
            Overloaded: No service was ready within some seconds.
        """
        with self._changed:
            serving = self._changed.wait_for(self._serving, timeout=_READY_S)
            now = time.monotonic()
            chosen = least_loaded([slot.load for slot in serving], now)
            if chosen is None:
                states = Counter(slot.lifecycle.state.value for slot in self._slots)
                found = ", ".join(f"{count} {state}" for state, count in states.items()) or "there are none"
                raise Overloaded(f"no service of this fleet is ready ({found}); try again later")
            serving[chosen].load.send(now)
            return serving[chosen].name, self._address(serving[chosen], host)

    def find(self, name: str, *, host: str) -> str:
        """Return the address of a service, for a client with a session there.

        Raises:
            SessionNotFound: The service ended, and its sessions with it.
        """
        with self._changed:
            for slot in self._slots:
                service = slot.service
                if (
                    slot.name == name
                    and service is not None
                    and service.ended() is None
                    and service.address()
                ):
                    return self._address(slot, host)
        raise SessionNotFound(f"service {name[:50]} has ended, and its sessions with it")

    def describe(self) -> list[dict[str, Any]]:
        """Return a row for each service."""
        with self._changed:
            return [slot.describe() for slot in self._slots]

    @property
    def num_services(self) -> int:
        """Number of services that are wanted."""
        return self._wanted

    def _serving(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.serves]

    def _address(self, slot: _Slot, host: str) -> str:
        assert slot.service is not None
        address = slot.service.address()
        assert address is not None, "it was healthy, so it listens"
        return join_address(slot.service.node or self._options.advertise_host or host, address[1])

    # -- in the supervisor's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        done = False
        while not done:
            with self._changed:
                self._match_number()
            for slot in self._slots:
                self._survive(partial(self._update, slot))
            with self._changed:
                self._slots = [p for p in self._slots if p.lifecycle.state is not State.STOPPED]
                self._changed.notify_all()
                done = self._stopping and not self._slots
            self._survive(partial(self._report, now=done))
            if not done:
                self._wake.wait(_TICK_S)
                self._wake.clear()

    def _survive(self, act: Callable[[], None]) -> None:
        """Call a function, and go on if it fails: all services would end with this thread."""
        try:
            act()
        except Exception:
            logger.exception("the fleet met a bug of this program")

    def _match_number(self) -> None:
        """Add slots, or retire some, until their number is the wanted one."""
        now = time.monotonic()
        if self._stopping:
            for slot in self._slots:
                slot.lifecycle.retire(now, wait=False)
            return
        kept = [slot for slot in self._slots if not slot.lifecycle.retired]
        for _ in range(self._wanted - len(kept)):
            lifecycle = Lifecycle(self._options, now, drain_s=self._drain_s)
            self._numbers += 1
            taken = {slot.index for slot in self._slots}
            index = next(index for index in range(len(taken) + 1) if index not in taken)
            self._slots.append(_Slot(self._numbers, index, lifecycle))
        surplus = len(kept) - self._wanted
        if surplus > 0:
            serves, loads = [slot.serves for slot in kept], [slot.load for slot in kept]
            for index in to_remove(serves, loads, surplus, now):
                kept[index].lifecycle.retire(now, wait=True)

    def _update(self, slot: _Slot) -> None:
        service = slot.service
        if service is not None:
            end = service.ended()
            if end is not None:
                self._clean_up(slot, service, end)
            else:
                self._check(slot, service)
        order = slot.lifecycle.order(time.monotonic())
        if order is Order.START:
            self._start(slot)
        elif slot.service is not None and order is Order.TERMINATE:
            logger.info("service %s is told to end", slot.name)
            slot.service.terminate()
        elif slot.service is not None and order is Order.KILL:
            logger.warning("service %s is killed", slot.name)
            slot.service.kill()

    def _start(self, slot: _Slot) -> None:
        slot.launches += 1
        words, environ = self._variation(slot.index)
        spec = ServiceSpec(
            f"service {slot.name}",
            (*self.command, *words),
            {**environ, **self._environ()},
            share=self._wanted,
        )
        now = time.monotonic()
        try:
            service: RunningService | None = self._engine.start(spec)
        except CannotStart as exc:
            service, reason = None, str(exc)
            logger.warning("%s", exc)
        with self._changed:
            slot.service, slot.load, slot.memory_mb = service, Load(), 0.0
            slot.lifecycle.started(now)
            if service is None:
                slot.lifecycle.ended(now, reason)

    def _environ(self) -> dict[str, str]:
        # Not a flag: other users of the machine can read those.
        return {} if self._token is None else {"ROBOWIRE_SIM_TOKEN": self._token}

    def _check(self, slot: _Slot, service: RunningService) -> None:
        if slot.probe is None:
            address = service.address()
            if address is not None:
                slot.probe = Probe(
                    address,
                    self._options,
                    token=self._token,
                    tls=self._tls,
                    memory_mb=service.memory_mb,
                    on_result=self._wake.set,
                )
            return
        health = slot.probe.take()
        if health is None:
            return
        now = time.monotonic()
        with self._changed:
            if health.failure:
                slot.lifecycle.missed(now, health.failure)
                return
            slot.load.see(health.sessions, health.max_sessions)
            slot.memory_mb = health.memory_mb
            # Services that grow alike would otherwise all drain at one time, and none would take a client.
            others = [p for p in self._slots if p is not slot and not p.lifecycle.retired]
            needed = bool(others) and not any(other.serves for other in others)
            slot.lifecycle.answered(now, sessions=health.sessions, memory_mb=health.memory_mb, needed=needed)

    def _clean_up(self, slot: _Slot, service: RunningService, end: str) -> None:
        if slot.probe is not None:
            slot.probe.close()
        service.close()
        wanted = slot.lifecycle.state is State.DRAINING
        with self._changed:
            slot.service, slot.probe, slot.load, slot.memory_mb = None, None, Load(), 0.0
            slot.lifecycle.ended(time.monotonic(), end)
        logger.log(logging.INFO if wanted else logging.WARNING, "service %s %s", slot.name, end)

    def _report(self, *, now: bool) -> None:
        rows = self.describe()
        states = [(row["service"], row["state"]) for row in rows]
        if states != self._reported and (now or time.monotonic() - self._reported_at > _REPORT_S):
            self._reported, self._reported_at = states, time.monotonic()
            self._on_change(rows)
