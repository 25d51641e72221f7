"""The HTTP frontend: the simulator service for curl and browsers."""

from __future__ import annotations

from robowire.errors import ConfigurationError
from robowire.frontends.http.app import make_app
from robowire.frontends.http.default_session import DefaultSession
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.simulator_frontends import SimulatorFrontendOptions
from robowire.frontends.uvicorn_server import UvicornServer
from robowire.registry import family_and_task, nearest
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.tcp.listener import listen

__all__ = ["HttpServer", "http_frontend"]


def http_frontend(service: SimulatorService, options: SimulatorFrontendOptions) -> HttpServer:
    """Return the HTTP frontend of a simulator server with these options; ``http_port`` is given."""
    return HttpServer(
        service,
        HttpOptions(
            host=options.http_host,
            port=options.http_port or 0,
            allowed_hosts=options.http_allowed_hosts,
            simulator=options.simulator,
            task=options.task,
        ),
    )


class HttpServer(UvicornServer):
    """The HTTP wire of a simulator service. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Where to listen.

    Raises:
        ConfigurationError: The address can't be listened on, or a TLS file can't be used.
    """

    def __init__(self, service: SimulatorService, options: HttpOptions) -> None:
        default_session = None
        if options.simulator is not None:
            simulator, task = _known_task(service, options.simulator, options.task)
            default_session = DefaultSession(service, simulator, task)
        super().__init__(
            make_app(service, options.allowed_hosts, default_session),
            service.options,
            listen(options.host, options.port, flags="--http_"),
            name="http",
            lifespan=True,
        )

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"over HTTP, with a page to try it: {self.url}"


def _known_task(service: SimulatorService, simulator: str, task: str | None) -> tuple[str, str | None]:
    """Return a simulator that the service offers, and its task, which may be named with the simulator.

    Raises:
        ConfigurationError: It is not offered.
    """
    known = service.simulators
    name, named_task = family_and_task(simulator, known)
    if name not in known:
        raise ConfigurationError(
            f"no simulator is called {name!r}.{nearest(name, known)} Known: {', '.join(sorted(known))}"
        )
    return name, task or named_task
