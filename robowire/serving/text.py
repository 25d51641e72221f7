"""What a person with ``nc`` and a probe with HTTP are told: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from robowire.errors import RequestError
from robowire.serving.metrics import Metrics
from robowire.serving.sessions import Session

__all__ = ["answer_line", "http_response"]

_HELP = "PING, INFO, STATS, HELP, QUIT: one line each; GET /healthz and GET /metrics: HTTP"


def answer_line(
    line: str, session: Session, metrics: Metrics, info: Callable[[], Mapping[str, Any]]
) -> bytes:
    """Return the one line that answers ``PING``, ``INFO``, ``STATS``, ``HELP`` or ``QUIT``.

    Small letters will do. ``INFO`` and ``STATS`` are answered by JSON, and need a session that is admitted:
    text has no way to show a token.
    """
    command = line.strip().upper()
    if command == "PING":
        answer = "PONG"
    elif command == "HELP":
        answer = _HELP
    elif command == "QUIT":
        answer = "BYE"
    elif command in ("INFO", "STATS"):
        try:
            session.admit()
        except RequestError as error:
            metrics.error(error.error_type)
            answer = f"ERROR {error.error_type}: {error}"
        else:
            answer = json.dumps(
                dict(info()) if command == "INFO" else metrics.snapshot(), separators=(",", ":")
            )
    else:
        answer = f"ERROR unknown command {line[:40]!r}: send HELP for a list"
    return answer.encode() + b"\n"


def http_response(request_line: str, metrics: Metrics, *, draining: bool) -> bytes:
    """Return the whole response to ``GET /healthz`` or ``GET /metrics``; the connection ends with it."""
    path = [*request_line.split(), "", ""][1].partition("?")[0]
    if path == "/healthz":
        # A balancer that sees 503 sends new clients elsewhere while this server finishes.
        return _response("503 Service Unavailable", "draining\n") if draining else _response("200 OK", "ok\n")
    if path == "/metrics":
        return _response("200 OK", metrics.prometheus(), "text/plain; version=0.0.4; charset=utf-8")
    return _response("404 Not Found", "there are /healthz and /metrics\n")


def _response(status: str, body: str, content_type: str = "text/plain; charset=utf-8") -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + content
