"""The one address of a fleet: who asks is sent to a simulator server, and the fleet is told what to do."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from robowire.errors import Unauthenticated, UnknownMethod
from robowire.fleet.engine import ENGINES, Engine
from robowire.fleet.lifecycle import State
from robowire.fleet.options import FleetOptions
from robowire.fleet.supervisor import Supervisor
from robowire.registry import load
from robowire.serving.metrics import Metrics
from robowire.serving.rpc import answer_call
from robowire.serving.sessions import Session
from robowire.serving.tcp.frontend import TcpOptions, TcpServer
from robowire.serving.text import answer_line
from robowire.version import __version__
from robowire.wire.messages import PROTOCOL_VERSION, Call, ok
from robowire.wire.methods import FLEET_METHODS, METHODS, check_params
from robowire.wire.pickle.writer import Buffer

__all__ = ["FleetServer", "is_loopback"]

logger = logging.getLogger(__name__)


class FleetServer:
    """Run services, and be the address under which clients find them. The port is bound when it is made.

    Then use it as a context manager, which serves in a thread, or call :meth:`serve_forever`.

    Args:
        options: How many services, on what, and how they are watched.
        tcp: Where to listen; services listen on the same host.
        command: Of each service: see :class:`robowire.fleet.engine.ServiceSpec`.
        on_change: Called with :meth:`rows` when a service has another state, once a second at most.

    Raises:
        ConfigurationError: The address can't be listened on, or an option is unusable.
        MissingDependency: The engine needs a package that is not installed.
    """

    def __init__(
        self,
        options: FleetOptions,
        tcp: TcpOptions,
        command: Sequence[str],
        *,
        on_change: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
    ) -> None:
        self.options = options
        self.tcp = tcp
        self.metrics = _FleetMetrics(self.rows)
        self._tcp = TcpServer(tcp, lambda session: _Connection(self, session), self.metrics)
        try:
            engine: Engine = load("engine", options.engine, ENGINES)(options, host=tcp.host)
        except BaseException:
            self._tcp.shutdown()
            raise
        self.supervisor = Supervisor(
            engine, options, command, drain_s=tcp.drain_s, token=tcp.auth_token, on_change=on_change
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""
        return self._tcp.address

    def __enter__(self) -> FleetServer:
        self.supervisor.start()
        self._tcp.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._tcp.__exit__(kind, error, traceback)
        finally:
            self.supervisor.stop()

    def describe(self) -> str:
        """Return one line for a person."""
        return f"a fleet of {self.options.num_services} simulator servers, engine {self.options.engine}"

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`; then let the services finish. None is left when it returns."""
        self.supervisor.start()
        try:
            self._tcp.serve_forever()
        finally:
            self.supervisor.stop()

    def stop(self) -> None:
        """Tell :meth:`serve_forever` to end. May be called in a signal handler."""
        self._tcp.stop()

    def rows(self) -> list[dict[str, Any]]:
        """Return what ``list_services`` says."""
        return self.supervisor.describe()


class _FleetMetrics(Metrics):
    """What any server counts, and the services beside it."""

    def __init__(self, rows: Callable[[], list[dict[str, Any]]]) -> None:
        super().__init__()
        self._rows = rows

    def prometheus(self) -> str:
        rows = self._rows()
        lines = [
            "# HELP robowire_fleet_services Services, by their state.",
            "# TYPE robowire_fleet_services gauge",
        ]
        for state in State:
            count = sum(row["state"] == state.value for row in rows)
            lines.append(f'robowire_fleet_services{{state="{state.value}"}} {count}')
        for name, text in (("sessions", "Sessions in use."), ("max_sessions", "Sessions there is room for.")):
            lines += [f"# HELP robowire_fleet_{name} {text}", f"# TYPE robowire_fleet_{name} gauge"]
            lines.append(f"robowire_fleet_{name} {sum(row[name] for row in rows)}")
        return super().prometheus() + "\n".join(lines) + "\n"


def is_loopback(peer: str) -> bool:
    """Return whether ``host:port`` is a program of this machine that came by the loopback."""
    host = peer.rpartition(":")[0].strip("[]").partition("%")[0]
    address = ipaddress.ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class _Connection:
    """What one connection asks of the fleet."""

    def __init__(self, server: FleetServer, session: Session) -> None:
        self._server = server
        self._session = session
        self._methods: Mapping[str, Callable[..., dict[str, Any]]] = {
            "acquire": self._acquire,
            "list_services": lambda: ok(num_services=server.supervisor.num_services, services=server.rows()),
            "scale": self._scale,
            "stop": self._stop,
            "get_info": lambda: ok(**self._facts()),
            "ping": lambda: ok(),
            "stats": lambda: ok(**server.metrics.snapshot()),
        }

    def payload(self, payload: bytearray) -> Sequence[Buffer]:
        """Return the frame that answers one request."""
        return answer_call(payload, self._session, self._server.metrics, self._answer)

    def line(self, line: str) -> bytes:
        """Return the line that answers a line of text."""
        return answer_line(line, self._session, self._server.metrics, self._facts)

    def close(self) -> None:
        """Do nothing: a client that was sent on is no longer ours."""

    def _answer(self, call: Call) -> dict[str, Any]:
        if call.method == "hello":
            reply = self._session.hello(call.params, server="fleet", auth_token=self._server.tcp.auth_token)
            if call.params.get("redirect") is not True:
                return reply
            service = call.params.get("service")
            acquired = self._acquire(service if isinstance(service, str) else None)
            return {**reply, "redirect": acquired["address"], "service": acquired["service"]}
        self._session.admit()
        if call.method in METHODS and call.method not in FLEET_METHODS:
            raise UnknownMethod(
                f"a fleet does not answer {call.method!r} itself: ask 'acquire' for the address of a "
                "simulator server, or say hello with 'redirect': True"
            )
        return self._methods[call.method](**check_params(call, FLEET_METHODS))

    def _acquire(self, service: str | None) -> dict[str, Any]:
        self._session.admit()
        supervisor, host = self._server.supervisor, self._session.host
        if service is not None:
            return ok(address=supervisor.find(service, host=host), service=service)
        name, address = supervisor.place_client(host=host)
        return ok(address=address, service=name)

    def _scale(self, num_services: int) -> dict[str, Any]:
        self._require_trust()
        self._server.supervisor.scale(num_services)
        return ok(num_services=num_services)

    def _stop(self) -> dict[str, Any]:
        self._require_trust()
        logger.info("%s told the fleet to stop", self._session)
        self._server.stop()
        return ok()

    def _require_trust(self) -> None:
        """Let those change the fleet that are on its machine, or that showed the token."""
        if self._server.tcp.auth_token is None and not is_loopback(self._session.peer):
            raise Unauthenticated(
                "without a token the fleet is changed from its own machine only, under the address "
                "localhost: start it with --auth_token"
            )

    def _facts(self) -> dict[str, Any]:
        return {
            "server": "fleet",
            "version": __version__,
            "protocol_version": PROTOCOL_VERSION,
            "engine": self._server.options.engine,
            "num_services": self._server.supervisor.num_services,
            "services": self._server.rows(),
            "session": self._session.id,
        }
