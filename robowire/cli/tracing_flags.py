"""Flags of programs whose requests can be traced. Runs on Python 3.8."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ContextManager

from robowire.cli.parser import setting
from robowire.tracing.export import EXPORTERS, traced

__all__ = ["TracingFlags"]


@dataclass(frozen=True)
class TracingFlags:
    """Traces of requests.

    Attributes:
        otel: Where OpenTelemetry traces of requests go: none, otlp for a collector, or console for standard
            error.
        otlp_endpoint: Address of the collector, such as http://localhost:4318; implies --otel otlp.
    """

    otel: str = field(default="none", metadata=setting(choices=EXPORTERS))
    otlp_endpoint: str | None = None

    def traced(self, service: str) -> ContextManager[None]:
        """Return the context in which requests are traced as the flags say.

        Args:
            service: Name of this program in the traces.

        Raises:
            MissingDependency: OpenTelemetry is not installed.
            ConfigurationError: The endpoint is no URL.
        """
        exporter = "otlp" if self.otlp_endpoint is not None and self.otel == "none" else self.otel
        return traced(exporter, service=service, endpoint=self.otlp_endpoint)
