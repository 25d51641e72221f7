"""Phases of requests on wires whose library receives and sends: in the metrics, and as spans of one trace."""

from __future__ import annotations

import http.client
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import zmq
from frontend_server import port_of, running_frontends
from raw_client import wait_until
from websockets.sync.client import connect

from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.frontends.lerobot.codec import (
    RemotePolicyConfig,
    TimedObservation,
    encode_data,
    encode_instructions,
    encode_observation,
    encode_pieces,
)
from robowire.frontends.openpi.codec import encode
from robowire.frontends.vlastudio.codec import encode_call
from robowire.meta import MetaObs
from robowire.serving.metrics import Metrics
from robowire.serving.policy.server import PolicyServer
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.server import SimulatorServer
from robowire.testing import FAKE_SIMULATORS, EchoPolicy

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
STATE = np.float32([1, 2, 3])


def post(address: tuple[str, int], path: str, body: bytes, **headers: str) -> Any:
    connection = http.client.HTTPConnection(*address[:2], timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **HEADERS, **headers})
        reply = connection.getresponse()
        content = json.loads(reply.read())
        assert reply.status == 200, content
        return content
    finally:
        connection.close()


def ask_vlastudio(server: PolicyServer) -> None:
    post(("127.0.0.1", port_of(server, "vlastudio")), "/inference", encode_call(MetaObs(state=STATE)))


def ask_openpi(server: PolicyServer) -> None:
    uri = f"ws://127.0.0.1:{port_of(server, 'openpi')}"
    with connect(uri, compression=None, additional_headers=HEADERS) as client:
        client.recv(5)
        for _ in range(2):
            client.send(encode({"state": np.float64(STATE)}))
            client.recv(5)


def ask_lerobot(server: PolicyServer) -> None:
    names = ("shoulder.pos", "elbow.pos", "gripper.pos")
    features = {"observation.state": {"dtype": "float32", "shape": (3,), "names": list(names)}}
    config = RemotePolicyConfig("echo", "someone/echo", features, actions_per_chunk=3)
    observation = TimedObservation(1000.5, 0, {**dict(zip(names, map(float, STATE))), "task": "lift"}, False)
    service = "/transport.AsyncInference"
    metadata = list(HEADERS.items())
    with grpc.insecure_channel(f"127.0.0.1:{port_of(server, 'lerobot')}") as channel:

        def call(name: str, message: bytes = b"") -> None:
            channel.unary_unary(f"{service}/{name}")(message, timeout=10, metadata=metadata)

        call("Ready")
        call("SendPolicyInstructions", encode_data(encode_instructions(config)))
        pieces = encode_pieces(encode_observation(observation))
        channel.stream_unary(f"{service}/SendObservations")(pieces, timeout=10, metadata=metadata)
        call("GetActions")


def phases_of(metrics: Metrics, frontend: str, method: str) -> dict[str, int]:
    return {
        row["phase"]: row["count"]
        for row in metrics.snapshot()["phases"]
        if (row["frontend"], row["method"]) == (frontend, method)
    }


WIRES: dict[str, tuple[Callable[[PolicyServer], None], dict[str, int]]] = {
    "vlastudio": (ask_vlastudio, dict(receive=1, decode=1, wait=1, infer=1, encode=1, send=1)),
    "openpi": (ask_openpi, dict(decode=2, wait=2, infer=2, encode=2, send=2)),
    "lerobot": (ask_lerobot, dict(receive=1, decode=1, wait=1, infer=1, encode=1, send=1)),
}


@pytest.mark.parametrize("name", WIRES)
def test_the_metrics_have_the_phases_of_an_inference(name: str) -> None:
    ask, expected = WIRES[name]
    with running_frontends(EchoPolicy(), **{f"{name}_port": 0}) as server:
        ask(server)
        wait_until(lambda: phases_of(server.metrics, name, "infer").get("send") == expected["send"])
        assert phases_of(server.metrics, name, "infer") == expected


def over_http(service: Any) -> HttpServer:
    return HttpServer(service, HttpOptions(host="127.0.0.1", port=0))


@pytest.fixture
def simulators() -> Iterator[Callable[[], SimulatorServer]]:
    with ExitStack() as running:
        options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2)
        yield lambda: running.enter_context(SimulatorServer(FAKE_SIMULATORS, options, frontends=[over_http]))


def step_over_http(server: SimulatorServer) -> None:
    address = server.frontends[1].address
    begun = post(address, "/reset", json.dumps({"simulator": "fake", "task": "reach"}).encode())
    action = json.dumps({"action": [0, 0, 0]}).encode()
    post(address, "/step", action, **{"X-Robowire-Session": begun["session"]})


def test_the_metrics_have_the_phases_of_a_step_over_http(simulators: Callable[[], SimulatorServer]) -> None:
    server = simulators()
    step_over_http(server)
    expected = dict(receive=1, decode=1, execute=1, encode=1, send=1)
    for method in ("step", "reset"):
        wait_until(lambda method=method: "send" in phases_of(server.metrics, "http", method))
        assert phases_of(server.metrics, "http", method) == expected
    # A reset that begins a session calls two methods more, which no body is read for.
    assert phases_of(server.metrics, "http", "load_task") == dict(execute=1)


def test_a_failed_step_over_http_counts_as_its_error(
    simulators: Callable[[], SimulatorServer],
) -> None:
    server = simulators()
    address = server.frontends[1].address
    begun = post(address, "/reset", json.dumps({"simulator": "fake", "task": "reach"}).encode())
    with pytest.raises(AssertionError, match="spec_mismatch"):
        post(address, "/step", b'{"action": [0]}', **{"X-Robowire-Session": begun["session"]})
    answers = {(row["method"], row["outcome"]): row["count"] for row in server.metrics.snapshot()["answers"]}
    assert answers["step", "spec_mismatch"] == 1


@pytest.mark.parametrize("name", WIRES)
def test_an_inference_is_in_the_trace_that_its_client_names(name: str, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: requirements/otel.lock.txt")
    from otlp_collector import Collector

    from robowire.tracing.export import traced

    ask, expected = WIRES[name]
    with Collector() as collector:
        here = traced("otlp", service="here", endpoint=collector.url)
        with here, running_frontends(EchoPolicy(), **{f"{name}_port": 0}) as server:
            ask(server)
            wait_until(lambda: phases_of(server.metrics, name, "infer").get("send") == expected["send"])
        spans = [span for span in collector.named("infer") if span.parent == PARENT]
        assert len(spans) == expected["send"]
        for span in spans:
            assert span.trace == TRACE
            assert span.attributes["robowire.frontend"] == name
            names = [phase.name for phase in collector.inside(span)]
            # Over gRPC another call brings the observation.
            assert names == [phase for phase in expected if phase != "receive" or name != "lerobot"], (
                collector.inside(span)
            )


def test_a_step_over_http_is_in_the_trace_that_its_client_names(
    simulators: Callable[[], SimulatorServer],
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: requirements/otel.lock.txt")
    from otlp_collector import Collector

    from robowire.tracing.export import traced

    with Collector() as collector:
        with traced("otlp", service="here", endpoint=collector.url):
            server = simulators()
            step_over_http(server)
            wait_until(lambda: "send" in phases_of(server.metrics, "http", "step"))
            server.shutdown()
        step = collector.only("step")
        assert (step.trace, step.parent) == (TRACE, PARENT)
        assert step.attributes["url.path"] == "/step"
        phases = collector.inside(step)
        assert [phase.name for phase in phases] == ["receive", "decode", "execute step", "encode", "send"]
        assert [span.name for span in collector.inside(phases[2])] == ["step in worker"]


def test_an_inference_over_zeromq_which_has_no_headers_begins_a_trace() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: requirements/otel.lock.txt")
    from otlp_collector import Collector

    from robowire.tracing.export import traced

    with Collector() as collector:
        with ExitStack() as running:
            running.enter_context(traced("otlp", service="here", endpoint=collector.url))
            server = running.enter_context(running_frontends(EchoPolicy(), act_zmq_port=0))
            client = running.enter_context(running.enter_context(zmq.Context()).socket(zmq.REQ))
            client.setsockopt(zmq.LINGER, 0)
            client.connect(f"tcp://127.0.0.1:{port_of(server, 'act_zmq')}")
            for _ in range(10):  # one that asks quickly has its thread all the same
                client.send(pickle.dumps({"qpos": STATE, "images": {}}))
                assert client.poll(5000)
                client.recv()
        spans = [span for span in collector.named("infer") if span.kind == 2]
        assert [span.parent for span in spans] == [""] * 10
        assert len({span.trace for span in spans}) == 10
        for span in spans:
            phases = [phase.name for phase in collector.inside(span)]
            assert phases == ["decode", "wait", "infer", "encode", "send"]
