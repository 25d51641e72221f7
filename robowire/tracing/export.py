"""Where spans go: to a collector by OTLP, or to standard error. By OpenTelemetry's SDK."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator
from urllib.parse import urlsplit

from robowire.errors import ConfigurationError, MissingDependency
from robowire.tracing.spans import Tracing, activate

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["EXPORTERS", "check_endpoint", "traced"]

EXPORTERS = ("none", "otlp", "console")

_MISSING = "traces need OpenTelemetry: pip install 'robowire[otel]', in a checkout pip install --no-deps -r "
_MISSING += "requirements/otel.lock.txt"

# How long the end of a program waits until its last spans are sent.
_END_S = 2.0

# Where a collector takes OTLP over HTTP, below its address.
_PATH = "/v1/traces"


@contextmanager
def traced(exporter: str, *, service: str, endpoint: str | None = None) -> Iterator[None]:
    """Let clients and services that are made in the block make spans; send what is left at its end.

    OpenTelemetry's variables decide what is not said here: ``OTEL_EXPORTER_OTLP_ENDPOINT`` and ``_HEADERS``,
    ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SDK_DISABLED``, ...

    Args:
        exporter: ``"none"``, which does nothing, ``"otlp"`` or ``"console"``.
        service: Name of this program in the traces.
        endpoint: Address of a collector, such as ``http://localhost:4318``.

    Raises:
        MissingDependency: OpenTelemetry's SDK or exporter is not installed.
        ConfigurationError: The endpoint is no URL.
    """
    if exporter == "none":
        yield
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        chosen = _exporter(exporter, endpoint)
    except ModuleNotFoundError as exc:
        raise MissingDependency(f"{exc.name} is not installed: {_MISSING}") from exc
    # An attribute that is given here would win over the variables.
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(chosen))
    activate(Tracing(provider))
    try:
        yield
    finally:
        activate(None)
        # The exporter would try for 10 s to reach a collector that is away.
        give_up = threading.Timer(_END_S, chosen.shutdown)
        give_up.start()
        provider.shutdown()
        give_up.cancel()
        give_up.join()


def check_endpoint(endpoint: str) -> None:
    """Accept the address of a collector.

    Raises:
        ConfigurationError: It is no URL of HTTP.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"otlp_endpoint is {endpoint!r}, expected the address of a collector, such as "
            "http://localhost:4318"
        )


def _exporter(name: str, endpoint: str | None) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)  # standard output has a program's results
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        grpc_exporter: SpanExporter = GrpcExporter(endpoint=endpoint)
        return grpc_exporter
    if protocol != "http/protobuf":
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, expected http/protobuf or grpc"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    if endpoint is not None:
        check_endpoint(endpoint)
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + _PATH
    return OTLPSpanExporter(endpoint=endpoint)
