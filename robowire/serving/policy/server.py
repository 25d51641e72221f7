"""The policy service behind the native wire: what most programs and tests start."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from robowire.interfaces import Policy
from robowire.serving.policy.dispatcher import DispatchOptions
from robowire.serving.policy.service import PolicyService
from robowire.serving.runner import Runner
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
    """Serve a policy on a TCP port.

    Args:
        policy: Used by this server only.
        options: Where to listen, limits, batching.
        listener: Listening socket to use, from :func:`robowire.serving.tcp.listen`; by default one is opened.
        device: Device the policy runs on, for ``get_info``.
        model_name: Name of its checkpoint, not its path, for ``get_info``; ``None`` where it has none.

    Raises:
        ConfigurationError: The address can't be listened on.
    """

    def __init__(
        self,
        policy: Policy,
        options: PolicyServerOptions,
        *,
        listener: socket.socket | None = None,
        device: str = "cpu",
        model_name: str | None = None,
    ) -> None:
        # First: a port in use must be found before anything takes time.
        listener = listener or listen(options.host, options.port)
        try:
            service = PolicyService(
                policy,
                options,
                token=options.token,
                device=device,
                model_name=model_name,
                max_payload=options.max_payload,
            )
        except BaseException:
            listener.close()
            raise
        codec = PolicyCodec(policy.spec.camera_names, max_rows=options.max_waiting)
        try:
            tcp = TcpServer(service, options, codec, listener)
        except BaseException:
            service.close()
            raise
        super().__init__(service, [tcp], drain_s=options.drain_s)
