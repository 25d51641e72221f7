"""Phases of one HTTP request, for metrics and traces: measured around the application, named inside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robowire.serving.service import Service
from robowire.tracing.spans import RequestSpan

__all__ = ["HttpPhases", "PhasesMiddleware", "current_phases"]

# Of the request that a task answers; threads that it starts by AnyIO inherit it.
_current: ContextVar[HttpPhases | None] = ContextVar("phases", default=None)


def current_phases() -> HttpPhases | None:
    """Return the phases of the request that is being answered; ``None`` for none."""
    return _current.get()


class HttpPhases:
    """What one request took.

    Args:
        service: What answers it.
        frontend: Name of the wire.
        headers: Of the request.

    Attributes:
        method: Method of the service that was called last; ``""`` for none.
        headers: As given.
        span: Its span, where requests are traced.
    """

    def __init__(self, service: Service[Any], frontend: str, headers: Headers) -> None:
        self.method = ""
        self.headers = headers
        self.span: RequestSpan | None = None
        self._service = service
        self._frontend = frontend
        self._began = self._received = time.monotonic()
        self._send_began = self._began
        self._seconds = {"decode": 0.0, "encode": 0.0}
        self._executed: list[tuple[str, float]] = []

    @property
    def receive_s(self) -> float:
        """Seconds from the request's head to the end of its body; 0 where nobody read it."""
        return self._received - self._began

    def received(self) -> None:
        """Note that the body is complete."""
        self._received = time.monotonic()
        if self.span is not None:
            self.span.received = self._received
            self.span.phase("receive", self._began, self._received)

    def decoding(self) -> AbstractContextManager[None]:
        """Measure how long the block reads the body."""
        return self._measured("decode")

    def encoding(self) -> AbstractContextManager[None]:
        """Measure how long the block writes the reply."""
        return self._measured("encode")

    @contextmanager
    def _measured(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self._seconds[phase] += ended - began
        if self.span is not None:
            self.span.phase(phase, began, ended)

    @contextmanager
    def executing(self, method: str) -> Iterator[None]:
        """Measure how long the service's method takes in the block."""
        self.method = method
        began = time.monotonic()
        if self.span is None:
            yield
        else:
            with self.span.child(f"execute {method}"):
                yield
        self._executed.append((method, time.monotonic() - began))

    def answered(self) -> None:
        """Count the methods that the request called; the last one has the times of the body and the reply."""
        metrics, frontend = self._service.metrics, self._frontend
        for method, seconds in self._executed[:-1]:
            metrics.answered(frontend, method, "ok", (seconds,))
            metrics.phase(frontend, method, "execute", seconds)
        for method, seconds in self._executed[-1:]:
            metrics.answered(
                frontend, method, "ok", (self._seconds["decode"], seconds, self._seconds["encode"])
            )
        self._executed.clear()

    def failed(self, code: str, message: str) -> None:
        """Count a request that failed, where its method is known."""
        if self.method:
            self.answered()
            seconds = time.monotonic() - self._received
            self._service.metrics.answered(self._frontend, self.method, code, (seconds,))
        if self.span is not None:
            self.span.fail(code, message)

    def sending(self) -> None:
        """Note that the reply begins to be sent."""
        self._send_began = time.monotonic()

    def sent(self) -> None:
        """Note that the reply was sent."""
        ended = time.monotonic()
        if self.method:
            self._service.metrics.phase(self._frontend, self.method, "send", ended - self._send_began)
        if self.span is not None:
            self.span.phase("send", self._send_began, ended)


class PhasesMiddleware:
    """Measures how long requests are received and replies are sent, and makes the spans of requests.

    Args:
        app: Application behind it.
        service: What answers.
        frontend: Name of the wire.
        paths: Requests that are not measured: health checks and pages.
    """

    def __init__(
        self, app: ASGIApp, service: Service[Any], *, frontend: str, paths: tuple[str, ...] = ()
    ) -> None:
        self._app = app
        self._service = service
        self._frontend = frontend
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in self._paths:
            await self._app(scope, receive, send)
            return
        phases = HttpPhases(self._service, self._frontend, Headers(scope=scope))

        async def timed_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                phases.received()
            return message

        async def timed_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                phases.sending()
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                phases.sent()

        token = _current.set(phases)
        try:
            if self._service.tracing is None:
                await self._app(scope, timed_receive, timed_send)
            else:
                await self._traced(phases, scope, timed_receive, timed_send)
        finally:
            _current.reset(token)

    async def _traced(self, phases: HttpPhases, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._service.tracing is not None
        client = scope.get("client")
        phases.span = span = self._service.tracing.request(
            f"{scope['method']} {scope['path'][:100]}",
            phases.headers,
            **{
                "robowire.server": self._service.kind,
                "robowire.frontend": self._frontend,
                "client.address": "" if client is None else client[0],
                "http.request.method": scope["method"],
                "url.path": scope["path"][:100],
            },
        )
        try:
            with span.current():
                await self._app(scope, receive, send)
        finally:
            if phases.method:
                span.span.update_name(phases.method)
            span.end(time.monotonic())
