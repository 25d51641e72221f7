"""HealthCheck checks of one service: requests over the wire, as its clients send them, with a deadline."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConfigurationError, RobowireError
from robowire.fleet.options import FleetOptions
from robowire.serving.tcp.options import TcpOptions
from robowire.wire.text_safety import printable

__all__ = ["HealthCheck", "Probe", "service_tls"]

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def service_tls(tcp: TcpOptions) -> ssl.SSLContext | None:
    """Return the TLS context with which a fleet connects to its own services; ``None`` without TLS.

    It trusts the services' own certificate and no other, whatever the host name: a certificate for the name
    that clients use is not valid for the loopback address that the fleet uses. Where services ask for client
    certificates (``tls_client_ca``), it sends the server's own: that CA must have signed it, and it must be
    valid for clients too (``extendedKeyUsage`` with ``clientAuth``, or none).

    Raises:
        ConfigurationError: The certificate or its key can't be read.
    """
    if tcp.tls_cert is None:
        return None
    try:
        found = _CERTIFICATE.search(Path(tcp.tls_cert).read_text(encoding="utf-8", errors="replace"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        # The certificate is trusted itself, with or without the CA that signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=found[0] if found else "")
        if tcp.tls_client_ca is not None:
            context.load_cert_chain(tcp.tls_cert, tcp.tls_key, password="")
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"tls_cert is {tcp.tls_cert!r}, which cannot be used: {exc}") from exc
    return context


@dataclass(frozen=True)
class HealthCheck:
    """Result of one health check.

    Attributes:
        failure: Why it did not answer; empty if it did, and only then the other fields count.
        sessions: Simulators in use, or clients if there are more.
        max_sessions: Limit of the service.
        memory_mb: Memory of the service and its simulators.
    """

    failure: str = ""
    sessions: int = 0
    max_sessions: int = 1
    memory_mb: float = 0.0


class Probe:
    """Check a service at intervals, in a thread, until :meth:`close`.

    Args:
        address: Host and port of the service.
        options: Interval and timeout.
        token: Token of the service, if it needs one.
        tls: TLS context from :func:`service_tls`; ``None`` for plain TCP.
        memory_mb: Returns the memory of the service.
        on_result: Called after each check, in that thread.
    """

    def __init__(
        self,
        address: tuple[str, int],
        options: FleetOptions,
        *,
        token: str | None,
        tls: ssl.SSLContext | None,
        memory_mb: Callable[[], float],
        on_result: Callable[[], None],
    ) -> None:
        self._options = options
        self._memory_mb = memory_mb
        self._on_result = on_result
        self._result: HealthCheck | None = None
        self._closing = threading.Event()
        self._client = SimulatorClient(
            *address,
            connect_timeout_s=options.health_timeout_s,
            timeout_s=options.health_timeout_s,
            token=token,
            tls=tls or False,
            reconnect_s=0,
        )
        self._thread = threading.Thread(target=self._run, name=f"probe of {address[1]}", daemon=True)
        self._thread.start()

    def take(self) -> HealthCheck | None:
        """Return the result of the last check, once."""
        result, self._result = self._result, None
        return result

    def close(self) -> None:
        """End the thread. It may have to wait for an answer, ``health_timeout_s`` at most."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._result = self._check()
            except RobowireError as exc:
                self._result = HealthCheck(failure=printable(exc))
            self._on_result()
            self._closing.wait(self._options.health_interval_s)
        self._client.disconnect()

    def _check(self) -> HealthCheck:
        self._client.connect()
        stats = self._client.stats()
        return HealthCheck(
            # This probe is one of its clients.
            sessions=max(stats["simulator_sessions"], stats["sessions_open"] - 1),
            max_sessions=stats["max_sessions"],
            memory_mb=self._memory_mb(),
        )
