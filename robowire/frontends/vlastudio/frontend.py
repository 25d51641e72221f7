"""VLAStudio's HTTP wire of a policy service."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.uvicorn_server import UvicornServer
from robowire.frontends.vlastudio.app import make_app
from robowire.frontends.vlastudio.client_sessions import ClientSessions
from robowire.serving.policy.service import PolicyService
from robowire.serving.tcp.listener import listen

__all__ = ["VlastudioFrontend"]


class VlastudioFrontend(UvicornServer):
    """VLAStudio's HTTP wire. The port is bound when the object is made.

    Args:
        service: What answers the calls.
        options: Where to listen, and limits.

    Raises:
        ConfigurationError: The address can't be listened on, or a TLS file can't be used.
    """

    def __init__(self, service: PolicyService, options: PolicyFrontendOptions) -> None:
        self._sessions = ClientSessions(
            service, max_sessions=options.max_connections, timeout_s=options.session_timeout_s
        )
        # A call that waits for the policy holds a thread; no call waits for the thread of another one.
        self._workers = ThreadPoolExecutor(options.max_connections, thread_name_prefix="vlastudio")
        super().__init__(
            make_app(service, self._sessions, options, self._workers),
            options,
            listen(options.host, options.vlastudio_port or 0, flags="--vlastudio_"),
            name="vlastudio",
            lifespan=False,
        )

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"for VLAStudio: {self.url}"

    def close(self) -> None:
        """End the thread, free the port and close every session."""
        super().close()
        self._workers.shutdown()
        self._sessions.close()
