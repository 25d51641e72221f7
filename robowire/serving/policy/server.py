"""The policy service behind the native wire: what most programs and tests start."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robowire.errors import ConfigurationError
from robowire.interfaces import Policy
from robowire.serving.policy.dispatcher import DispatchOptions
from robowire.serving.policy.service import PolicyService
from robowire.serving.runner import Frontend, Runner
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.server import TcpServer
from robowire.serving.tcp.unix_server import UnixServer
from robowire.wire.codecs import PolicyCodec

__all__ = ["PolicyServer", "PolicyServerOptions"]


@dataclass(frozen=True)
class PolicyServerOptions(TcpOptions, DispatchOptions):
    """Every option of a policy server but the policy.

    Attributes:
        float_images: Images of floats on the native wire: refuse, or convert from 0..1 to 0..255.
        act_reply: Answer to the ACT dialect of a client without hello: chunk, a list of MetaAction, or
            action, {"status": "OK", "action": ...}, the first one; with --temporal_agg the average.
    """

    # Converted, a camera whose driver gives 0..255 as floats would look white to the policy; an error shows
    # it at the first request.
    float_images: str = "refuse"
    act_reply: str = "chunk"

    def __post_init__(self) -> None:
        TcpOptions.__post_init__(self)
        DispatchOptions.__post_init__(self)
        for name, choices in (("float_images", ("refuse", "convert")), ("act_reply", ("chunk", "action"))):
            if getattr(self, name) not in choices:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}, expected {' or '.join(choices)}"
                )


class PolicyServer(Runner[PolicyService]):
    """Serve a policy on a TCP port, and on the ports of further frontends.

    Args:
        policy: Used by this server only.
        options: Where to listen, limits, batching.
        listener: Listening socket to use, from :func:`robowire.serving.tcp.listen`; by default one is opened.
        device: Device the policy runs on, for ``get_info``.
        model_name: Name of its checkpoint, not its path, for ``get_info``; ``None`` where it has none.
        checkpoint_format: What wrote it, in words, for ``get_info``; ``None`` where nobody can say.
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
        checkpoint_format: str | None = None,
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
                checkpoint_format=checkpoint_format,
                max_payload=options.max_payload,
            )
            codec = PolicyCodec(
                policy.spec.camera_names,
                max_rows=options.max_waiting,
                float_images=options.float_images,
                strided_images=service.strided_images,
                act_reply=options.act_reply,
                max_payload=options.max_payload,
            )
            made.append(TcpServer(service, options, codec, listener))
            if options.unix_socket is not None:
                made.append(UnixServer(service, options, codec))
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
