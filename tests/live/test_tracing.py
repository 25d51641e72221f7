"""Traces of requests, as a collector receives them from the processes of clients and servers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ROOT, ServerProcess, environment

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: requirements/otel.lock.txt")

from otlp_collector import Collector

# Kinds of spans in OTLP.
INTERNAL, SERVER, CLIENT = 1, 2, 3


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def run_client(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "client.py", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_one_trace_covers_the_client_and_the_server_of_an_inference(
    collector: Collector, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path / "log", "--otlp_endpoint", collector.url) as server:
        run_client(
            *("infer", "--host", server.address[0], "--port", str(server.address[1])),
            *("--num_requests", "2", "--otlp_endpoint", collector.url),
        )
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.log
    sent = collector.named("infer", "robowire-infer")
    assert len(sent) >= 2
    answered = {span.parent: span for span in collector.named("infer", "robowire-policy") if span.parent}
    for span in sent:
        assert span.kind == CLIENT
        assert span.parent == ""
        answer = answered[span.id]
        assert (answer.kind, answer.trace) == (SERVER, span.trace)
        phases = collector.inside(answer)
        assert {phase.trace for phase in phases} == {span.trace}
        names = [phase.name for phase in phases]
        assert names == ["receive", "decode", "wait", "infer", "encode", "send"]
        # One after the other, and all within what the client measured.
        edges = [edge for phase in phases for edge in (phase.started, phase.ended)]
        assert [span.started, *edges] == sorted([span.started, *edges])
        assert edges[-2] <= span.ended  # the client may have read the reply before sending returned
