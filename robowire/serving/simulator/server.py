"""The simulator service behind the native wire: what most programs and tests start."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

from robowire.interfaces import TaskOptions
from robowire.registry import Entry
from robowire.serving.runner import Frontend, Runner
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.server import TcpServer
from robowire.serving.tcp.unix_server import UnixServer
from robowire.wire.packed_exchange import SimulatorCodec

__all__ = ["SimulatorServer", "SimulatorServerOptions"]


class SimulatorServer(Runner[SimulatorService]):
    """Serve simulators on a TCP port, and on the ports of further frontends.

    Args:
        simulators: What clients may select. They can't name anything else: a name leads to code.
        options: Where to listen, and the limits.
        task: How tasks are built where a client does not say.
        pythons: Interpreter of a simulator; one that is not named runs with the server's own.
        listener: Listening socket to use, from :func:`robowire.serving.tcp.listen`; by default one is opened.
        frontends: Functions that make a further frontend of the service, such as
            ``lambda service: HttpServer(service, HttpOptions(port=8080))``.

    Raises:
        ConfigurationError: An address can't be listened on, or an option is unusable.
    """

    def __init__(
        self,
        simulators: Mapping[str, Entry],
        options: SimulatorServerOptions,
        *,
        task: TaskOptions | None = None,
        pythons: Mapping[str, str] | None = None,
        listener: socket.socket | None = None,
        frontends: Sequence[Callable[[SimulatorService], Frontend]] = (),
    ) -> None:
        # First: a port in use must be found before anything takes time.
        listener = listener or listen(options.host, options.port)
        made: list[Frontend] = []
        service = None
        try:
            service = SimulatorService(simulators, options, task=task, pythons=pythons)
            made.append(TcpServer(service, options, SimulatorCodec(), listener))
            if options.unix_socket is not None:
                made.append(UnixServer(service, options, SimulatorCodec()))
            for make_frontend in frontends:
                made.append(make_frontend(service))
        except BaseException:
            listener.close()
            for frontend in made:
                frontend.close()
            if service is not None:
                service.close()
            raise
        super().__init__(service, made, drain_s=options.drain_s)
