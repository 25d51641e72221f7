"""The HTTP frontend: the simulator service for curl and browsers."""

from __future__ import annotations

from robowire.frontends.http.app import make_app
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.uvicorn_server import UvicornServer
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.tcp.listener import listen

__all__ = ["HttpServer"]


class HttpServer(UvicornServer):
    """The HTTP wire of a simulator service. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Where to listen.

    Raises:
        ConfigurationError: The address can't be listened on, or a TLS file can't be used.
    """

    def __init__(self, service: SimulatorService, options: HttpOptions) -> None:
        super().__init__(
            make_app(service, options.allowed_hosts),
            service.options,
            listen(options.host, options.port, flags="--http_"),
            name="http",
            lifespan=True,
        )

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"over HTTP, with a page to try it: {self.url}"
