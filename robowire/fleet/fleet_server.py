"""The one address of a fleet: it redirects clients to simulator servers, and is told to scale and to stop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robowire.address import is_loopback
from robowire.errors import ConfigurationError, Unauthenticated, UnknownMethod
from robowire.fleet.engine import ENGINES, Engine
from robowire.fleet.lifecycle import State
from robowire.fleet.options import FleetOptions
from robowire.fleet.probe import service_tls
from robowire.fleet.supervisor import Supervisor, Variation
from robowire.registry import load
from robowire.serving.metrics import Metrics
from robowire.serving.runner import Runner
from robowire.serving.service import Service
from robowire.serving.sessions import Peer, Session
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.server import TcpServer
from robowire.serving.tcp.unix_server import UnixServer
from robowire.version import __version__
from robowire.wire.codecs import CallCodec
from robowire.wire.messages import PROTOCOL_VERSION, Request, ok
from robowire.wire.methods import FLEET_METHODS, METHODS, check_params, handlers, methods_of_scope

__all__ = ["FleetServer", "FleetService"]

logger = logging.getLogger(__name__)


class FleetService(Service[Session]):
    """Redirect clients to services, and change how many there are.

    Args:
        options: How many services, on what, and how they are watched.
        supervisor: Runs the services.
        token: Token that clients must send; ``None`` for none.
        stop: Ends the fleet; called by the request ``stop``.
        local_host: Host of the services for clients that came by a Unix socket, which has none.
    """

    kind = "fleet"
    methods = frozenset(FLEET_METHODS)

    def __init__(
        self,
        options: FleetOptions,
        supervisor: Supervisor,
        *,
        token: str | None,
        stop: Callable[[], None],
        local_host: str = "127.0.0.1",
    ) -> None:
        super().__init__(token=token, metrics=_FleetMetrics(supervisor.describe))
        self._options = options
        self._supervisor = supervisor
        self._stop_fleet = stop
        self._local_host = local_host
        self._server_methods = handlers(self, methods_of_scope("server", FLEET_METHODS))
        self._client_methods = handlers(self, methods_of_scope("connection", FLEET_METHODS))

    def start(self) -> None:
        """Start the services."""
        self._supervisor.start()

    def close(self) -> None:
        """End the services; they finish their sessions first."""
        self._supervisor.stop()

    def describe(self) -> str:
        """Return one line for a person."""
        return f"a fleet of {self._options.num_services} simulator servers, engine {self._options.engine}"

    def info(self, session: Session | None = None) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` report of the fleet, and the id of the client's session."""
        info = {
            "server": "fleet",
            "version": __version__,
            "protocol_version": PROTOCOL_VERSION,
            "engine": self._options.engine,
            "num_services": self._supervisor.num_services,
            "services": self._supervisor.describe(),
        }
        return info if session is None else {**info, "session": session.id}

    def _make_session(self, number: int, peer: Peer, *, authenticated: bool) -> Session:
        return Session(number, peer, authenticated)

    def _hello(self, session: Session, params: Mapping[str, Any]) -> dict[str, Any]:
        reply = super()._hello(session, params)
        if params.get("redirect") is not True:
            return reply
        service = params.get("service")
        with self.request_in_hand(session):  # a fleet that drains redirects no client
            acquired = self._acquire(session, service if isinstance(service, str) else None)
        return {**reply, "redirect": acquired["address"], "service": acquired["service"]}

    def _execute(self, session: Session, request: Request) -> dict[str, Any]:
        if request.method in METHODS and request.method not in FLEET_METHODS:
            raise UnknownMethod(
                f"a fleet does not answer {request.method!r} itself: ask 'acquire' for the address of a "
                "simulator server, or say hello with 'redirect': True"
            )
        params = check_params(request, FLEET_METHODS)
        reply: dict[str, Any]
        if request.method in self._server_methods:
            reply = self._server_methods[request.method](**params)
        else:
            reply = self._client_methods[request.method](session, **params)
        return reply

    def _list_services(self) -> dict[str, Any]:
        return ok(num_services=self._supervisor.num_services, services=self._supervisor.describe())

    def _ping(self) -> dict[str, Any]:
        return ok()

    def _stats(self) -> dict[str, Any]:
        return ok(**self.stats())

    def _get_status(self, session: Session, **params: Any) -> dict[str, Any]:
        return ok(**self.status(session, **params))

    def _get_info(self, session: Session) -> dict[str, Any]:
        return ok(**self.info(session))

    def _acquire(self, session: Session, service: str | None) -> dict[str, Any]:
        host = session.peer.local_host or self._local_host
        if service is not None:
            return ok(address=self._supervisor.find(service, host=host), service=service)
        name, address = self._supervisor.place_client(host=host)
        return ok(address=address, service=name)

    def _scale(self, session: Session, num_services: int) -> dict[str, Any]:
        self._require_trust(session)
        self._supervisor.scale(num_services)
        return ok(num_services=num_services)

    def _stop(self, session: Session) -> dict[str, Any]:
        self._require_trust(session)
        logger.info("%s told the fleet to stop", session)
        self._stop_fleet()
        return ok()

    def _require_trust(self, session: Session) -> None:
        """Accept clients on the fleet's own machine, and those that sent the token."""
        if not self.needs_token and not is_loopback(session.peer.address):
            raise Unauthenticated(
                "without a token the fleet is changed from its own machine only, under the address "
                "localhost: start it with --token"
            )


class FleetServer(Runner[FleetService]):
    """Run services, and serve the address under which clients find them.

    Args:
        options: How many services, on what, and how they are watched.
        tcp: Where to listen; services listen on the same host.
        command: Command line of each service: see :class:`robowire.fleet.engine.ServiceSpec`.
        on_change: Called with :meth:`rows` when a service has another state, once a second at most.
        variation: What is different for the service of an index, as the supervisor takes it.
        listener: Listening socket to use, from :func:`robowire.serving.tcp.listen`; by default one is opened.

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
        variation: Variation = lambda index: ((), {}),
        listener: socket.socket | None = None,
    ) -> None:
        if tcp.unix_socket is not None and tcp.tls_cert is not None:
            raise ConfigurationError(
                "unix_socket of a fleet whose servers speak TLS cannot be used: its clients would need TLS "
                "for the servers and none for the fleet; leave one of the two out"
            )
        listener = listener or listen(tcp.host, tcp.port)
        try:
            engine: Engine = load("engine", options.engine, ENGINES)(options, host=tcp.host)
            self.supervisor = Supervisor(
                engine,
                options,
                command,
                drain_s=tcp.drain_s,
                token=tcp.token,
                tls=service_tls(tcp),
                on_change=on_change,
                variation=variation,
            )
            local_host = "127.0.0.1" if tcp.host in ("0.0.0.0", "::") else tcp.host
            service = FleetService(
                options, self.supervisor, token=tcp.token, stop=self.stop, local_host=local_host
            )
            frontends = [TcpServer(service, tcp, CallCodec(), listener)]
            if tcp.unix_socket is not None:
                frontends.append(UnixServer(service, tcp, CallCodec()))
        except BaseException:
            listener.close()
            raise
        super().__init__(service, frontends, drain_s=tcp.drain_s)

    def rows(self) -> list[dict[str, Any]]:
        """Return what ``list_services`` reports."""
        return self.supervisor.describe()


class _FleetMetrics(Metrics):
    """What every server counts, and the services.

    Args:
        rows: Returns what ``list_services`` reports.
    """

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
        for name, text in (("sessions", "Sessions in use."), ("max_sessions", "Capacity for sessions.")):
            lines += [f"# HELP robowire_fleet_{name} {text}", f"# TYPE robowire_fleet_{name} gauge"]
            lines.append(f"robowire_fleet_{name} {sum(row[name] for row in rows)}")
        return super().prometheus() + "\n".join(lines) + "\n"
