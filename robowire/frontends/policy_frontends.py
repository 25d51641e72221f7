"""The wires of a policy server beside the native one: their flags, and the table of what serves each.

Imports no frontend: each needs packages of an extra, and only those whose port is given are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robowire.frontends.frontend_table import check_ports, make_frontends
from robowire.registry import Entry
from robowire.serving.policy.server import PolicyServerOptions

if TYPE_CHECKING:
    from robowire.serving.policy.service import PolicyService
    from robowire.serving.runner import Frontend

__all__ = ["POLICY_FRONTENDS", "PolicyFrontendOptions", "make_policy_frontends"]

# By the flag of its port, ``--<name>_port``. Each is made by ``(service, options)``.
POLICY_FRONTENDS: dict[str, Entry] = {
    "act_zmq": Entry("robowire.frontends.act_zmq.frontend:ActZmqFrontend", extra="act-zmq"),
    "gr00t": Entry("robowire.frontends.gr00t.frontend:Gr00tFrontend", extra="gr00t"),
    "openpi": Entry("robowire.frontends.openpi.frontend:OpenpiFrontend", extra="openpi"),
    "vla_eval": Entry("robowire.frontends.vla_eval.frontend:VlaEvalFrontend", extra="vla-eval"),
    "vlastudio": Entry("robowire.frontends.vlastudio.frontend:VlastudioFrontend", extra="vlastudio"),
    "lerobot": Entry("robowire.frontends.lerobot.frontend:LerobotFrontend", extra="lerobot"),
}


@dataclass(frozen=True)
class PolicyFrontendOptions(PolicyServerOptions):
    """Options of a policy server with the ports of further wires; each is served when its port is given.

    Attributes:
        key_map: Which of a client's names is which camera and which part of the state, on wires whose
            observations have names: libero, droid, aloha, or a YAML file.
        act_zmq_port: Port of the ACT server's ZeroMQ wire (pickles); that server has 5555.
        gr00t_port: Port of GR00T's ZeroMQ wire (N1.5, N1.6 and N1.7); its own server has 5555.
        openpi_port: Port of openpi's wire (WebSocket); openpi's own server has 8000.
        vla_eval_port: Port of vla-eval's wire (WebSocket); its own servers have 8000.
        vlastudio_port: Port of VLAStudio's HTTP wire; 0 picks a free one.
        lerobot_port: Port of LeRobot's wire (gRPC), for its robot_client; its own server has 8080.
        http_allowed_hosts: Names under which clients may address ports over HTTP, in addition to their IP
            addresses, localhost and the name of the machine. Only checked where there is no token.
    """

    key_map: str | None = None
    act_zmq_port: int | None = None
    gr00t_port: int | None = None
    openpi_port: int | None = None
    vla_eval_port: int | None = None
    vlastudio_port: int | None = None
    lerobot_port: int | None = None
    http_allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ports(self, POLICY_FRONTENDS)


def make_policy_frontends(
    options: PolicyFrontendOptions,
) -> list[Callable[[PolicyService], Frontend]]:
    """Return what makes each frontend whose port is given, in the order of the table.

    Raises:
        MissingDependency: A package of its extra is not installed.
    """
    return make_frontends(options, POLICY_FRONTENDS)
