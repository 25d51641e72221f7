"""Clients of other wires on a native port: named once, answered in their own words, no burden to others."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
import websockets.sync.client
import zmq
from raw_client import RawClient, wait_until
from websockets.exceptions import InvalidStatus

from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.testing import EchoPolicy, running_server, running_simulator_server


@pytest.fixture(params=[None, "sesame"], ids=["open", "token"])
def server(request: pytest.FixtureRequest) -> Iterator[PolicyServer]:
    options = PolicyServerOptions(max_connections=2, token=request.param, insecure=True, drain_s=2.0)
    with running_server(EchoPolicy(state_dim=3), options) as running:
        yield running


def dial_websocket(host: str, port: int) -> str:
    with pytest.raises(InvalidStatus) as raised:
        websockets.sync.client.connect(f"ws://{host}:{port}", proxy=None)
    body = raised.value.response.body
    assert raised.value.response.status_code == 421
    return bytes(body or b"").decode()


def dial_http(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request("POST", "/inference", body=b"x" * 100_000)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == 421
    return text


def dial_grpc(host: str, port: int) -> str:
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/transport.AsyncInference/Ready")(b"", timeout=5)
        return str(raised.value)


DIALS = [
    (dial_websocket, "WebSocket", "--openpi_port serves openpi's clients"),
    (dial_http, "HTTP", "--vlastudio_port serves VLAStudio's"),
    (dial_grpc, "HTTP/2 (gRPC)", "--lerobot_port serves LeRobot's"),
]


@pytest.mark.parametrize(("dial", "wire", "flag"), DIALS, ids=[wire for _, wire, _ in DIALS])
def test_a_client_of_another_wire_is_named_once_and_told_in_its_words(
    server: PolicyServer,
    caplog: pytest.LogCaptureFixture,
    dial: Callable[[str, int], str],
    wire: str,
    flag: str,
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        told = dial(*server.address)
        if wire != "HTTP/2 (gRPC)":  # grpc shows a GOAWAY's text in its own log only
            assert flag in told
    # grpc connects again at once, so often that it sometimes finds each place taken by itself.
    lines = [line for line in caplog.messages if "connections are taken" not in line]
    named = [line for line in lines if "another wire" in line]
    port = server.address[1]
    assert [line[: line.index(";")] if ";" in line else line for line in lines] == named
    assert len(named) == 1
    assert named[0].startswith(
        f"127.0.0.1 connected with another wire: port {port} is robowire's native policy wire and does not "
        f"speak {wire}: "
    )
    assert flag in named[0]


def test_a_client_of_zeromq_is_named_once_and_held(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    context = zmq.Context()
    sockets = [context.socket(zmq.REQ) for _ in range(3)]  # more than there are places
    try:
        for sock in sockets:
            sock.setsockopt(zmq.LINGER, 0)
            sock.connect(f"tcp://127.0.0.1:{server.address[1]}")
            sock.send(b"hello")
        wait_until(lambda: server.metrics.snapshot()["errors"].get("unreadable", 0) >= 3)
        time.sleep(0.5)  # libzmq dials again after 0.1 s where it is closed
        assert server.metrics.snapshot()["errors"]["unreadable"] == 3
        assert len(caplog.messages) == 1
        assert "--gr00t_port serves GR00T's clients" in caplog.messages[0]
        with RawClient(server.address) as client:  # they hold no place
            assert client.hello(token="sesame")["status"] == "ok"
            assert len(client.ask(MetaObs(state=np.zeros(3)))) == 4
    finally:
        context.destroy(linger=0)


def test_the_simulator_port_names_its_own_flags(caplog: pytest.LogCaptureFixture) -> None:
    with running_simulator_server() as server:
        assert "--http_port serves HTTP" in dial_http(*server.address)
    assert "native simulator wire" in caplog.messages[0]


def test_the_rest_of_a_greeting_that_never_ends_costs_one_connection() -> None:
    options = PolicyServerOptions(frame_timeout_s=0.3, insecure=True, drain_s=2.0)
    with running_server(EchoPolicy(), options) as server, RawClient(server.address) as slow:
        slow.sock.sendall(b"POST /inference HTTP/1.1\r\nHost: x\r\nX-Half")
        with RawClient(server.address) as client:
            assert client.ask({"method": "ping"}) == {"status": "ok"}
        assert slow.closed()
