"""Limits of the HTTP frontend: connections, seconds for a request's head, requests at one time, slow readers.

What a request is refused with is a typed error of the wire with an HTTP status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from robowire.errors import Overloaded, RequestError, Unauthenticated
from robowire.serving.simulator.service import SimulatorService

__all__ = ["STATUS", "LimitsMiddleware", "error_response", "limited_protocol"]

STATUS: Mapping[str, int] = {
    "unknown_method": 404,
    "invalid_params": 422,
    "spec_mismatch": 422,
    "unauthenticated": 401,
    "no_simulator_selected": 409,
    "unknown_simulator": 404,
    "simulator_already_selected": 409,
    "task_not_found": 404,
    "no_task_loaded": 409,
    "not_reset": 409,
    "backend_error": 502,
    "snapshot_not_found": 404,
    "snapshot_mismatch": 409,
    "session_not_found": 404,
    "overloaded": 503,
    "shutting_down": 503,
    "internal_error": 500,
}

# They cost no thread, and are requested to know whether the server is overloaded.
_PROBES = ("/health", "/metrics")

# The connection whose bytes are being parsed; the tasks of its requests inherit it.
_connection: ContextVar[_LimitedConnection] = ContextVar("connection")


def error_response(
    error: RequestError | str, *, error_type: str | None = None, status: int | None = None
) -> Response:
    """Return the typed error of the wire, with the HTTP status of its type."""
    kind = error_type or (error.error_type if isinstance(error, RequestError) else "internal_error")
    status = status or STATUS.get(kind, 500)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {})
    content = {"status": "error", "error_type": kind, "message": str(error)}
    return JSONResponse(content, status_code=status, headers=headers)


class LimitsMiddleware:
    """Refuses requests past ``max_connections``, pages of other sites, and clients that do not read.

    Args:
        app: The application behind it.
        service: Whose limits hold.
    """

    def __init__(self, app: ASGIApp, service: SimulatorService) -> None:
        self._app = app
        self._service = service
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = _connection.get(None)
        if connection is not None:
            connection.request_began()
        try:
            await self._serve(scope, receive, send)
        finally:
            if connection is not None:
                connection.request_ended()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        options = self._service.options
        refusal = _foreign_page(Headers(scope=scope))
        if refusal is None and self._in_hand >= options.max_connections:
            refusal = Overloaded(f"all {options.max_connections} calls are taken; try again later")
        if refusal is not None:
            self._service.metrics.error(refusal.error_type)
            await error_response(refusal)(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), options.send_timeout_s)

        self._in_hand += 1
        try:
            await self._app(scope, receive, send_in_time)
        finally:
            self._in_hand -= 1


def _foreign_page(headers: Headers) -> RequestError | None:
    """Return why a request of another site's page is refused: it would use its visitor's access."""
    origin = headers.get("origin")
    try:
        if origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return None
    except ValueError:  # "http://[" is the address of no page
        pass
    return Unauthenticated("pages of another site may not ask this server")


class _LimitedConnection(asyncio.Protocol):
    """A connection of uvicorn's, which ends where no request begins or goes on for too long.

    uvicorn limits how long an idle connection is kept, but neither the seconds that a head takes nor those of
    a body that was answered before it was complete; and it counts requests, not connections.

    Args:
        protocol: uvicorn's protocol of this connection.
        head_timeout_s: Seconds without a request in hand.
        max_connections: Connections at one time; the next one is closed at once.
        open_connections: Those that are open, of all protocols of one server.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        *,
        head_timeout_s: float,
        max_connections: int,
        open_connections: set[_LimitedConnection],
    ) -> None:
        self._protocol = protocol
        self._head_timeout_s = head_timeout_s
        self._max_connections = max_connections
        self._open = open_connections
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)
        self._protocol.connection_made(transport)
        if len(self._open) > self._max_connections:
            self._transport.abort()
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        token = _connection.set(self)
        try:
            self._protocol.data_received(data)
        finally:
            _connection.reset(token)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._open.discard(self)
        self._transport = None
        self._protocol.connection_lost(exc)

    def request_began(self) -> None:
        """Note that a request's head is complete."""
        self._requests += 1
        self._stop_timer()

    def request_ended(self) -> None:
        """Note that a request was answered."""
        self._requests -= 1
        if not self._requests and self._transport is not None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._head_timeout_s, self._time_is_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_up(self) -> None:
        if self._transport is not None:
            self._transport.close()


def limited_protocol(head_timeout_s: float, max_connections: int) -> Any:
    """Return what makes the protocol of each connection, for uvicorn's ``http`` option.

    Args:
        head_timeout_s: Seconds for a request's head, and for the rest of a body that was answered already.
        max_connections: Connections at one time.
    """
    open_connections: set[_LimitedConnection] = set()

    def make(**arguments: Any) -> asyncio.Protocol:
        return _LimitedConnection(
            H11Protocol(**arguments),
            head_timeout_s=head_timeout_s,
            max_connections=max_connections,
            open_connections=open_connections,
        )

    return make
