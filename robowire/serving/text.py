"""Lines of text for a person with ``nc``, and HTTP for a health check: text in, text out."""

from __future__ import annotations

import json
from typing import TypeVar

from robowire.errors import RequestError
from robowire.serving.service import Service
from robowire.serving.sessions import Session

__all__ = ["HTTP_PATHS", "answer_line", "http_response"]

HTTP_PATHS = ("/healthz", "/metrics")

S = TypeVar("S", bound=Session)

_HELP = "PING, INFO, STATS, HELP, QUIT: one line each; GET /healthz and GET /metrics: HTTP"


def answer_line(line: str, session: S, service: Service[S]) -> bytes:
    """Return the one line that answers ``PING``, ``INFO``, ``STATS``, ``HELP`` or ``QUIT``.

    Lower case is accepted. ``INFO`` and ``STATS`` are answered by JSON, and need an authorised session: text
    has no way to send a token.
    """
    session.requests += 1
    command = line.strip().upper()
    if command == "PING":
        answer = "PONG"
    elif command == "HELP":
        answer = _HELP
    elif command == "QUIT":
        answer = "BYE"
    elif command in ("INFO", "STATS"):
        try:
            with service.request_in_hand(session):
                report = service.info(session) if command == "INFO" else service.metrics.snapshot()
        except RequestError as error:
            service.count_error(error, str(session))
            answer = f"ERROR {error.error_type}: {error}"
        else:
            answer = json.dumps(report, separators=(",", ":"))
    else:
        answer = f"ERROR unknown command {line[:40]!r}: send HELP for a list"
    return answer.encode() + b"\n"


def http_response(request_line: str, service: Service[S]) -> bytes:
    """Return the whole response to ``GET /healthz`` or ``GET /metrics``; the connection ends with it."""
    path = [*request_line.split(), "", ""][1].partition("?")[0]
    if path == "/healthz":
        if service.draining:  # a load balancer that sees 503 sends new clients elsewhere
            return _response("503 Service Unavailable", "draining\n")
        return _response("200 OK", "ok\n")
    if path == "/metrics":
        return _response("200 OK", service.metrics.prometheus(), "text/plain; version=0.0.4; charset=utf-8")
    return _response("404 Not Found", f"there are {' and '.join(HTTP_PATHS)}\n")


def _response(status: str, body: str, content_type: str = "text/plain; charset=utf-8") -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + content
