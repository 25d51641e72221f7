"""The policy service behind the native wire: what most programs and tests start."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robowire.interfaces import Policy
from robowire.serving.policy.dispatcher import DispatchOptions
from robowire.serving.policy.service import PolicyService
from robowire.serving.runner import Frontend, Runner
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.server import TcpServer
from robowire.wire.codecs import PolicyCodec

__all__ = ["PolicyServer", "PolicyServerOptions"]


@dataclass(frozen=True)
class PolicyServerOptions(TcpOptions, DispatchOptions):
    """Every option of a policy server but the policy."""

    def __post_init__(self) -> None:
        TcpOptions.__post_init__(self)
        DispatchOptions.__post_init__(self)


class PolicyServer(Runner[PolicyService]):
    """Serve a policy on a TCP port, and on the ports of further frontends.

    Args:
        policy: Used by this server only.
        options: Where to listen, limits, batching.
        listener: Listening socket to use, from :func:`robowire.serving.tcp.listen`; by default one is opened.
        device: Device the policy runs on, for ``get_info``.
        model_name: Name of its checkpoint, not its path, for ``get_info``; ``None`` where it has none.
        frontends: Functions that make a further frontend of the service.

    Raises:
        ConfigurationError: An address can't be listened on.
    """

    def __init__(
        self,
        policy: Policy,
        options: PolicyServerOptions,
        *,
        listener: socket.socket | None = None,
        device: str = "cpu",
        model_name: str | None = None,
        frontends: Sequence[Callable[[PolicyService], Frontend]] = (),
    ) -> None:
        # First: a port in use must be found before anything takes time.
        listener = listener or listen(options.host, options.port)
        made: list[Frontend] = []
        service = None
        try:
            service = PolicyService(
                policy,
                options,
                token=options.token,
                device=device,
                model_name=model_name,
                max_payload=options.max_payload,
            )
            codec = PolicyCodec(policy.spec.camera_names, max_rows=options.max_waiting)
            made.append(TcpServer(service, options, codec, listener))
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
