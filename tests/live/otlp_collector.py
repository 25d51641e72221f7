"""A collector of traces: takes OTLP over HTTP as a real one does, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATIENCE_S = 20.0


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came: ids are hexadecimal, times nanoseconds of Unix time."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    started: int
    ended: int
    links: tuple[str, ...]  # ids of spans
    failed: bool
    attributes: dict[str, Any]


class Collector(ThreadingHTTPServer):
    """Listens on a free port of the loopback.

    Attributes:
        spans: Those that came so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[ReceivedSpan] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """Its address, for ``--otlp_endpoint``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def named(self, name: str, service: str = "") -> list[ReceivedSpan]:
        """Return the spans of a name, of one service."""
        return [span for span in self.spans if span.name == name and service in ("", span.service)]

    def only(self, name: str, service: str = "") -> ReceivedSpan:
        """Return the one span of a name."""
        (span,) = self.named(name, service)
        return span

    def inside(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """Return the spans whose parent is a span, as they began."""
        return sorted(
            (inner for inner in self.spans if inner.parent == span.id), key=lambda inner: inner.started
        )

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Return when it holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, [(span.service, span.name) for span in self.spans]
            time.sleep(0.01)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces", self.path
        assert self.headers["Content-Type"] == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.server.spans += [
                    ReceivedSpan(
                        service,
                        span.name,
                        span.kind,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        tuple(link.span_id.hex() for link in span.links),
                        span.status.code == 2,
                        _attributes(span.attributes),
                    )
                    for span in scope.spans
                ]
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
