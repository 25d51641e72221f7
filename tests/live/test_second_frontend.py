"""Another wire needs one file: the same service behind TCP and behind JSON lines, started by one runner."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import json_frontend
import numpy as np
import pytest
from json_frontend import JsonExchange, JsonServer
from raw_client import RawClient

from robowire.errors import InvalidParams
from robowire.meta import MetaObs
from robowire.serving.policy.service import PolicyService
from robowire.serving.runner import Runner
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.serving.tcp import TcpOptions, TcpServer
from robowire.testing import FAKE_SIMULATORS, EchoPolicy
from robowire.wire.codecs import PolicyCodec
from robowire.wire.messages import Request


class ObservationExchange(JsonExchange):
    """Reads ``{"method": "infer", "state": [...]}``."""

    def read(self) -> Request:
        request = super().read()
        if request.method != "infer":
            return request
        state = request.params.get("state")
        if not isinstance(state, list) or not all(isinstance(number, float) for number in state):
            raise InvalidParams("state is a list of numbers")
        return Request("infer", observations=(MetaObs(state=np.array(state, np.float32)),))


class ObservationServer(JsonServer):
    exchange = ObservationExchange


class JsonClient:
    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=10)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> JsonClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()
        self.sock.close()

    def ask(self, method: str, **params: Any) -> Any:
        self.sock.sendall(json.dumps({"method": method, **params}).encode() + b"\n")
        return json.loads(self.file.readline())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_it_is_one_file_of_less_than_a_hundred_lines() -> None:
    lines = Path(json_frontend.__file__).read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) < 80


def test_one_policy_answers_on_two_wires() -> None:
    service = PolicyService(EchoPolicy(state_dim=3, chunk_size=2), token="sesame")
    options = TcpOptions(host="127.0.0.1", port=0)
    frontends = [TcpServer(service, options, PolicyCodec(())), ObservationServer(service)]
    with Runner(service, frontends, drain_s=2.0) as server:
        tcp, lines = (frontend.address for frontend in server.frontends)
        with RawClient(tcp) as native, JsonClient(lines) as other:
            # The token, typed errors and metrics are the service's, so the new wire has them too.
            assert other.ask("infer", state=[1.0, 2.0, 3.0])["error_type"] == "unauthenticated"
            assert other.ask("hello", token="sesame")["server"] == "policy"
            assert other.ask("infer", state=[1.0, 2.0, 3.0])["actions"] == [[1, 2, 3], [2, 3, 4]]
            assert other.ask("infer", state="abc")["error_type"] == "invalid_params"
            assert other.ask("infer", state=[1.0])["error_type"] == "spec_mismatch"
            native.hello(token="sesame")
            actions = native.ask(MetaObs(state=np.array([1, 2, 3], np.float32)))
            np.testing.assert_array_equal([action.action for action in actions], [[1, 2, 3], [2, 3, 4]])
            stats = other.ask("stats")
        assert stats["sessions"] == 2
        assert stats["errors"] == {"unauthenticated": 1, "invalid_params": 1, "spec_mismatch": 1}
        assert server.describe()[1:] == [f"JSON lines on port {lines[1]}"]


def test_one_simulator_service_answers_on_two_wires() -> None:
    options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2.0)
    with SimulatorServer(FAKE_SIMULATORS, options, frontends=[JsonServer]) as server:  # noqa: SIM117
        with JsonClient(server.frontends[1].address) as client:
            assert client.ask("list_simulators")["simulators"] == ["fake"]
            assert client.ask("ping") == {"status": "ok"}
            assert client.ask("steps")["error_type"] == "unknown_method"
