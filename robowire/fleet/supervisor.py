"""The thread that starts services, looks after them, replaces them, and ends them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from robowire.address import join_address
from robowire.errors import InvalidParams, Overloaded, SessionNotFound
from robowire.fleet.engine import CannotStart, Engine, Service, ServiceSpec
from robowire.fleet.lifecycle import Lifecycle, Order, State
from robowire.fleet.options import MAX_SERVICES, FleetOptions
from robowire.fleet.placement import Load, least_loaded, to_take_away
from robowire.fleet.probe import Probe

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

# How often processes are looked at: what a dead one costs its clients beside its start.
_TICK_S = 0.1

# What changes within this time is told at once: many services start together.
_TELL_S = 1.0

# A client that comes while the only service starts again should wait and not fail; less than clients wait for
# a hello.
_READY_S = 3.0


class _Place:
    """A place in the fleet, and the process that fills it."""

    def __init__(self, number: int, lifecycle: Lifecycle) -> None:
        self.number = number
        self.launches = 0
        self.lifecycle = lifecycle
        self.service: Service | None = None
        self.probe: Probe | None = None
        self.load = Load()
        self.memory_mb = 0.0

    @property
    def name(self) -> str:
        """The process's name: another process in this place has another one, and other sessions."""
        return f"{self.number}.{self.launches}"

    @property
    def serves(self) -> bool:
        """Whether it is given new clients."""
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
    """Keep as many services running as are wanted.

    Args:
        engine: Starts them; closed at the end.
        options: How many, and how they are watched.
        command: Of each: see :class:`robowire.fleet.engine.ServiceSpec`.
        drain_s: Seconds that a service which is told to end has to finish its requests.
        token: What services and their clients share; none by default.
        on_change: Called with the fleet's rows when a service has another state, once a second at most.

    Attributes:
        command: Of each service.
    """

    def __init__(
        self,
        engine: Engine,
        options: FleetOptions,
        command: Sequence[str],
        *,
        drain_s: float,
        token: str | None = None,
        on_change: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    ) -> None:
        self._engine = engine
        self._options = options
        self.command = tuple(command)
        self._drain_s = drain_s
        self._token = token
        self._on_change = on_change
        self._told: list[Any] = []  # what on_change was told last
        self._told_at = float("-inf")
        self._changed = threading.Condition()  # guards what follows; this thread alone changes the places
        self._wanted = options.num_services
        self._stopping = False
        self._places: list[_Place] = []
        self._numbers = 0  # given out so far: none is given twice
        self._wake = threading.Event()
        # Not a daemon: Linux would end the services with it, before they are done.
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def start(self) -> None:
        """Begin to start services."""
        self._thread.start()

    def stop(self) -> None:
        """End all services, which finish the requests they have, and return when they are gone."""
        with self._changed:
            self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._engine.close()

    def scale(self, num_services: int) -> None:
        """Change how many services there are. Those that are too many finish their sessions first.

        Raises:
            InvalidParams: That many are not allowed.
        """
        if num_services > MAX_SERVICES:
            raise InvalidParams(f"num_services is {num_services}, expected 0 to {MAX_SERVICES}")
        with self._changed:
            logger.info("scaled from %d services to %d", self._wanted, num_services)
            self._wanted = num_services
        self._wake.set()

    def place_client(self, *, host: str) -> tuple[str, str]:
        """Return the name and address of the service that has most room, for a client that goes there now.

        Args:
            host: Under which the client finds this machine.

        Raises:
            Overloaded: None is ready, and none was within some seconds.
        """
        with self._changed:
            serving = self._changed.wait_for(self._serving, timeout=_READY_S)
            now = time.monotonic()
            chosen = least_loaded([place.load for place in serving], now)
            if chosen is None:
                states = Counter(place.lifecycle.state.value for place in self._places)
                found = ", ".join(f"{count} {state}" for state, count in states.items()) or "there are none"
                raise Overloaded(f"no service of this fleet is ready ({found}); try again later")
            serving[chosen].load.send(now)
            return serving[chosen].name, self._address(serving[chosen], host)

    def find(self, name: str, *, host: str) -> str:
        """Return the address of a service, for a client with a session there.

        Raises:
            SessionNotFound: It ended, and its sessions with it.
        """
        with self._changed:
            for place in self._places:
                service = place.service
                if (
                    place.name == name
                    and service is not None
                    and service.ended() is None
                    and service.address()
                ):
                    return self._address(place, host)
        raise SessionNotFound(f"service {name[:50]} has ended, and its sessions with it")

    def describe(self) -> list[dict[str, Any]]:
        """Return a row for each service."""
        with self._changed:
            return [place.describe() for place in self._places]

    @property
    def num_services(self) -> int:
        """How many are wanted."""
        return self._wanted

    def _serving(self) -> list[_Place]:
        return [place for place in self._places if place.serves]

    def _address(self, place: _Place, host: str) -> str:
        assert place.service is not None
        address = place.service.address()
        assert address is not None, "it was healthy, so it listens"
        return join_address(place.service.node or self._options.advertise_host or host, address[1])

    # -- in the supervisor's thread
    # -------------------------------------------------------------------------------

    def _run(self) -> None:
        done = False
        while not done:
            with self._changed:
                self._match_number()
            for place in self._places:
                self._survive(partial(self._tend, place))
            with self._changed:
                self._places = [p for p in self._places if p.lifecycle.state is not State.STOPPED]
                self._changed.notify_all()
                done = self._stopping and not self._places
            self._survive(partial(self._tell, now=done))
            if not done:
                self._wake.wait(_TICK_S)
                self._wake.clear()

    def _survive(self, act: Callable[[], None]) -> None:
        """Do it, and go on if it fails: all services end with this thread."""
        try:
            act()
        except Exception:
            logger.exception("the fleet met a bug of this program")

    def _match_number(self) -> None:
        """Add places, or retire some, until there are as many as are wanted."""
        now = time.monotonic()
        if self._stopping:
            for place in self._places:
                place.lifecycle.retire(now, wait=False)
            return
        kept = [place for place in self._places if not place.lifecycle.retired]
        for _ in range(self._wanted - len(kept)):
            lifecycle = Lifecycle(self._options, now, drain_s=self._drain_s)
            self._numbers += 1
            self._places.append(_Place(self._numbers, lifecycle))
        too_many = len(kept) - self._wanted
        if too_many > 0:
            serves, loads = [place.serves for place in kept], [place.load for place in kept]
            for index in to_take_away(serves, loads, too_many, now):
                kept[index].lifecycle.retire(now, wait=True)

    def _tend(self, place: _Place) -> None:
        service = place.service
        if service is not None:
            end = service.ended()
            if end is not None:
                self._bury(place, service, end)
            else:
                self._look(place, service)
        order = place.lifecycle.order(time.monotonic())
        if order is Order.START:
            self._start(place)
        elif place.service is not None and order is Order.TERMINATE:
            logger.info("service %s is told to end", place.name)
            place.service.terminate()
        elif place.service is not None and order is Order.KILL:
            logger.warning("service %s is killed", place.name)
            place.service.kill()

    def _start(self, place: _Place) -> None:
        place.launches += 1
        spec = ServiceSpec(f"service {place.name}", self.command, self._environ(), share=self._wanted)
        now = time.monotonic()
        try:
            service: Service | None = self._engine.start(spec)
        except CannotStart as exc:
            service, reason = None, str(exc)
            logger.warning("%s", exc)
        with self._changed:
            place.service, place.load, place.memory_mb = service, Load(), 0.0
            place.lifecycle.started(now)
            if service is None:
                place.lifecycle.ended(now, reason)

    def _environ(self) -> dict[str, str]:
        # Not a flag: other users of the machine can read those.
        return {} if self._token is None else {"ROBOWIRE_SIM_AUTH_TOKEN": self._token}

    def _look(self, place: _Place, service: Service) -> None:
        if place.probe is None:
            address = service.address()
            if address is not None:
                place.probe = Probe(
                    address,
                    self._options,
                    token=self._token,
                    memory_mb=service.memory_mb,
                    on_seen=self._wake.set,
                )
            return
        seen = place.probe.take()
        if seen is None:
            return
        now = time.monotonic()
        with self._changed:
            if seen.failure:
                place.lifecycle.missed(now, seen.failure)
                return
            place.load.see(seen.sessions, seen.max_sessions)
            place.memory_mb = seen.memory_mb
            # Services that grow alike would otherwise all wait for their sessions, and none take a client.
            others = [p for p in self._places if p is not place and not p.lifecycle.retired]
            needed = bool(others) and not any(other.serves for other in others)
            place.lifecycle.answered(now, sessions=seen.sessions, memory_mb=seen.memory_mb, needed=needed)

    def _bury(self, place: _Place, service: Service, end: str) -> None:
        if place.probe is not None:
            place.probe.close()
        service.close()
        wanted = place.lifecycle.state is State.DRAINING
        with self._changed:
            place.service, place.probe, place.load, place.memory_mb = None, None, Load(), 0.0
            place.lifecycle.ended(time.monotonic(), end)
        logger.log(logging.INFO if wanted else logging.WARNING, "service %s %s", place.name, end)

    def _tell(self, *, now: bool) -> None:
        rows = self.describe()
        states = [(row["service"], row["state"]) for row in rows]
        if states != self._told and (now or time.monotonic() - self._told_at > _TELL_S):
            self._told, self._told_at = states, time.monotonic()
            self._on_change(rows)
