"""What is looked at before a call is read, and how it is refused: typed errors with an HTTP status."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robowire.errors import Overloaded, RequestError, Unauthenticated
from robowire.serving.simulator.service import SimulatorServer

__all__ = ["STATUS", "LimitsMiddleware", "error_response"]

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

# They cost no thread, and are asked to know whether the server is overloaded.
_PROBES = ("/health", "/metrics")


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
    """Middleware: refuses calls past ``max_connections``, pages of other sites, and clients that do not read.

    Args:
        app: What is behind it.
        server: Whose limits hold.
    """

    def __init__(self, app: ASGIApp, server: SimulatorServer) -> None:
        self._app = app
        self._server = server
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        options = self._server.options
        refusal = _foreign_page(Headers(scope=scope))
        if refusal is None and self._in_hand >= options.max_connections:
            refusal = Overloaded(f"all {options.max_connections} calls are taken; try again later")
        if refusal is not None:
            self._server.metrics.error(refusal.error_type)
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
    """Return why a call is refused: a page of another site may not use its visitor's way to this server."""
    origin = headers.get("origin")
    try:
        if origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return None
    except ValueError:  # "http://[": no page is there
        pass
    return Unauthenticated("pages of another site may not ask this server")
