"""Spans of requests, on both sides of a connection, by OpenTelemetry's API.

Nothing of it is imported before a :class:`Tracing` is made. A process has at most one that is active, as
OpenTelemetry has one provider: clients and services take it when they are made, and without one they make no
call into this module. Runs on Python 3.8.

Moments are seconds of ``time.monotonic``, which on one machine is the same clock in all processes; so a
worker process without OpenTelemetry says when it began and ended, and its server makes the span.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

from robowire.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, TracerProvider

__all__ = ["ClientSpan", "RequestSpan", "Tracing", "activate", "active_tracing", "client_span", "work"]

# The exception to the rule that no module has state: clients are made in many places, some of them in others'
# programs, and as OpenTelemetry's own provider this is set once, by the program.
_active: Tracing | None = None


def active_tracing() -> Tracing | None:
    """Return the process's tracing; ``None`` for none."""
    return _active


def activate(tracing: Tracing | None) -> None:
    """Let clients and services that are made from now on use this tracing; ``None`` for none."""
    global _active
    _active = tracing


@contextmanager
def work(name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """Make a span of what this thread does in the block, such as an episode; requests are inside it.

    Nothing is done where no tracing is active.

    Args:
        name: What is done.
        **attributes: Of the span, named ``robowire.<name>`` there.

    Yields:
        Where the block may put further attributes.
    """
    further: dict[str, Any] = {}
    tracing = _active
    if tracing is None:
        yield further
        return
    with tracing.span(name, _named(attributes)) as span:
        yield further
        span.set_attributes(_named(further))


@contextmanager
def client_span(name: str, address: str) -> Iterator[ClientSpan | None]:
    """Make a span of a request, as :meth:`Tracing.client_span`; ``None`` where no tracing is active."""
    tracing = _active
    if tracing is None:
        yield None
    else:
        with tracing.client_span(name, address) as span:
            yield span


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"robowire.{name}": value for name, value in attributes.items() if value is not None}


class Tracing:
    """Makes spans with one provider of OpenTelemetry.

    Args:
        provider: Where spans go; OpenTelemetry's SDK has one. It is not made the process's global provider.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._context = context
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("robowire", __version__)
        self._request_key = context.create_key("robowire request")

    # -- clients ---------------------------------------------------------------------------------------------

    @contextmanager
    def client_span(self, name: str, address: str) -> Iterator[ClientSpan]:
        """Return the span of one request that a client sends; it ends with the block.

        Args:
            name: Name of the method.
            address: Of the server, ``host:port``.
        """
        span = self._tracer.start_span(
            name, kind=self._trace.SpanKind.CLIENT, attributes={"robowire.server": address}
        )
        client = ClientSpan(self, span)
        try:
            yield client
        except BaseException as exc:
            client.fail(error_code(exc), str(exc))
            raise
        finally:
            span.end()

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
        """Make a span of this process's own work, such as an episode; spans made in the block are inside."""
        with self._tracer.start_as_current_span(name, attributes=attributes) as span:
            yield span

    def headers(self, span: Span | None = None) -> dict[str, str]:
        """Return ``traceparent`` and ``tracestate``, as W3C's Trace Context names them.

        Args:
            span: Whose; that of the running code by default. Empty where there is none.
        """
        carrier: dict[str, str] = {}
        context = None if span is None else self._trace.set_span_in_context(span)
        self._propagator.inject(carrier, context=context)
        return carrier

    # -- servers ---------------------------------------------------------------------------------------------

    def request(
        self, name: str, headers: Mapping[str, str], *, receive_s: float = 0.0, **attributes: Any
    ) -> RequestSpan:
        """Return the span of a request that was received just now.

        Args:
            name: Name of the method, as far as it is known.
            headers: ``traceparent`` and ``tracestate`` of the client; what cannot be read is ignored, and the
                request begins a trace.
            receive_s: Seconds from the first byte of the request to its last.
            **attributes: Of the span.
        """
        received = time.monotonic()
        offset_ns = time.time_ns() - int(received * 1e9)
        parent = self._propagator.extract(headers, context=self._context.Context())
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=int((received - receive_s) * 1e9) + offset_ns,
        )
        request = RequestSpan(self, span, received, offset_ns)
        if receive_s:
            request.phase("receive", received - receive_s, received)
        return request

    def current_request(self) -> RequestSpan | None:
        """Return the request that this thread answers; ``None`` for none that is traced."""
        request: RequestSpan | None = self._context.get_value(self._request_key)  # type: ignore[assignment]
        return request

    @contextmanager
    def inference(self, rows: Sequence[tuple[RequestSpan | None, float]]) -> Iterator[None]:
        """Make the spans of a batch, which the policy works on in the block.

        A batch of one request is a span of that request. Others have a trace of their own, which links to the
        requests, and each of these has a span that links to the batch.

        Args:
            rows: The request of each row, and since when the row waited.
        """
        waited: dict[int, tuple[RequestSpan, float]] = {}
        for request, since in rows:
            if request is not None and request.recording:
                waited.setdefault(id(request), (request, since))
        started = time.monotonic()
        for request, since in waited.values():
            request.phase("wait", since, started)
        if not waited:
            yield
            return
        requests = [request for request, _ in waited.values()]
        size = {"robowire.batch_size": len(rows)}
        if len(requests) == 1:
            with requests[0].child("infer", size):
                yield
            return
        links = [self._trace.Link(request.span.get_span_context()) for request in requests]
        offset_ns = requests[0].offset_ns
        span = self._start(
            "batch", self._context.Context(), int(started * 1e9) + offset_ns, attributes=size, links=links
        )
        batch = RequestSpan(self, span, started, offset_ns)
        try:
            with batch.current():
                yield
        except BaseException as exc:
            batch.fail(error_code(exc), str(exc))
            raise
        finally:
            ended = time.monotonic()
            batch.end(ended)
            link = [self._trace.Link(span.get_span_context())]
            for request in requests:
                request.phase("infer", started, ended, size, links=link)

    def worked(self, began: float, executed: float, method: str, pid: int) -> None:
        """Make the span of what a worker process did for the request of this thread.

        Args:
            began: When the call came there.
            executed: When it was executed.
            method: What was called.
            pid: Number of the process.
        """
        request = self.current_request()
        if request is not None:
            request.phase(f"{method} in worker", began, executed, {"process.pid": pid})

    def _fail(self, span: Span, code: str, message: str) -> None:
        span.set_attribute("error.type", code)
        span.set_status(self._trace.StatusCode.ERROR, message[:500])

    def _start(
        self,
        name: str,
        context: Context,
        start_ns: int,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] = (),
    ) -> Span:
        return self._tracer.start_span(
            name, context=context, attributes=attributes, links=links, start_time=start_ns
        )


class ClientSpan:
    """The span of one request that a client sends.

    Args:
        tracing: What made it.
        span: OpenTelemetry's.
    """

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    def headers(self) -> dict[str, str]:
        """Return what the server is told: ``traceparent``, and ``tracestate`` where there is one."""
        return self._tracing.headers(self._span)

    def fail(self, code: str, message: str) -> None:
        """Mark the request as failed."""
        self._tracing._fail(self._span, code, message)


class RequestSpan:
    """The span of one request that a server answers, and the way to spans of its phases.

    Args:
        tracing: What made it.
        span: OpenTelemetry's.
        received: When the request was complete.
        offset_ns: What the time of day is ahead of ``time.monotonic``, in nanoseconds.

    Attributes:
        span: As given.
        received: As given.
        offset_ns: As given.
        recording: Whether the sampler took it; else its phases are no spans.
    """

    def __init__(self, tracing: Tracing, span: Span, received: float, offset_ns: int) -> None:
        self.span = span
        self.received = received
        self.offset_ns = offset_ns
        self.recording = span.is_recording()
        self._tracing = tracing
        self._inside = tracing._trace.set_span_in_context(span, tracing._context.Context())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let spans that are made in the block, by this thread, be inside this one."""
        tracing = self._tracing
        context = tracing._context.set_value(tracing._request_key, self, self._inside)
        token = tracing._context.attach(context)
        try:
            yield
        finally:
            tracing._context.detach(token)

    def phase(
        self,
        name: str,
        started: float,
        ended: float,
        attributes: Mapping[str, Any] | None = None,
        *,
        links: Sequence[Link] = (),
    ) -> None:
        """Add a span of what is over.

        Args:
            name: What was done.
            started: When it began.
            ended: When it ended.
            attributes: Of the span.
            links: To other spans.
        """
        if not self.recording:
            return
        tracing, offset = self._tracing, self.offset_ns
        span = tracing._start(name, self._inside, int(started * 1e9) + offset, attributes, links)
        span.end(int(max(ended, started) * 1e9) + offset)

    @contextmanager
    def child(self, name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[RequestSpan]:
        """Make a span of what is done in the block; spans that this thread makes there are inside it."""
        if not self.recording:
            with self.current():
                yield self
            return
        tracing, offset = self._tracing, self.offset_ns
        span = tracing._start(name, self._inside, int(time.monotonic() * 1e9) + offset, attributes)
        inner = RequestSpan(tracing, span, self.received, offset)
        try:
            with inner.current():
                yield inner
        except BaseException as exc:
            inner.fail(error_code(exc), str(exc))
            raise
        finally:
            span.end(int(time.monotonic() * 1e9) + offset)

    def fail(self, code: str, message: str) -> None:
        """Mark it as failed."""
        self._tracing._fail(self.span, code, message)

    def end(self, ended: float, **attributes: Any) -> None:
        """End it, with further attributes."""
        self.span.set_attributes(attributes)
        self.span.end(int(ended * 1e9) + self.offset_ns)


def error_code(error: BaseException) -> str:
    """Return an error's code on the wire, or the name of its class."""
    return str(getattr(error, "error_type", "") or type(error).__name__)
