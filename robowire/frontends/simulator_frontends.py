"""The wires of a simulator server beside the native one: their flags, and the table of what serves each.

Imports no frontend: each needs packages of an extra, and only those whose port is given are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robowire.errors import ConfigurationError
from robowire.frontends.frontend_table import check_ports, make_frontends
from robowire.registry import Entry
from robowire.serving.simulator.server import SimulatorServerOptions

if TYPE_CHECKING:
    from robowire.serving.runner import Frontend
    from robowire.serving.simulator.service import SimulatorService

__all__ = ["SIMULATOR_FRONTENDS", "SimulatorFrontendOptions", "make_simulator_frontends"]

# By the flag of its port, ``--<name>_port``. Each is made by ``(service, options)``.
SIMULATOR_FRONTENDS: dict[str, Entry] = {
    "http": Entry("robowire.frontends.http.server:http_frontend", extra="http"),
    "center": Entry("robowire.frontends.center.frontend:CenterFrontend", extra="center"),
}


@dataclass(frozen=True)
class SimulatorFrontendOptions(SimulatorServerOptions):
    """Options of a simulator server with the ports of further wires; each is served when its port is given.

    Attributes:
        http_port: Port of the HTTP frontend, with a page to try it; none by default.
        http_host: Address that the HTTP frontend listens on; 0.0.0.0 for every one.
        http_allowed_hosts: Names under which browsers may address the HTTP frontend, where there is no token.
        center_port: Port for clients of simulator_inference_center; none by default. SIM_BIND_ADDRESS names
            it too, and SIM_ROBOSUITE_*, SIM_LIBERO_* say how its tasks are built.
        simulator: Simulator of HTTP requests that name no session: they share one environment, as clients of
            Bench2Drive's services do. May be module:function of your own, which is offered then too.
        task: Task of that environment.
    """

    http_port: int | None = None
    # A browser on this machine; every page it shows could reach a port that is open to the network.
    http_host: str = "127.0.0.1"
    http_allowed_hosts: tuple[str, ...] = ()
    center_port: int | None = None
    simulator: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ports(self, SIMULATOR_FRONTENDS)
        if self.task is not None and self.simulator is None:
            raise ConfigurationError("task is the task of a simulator: name it too, by --simulator")


def make_simulator_frontends(
    options: SimulatorFrontendOptions,
) -> list[Callable[[SimulatorService], Frontend]]:
    """Return what makes each frontend whose port is given, in the order of the table.

    Raises:
        MissingDependency: A package of its extra is not installed.
    """
    return make_frontends(options, SIMULATOR_FRONTENDS)
