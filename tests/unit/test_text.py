"""Lines for people, HTTP for probes."""

from __future__ import annotations

import json

import pytest

from robowire.serving.metrics import Metrics
from robowire.serving.sessions import Peer
from robowire.serving.text import answer_line, http_response
from robowire.testing import EchoService


def ask(line: str, *, token: str | None = None) -> str:
    service = EchoService(token=token)
    return answer_line(line, service.open_session(Peer("peer")), service).decode()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("PING", "PONG\n"),
        ("ping ", "PONG\n"),
        ("INFO", '{"server":"echo","session":1}\n'),
        ("HELP", "PING, INFO, STATS, HELP, QUIT: one line each; GET /healthz and GET /metrics: HTTP\n"),
        ("QUIT", "BYE\n"),
        ("FOO", "ERROR unknown command 'FOO': send HELP for a list\n"),
        ("", "ERROR unknown command '': send HELP for a list\n"),
    ],
)
def test_a_line_is_answered_by_a_line(line: str, answer: str) -> None:
    assert ask(line) == answer


def test_stats_are_one_line_of_json() -> None:
    line, _, rest = ask("STATS").partition("\n")
    assert rest == ""
    assert json.loads(line)["requests"] == 0


@pytest.mark.parametrize("line", ["INFO", "STATS"])
def test_a_server_with_a_token_tells_text_clients_nothing(line: str) -> None:
    answer = ask(line, token="sesame")
    assert answer == "ERROR unauthenticated: say hello with the token first\n"


@pytest.mark.parametrize(
    ("request_line", "draining", "status", "body"),
    [
        ("GET /healthz HTTP/1.1", False, "200 OK", "ok\n"),
        ("GET /healthz?verbose=1 HTTP/1.1", False, "200 OK", "ok\n"),
        ("GET /healthz HTTP/1.1", True, "503 Service Unavailable", "draining\n"),
        ("GET / HTTP/1.1", False, "404 Not Found", "there are /healthz and /metrics\n"),
        ("GET ", False, "404 Not Found", "there are /healthz and /metrics\n"),
    ],
)
def test_a_probe_gets_one_whole_http_response(
    request_line: str, draining: bool, status: str, body: str
) -> None:
    service = EchoService()
    if draining:
        service.begin_drain()
    response = http_response(request_line, service).decode()
    assert response == (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )


def test_metrics_are_served_as_prometheus_reads_them() -> None:
    service = EchoService(metrics=Metrics(lambda: 0.0))
    head, _, body = http_response("GET /metrics HTTP/1.1", service).partition(b"\r\n\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert "robowire_uptime_seconds 0\n" in body.decode()
    assert "robowire_requests_in_progress 0\n" in body.decode()
