"""vla-eval's WebSocket wire over real sockets: episodes, errors, and clients that attack."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from raw_client import wait_until
from server_process import ServerProcess
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from robowire.frontends.vla_eval.codec import Message, PayloadReader, encode_message, read_message
from robowire.images import encode_image
from robowire.interfaces import Policy
from robowire.serving.policy.server import PolicyServer
from robowire.testing import EchoPolicy, FailingPolicy, SlowPolicy


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)  # the client's own take a moment


def serving(policy: Policy | None = None, **options: Any) -> AbstractContextManager[PolicyServer]:
    return running_frontends(policy or EchoPolicy(), vla_eval_port=0, **options)


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with serving(max_payload=1 << 20) as server:
        yield server


class Client:
    """A client of the wire as a third party writes it. Nothing here waits longer than five seconds."""

    def __init__(self, port: int, *, user: str = "", **options: Any) -> None:
        address = f"ws://{user}127.0.0.1:{port}"
        self._connect = connect(address, compression=None, max_size=None, open_timeout=5, **options)
        self.socket: ClientConnection = self._connect.__enter__()
        self.seq = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connect.__exit__(None, None, None)

    def send(self, kind: str, payload: Mapping[str, Any] | None = None) -> None:
        self.seq += 1
        self.socket.send(encode_message(kind, payload or {}, seq=self.seq, timestamp=time.time()))

    def receive(self) -> Message:
        data = self.socket.recv(timeout=5)
        assert msgpack.unpackb(data).keys() == {"type", "payload", "seq", "timestamp"}
        return read_message(data)

    def ask(self, kind: str, payload: Mapping[str, Any] | None = None) -> Message:
        self.send(kind, payload)
        reply = self.receive()
        assert reply.seq == self.seq
        return reply

    def act(self, *state: float, **others: Any) -> list[float]:
        reply = self.ask("observation", {"states": np.float64(state), **others})
        assert reply.type == "action", reply
        actions = PayloadReader(0).value("actions", reply.payload["actions"])
        assert actions.dtype == np.float32
        return actions.tolist()  # type: ignore[no-any-return]

    def error(self, kind: str, payload: Mapping[str, Any] | None = None) -> str:
        reply = self.ask(kind, payload)
        assert reply.type == "error"
        assert list(reply.payload) == ["error"]
        text = reply.payload["error"]
        assert text.isprintable()
        assert len(text) <= 500
        return str(text)


def client_of(server: PolicyServer, **options: Any) -> Client:
    return Client(port_of(server, "vla_eval"), **options)


def is_served(server: PolicyServer, **options: Any) -> bool:
    with client_of(server, **options) as client:
        return client.act(1, 2, 3) == [1, 2, 3]


def get(server: PolicyServer, path: str, **headers: str) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{port_of(server, 'vla_eval')}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as reply:
            assert reply.headers["content-type"] == "application/json"
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text


# -- episodes


def test_a_chunk_is_executed_before_the_next_observation_is_looked_at(server: PolicyServer) -> None:
    with client_of(server) as client:
        hello = client.ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        assert hello.type == "hello"
        assert hello.payload["protocol_version"] == 1
        assert hello.payload["capabilities"] == {}
        assert hello.payload["observation_params"] == {"send_state": True}
        client.send("episode_start", {"task": {"name": "reach"}})
        assert [client.act(10 * step, 0, 0)[0] for step in range(6)] == [0, 1, 2, 3, 40, 41]
        client.send("episode_end", {"metrics": {"success": True}, "steps": 6, "elapsed_sec": 1.0})
        assert client.act(70, 0, 0)[0] == 70
        client.send("episode_start", {"task": {}})
        assert client.act(80, 0, 0)[0] == 80
    assert server.metrics.snapshot()["batches"] == 4


def test_an_episode_may_begin_with_an_observation(server: PolicyServer) -> None:
    with client_of(server) as client:
        assert [client.act(step, 0, 0)[0] for step in (5, 6)] == [5, 6]
        assert client.act(50, 0, 0, episode_restart=True)[0] == 50
        assert client.act(60, 0, 0)[0] == 51


def test_text_numbers_and_flags_are_no_state(server: PolicyServer) -> None:
    with client_of(server) as client:
        assert client.act(1, 2, 3, task_name="reach", success=False, count=3, note=None) == [1, 2, 3]


def test_temporal_ensembling_wants_every_observation() -> None:
    with serving(temporal_agg=True) as server, client_of(server) as client:
        first, second = client.act(0, 0, 0)[0], client.act(10, 0, 0)[0]
        assert first == 0
        assert 1 < second < 10
        client.send("episode_start", {"task": {}})
        assert client.act(20, 0, 0)[0] == 20


def test_clients_share_a_batch_and_no_chunk() -> None:
    policy = SlowPolicy()
    with serving(policy) as server, ExitStack() as crowd:
        clients = [crowd.enter_context(client_of(server)) for _ in range(5)]
        clients[0].send("observation", {"states": np.zeros(3)})
        wait_until(policy.started.is_set)
        for number, client in enumerate(clients[1:], 1):
            client.send("observation", {"states": np.full(3, number)})
        wait_until(lambda: server.service.requests_in_hand == 5)
        time.sleep(0.05)
        policy.release.set()
        for number, client in enumerate(clients):
            found = PayloadReader(0).value("actions", client.receive().payload["actions"])
            assert found.tolist() == [number] * 3
        assert policy.batch_sizes == [1, 4]


# -- errors


@pytest.mark.parametrize(
    ("kind", "payload", "told"),
    [
        ("observation", {"states": np.zeros(2)}, "observation_failed: SpecMismatch: the state has 2 numbers"),
        ("observation", {}, "observation_failed: InvalidParams: there is no part"),
        ("observation", {"states": np.zeros(3), "extra": np.zeros(1)}, "the part 'extra' is unknown"),
        ("observation", {"states": np.full(3, np.nan)}, "observation_failed: SpecMismatch: state[0] is nan"),
        ("observation", {"states": {"a": {"b": np.zeros(3)}}}, "'states/a' is a map in a map"),
        ("observation", {"states": np.zeros(3), "images": [1]}, "images is a list, expected a map"),
        ("observation", {"states": np.zeros(3), "task_description": 1}, "task_description is a int"),
        ("action", {"actions": np.zeros(3)}, "message_failed: UnknownMethod: there is no message 'action'"),
        ("\x1b[31m\n" * 100, {}, "there is no message '\\x1b[31m\\n"),
    ],
)
def test_an_error_echoes_its_request_and_the_connection_stays_open(
    server: PolicyServer, kind: str, payload: Mapping[str, Any], told: str
) -> None:
    with client_of(server) as client:
        assert told in client.error(kind, payload)
        assert client.act(1, 2, 3) == [1, 2, 3]


def test_an_observation_that_fails_does_not_count_as_a_step() -> None:
    seen: list[int] = []

    class Policy(EchoPolicy):
        def infer(self, observations: Any) -> np.ndarray:
            seen.extend(observation.timestep for observation in observations)
            return super().infer(observations)[:, :1].repeat(4, 1)

    with serving(Policy()) as server, client_of(server) as client:
        for _ in range(5):
            client.act(1, 2, 3)
            client.error("action")
        client.send("episode_start", {"task": {}})
        client.error("observation", {"states": np.zeros(2)})
        client.act(1, 2, 3)
    assert seen == [0, 4, 0]


def test_a_policy_that_fails_is_said_and_asked_again() -> None:
    with serving(FailingPolicy()) as server, client_of(server) as client:
        told = client.error("observation", {"states": np.zeros(3), "task_description": "raise"})
        assert told.startswith("observation_failed: BackendError: the policy failed: RuntimeError")
        assert client.act(1, 2, 3) == [1, 2, 3]


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x80", b"\xdf\xff\xff\xff\xff", b"\x91" * 5000, "text"])
def test_what_is_no_message_is_said(server: PolicyServer, garbage: bytes | str) -> None:
    with client_of(server) as client:
        client.socket.send(garbage)
        reply = client.receive()
        assert (reply.type, reply.seq) == ("error", 0)
        assert reply.payload["error"].startswith("message_failed: InvalidParams: ")
        assert client.act(1, 2, 3) == [1, 2, 3]


def test_during_a_drain_requests_are_refused(server: PolicyServer) -> None:
    with client_of(server) as client:
        client.ask("hello")
        server.service.begin_drain()
        assert client.error("observation", {"states": np.zeros(3)}).endswith(
            "ShuttingDown: the server shuts down and takes no new requests"
        )


# -- HTTP


def test_health_and_config_are_answered() -> None:
    with serving(token="secret", max_batch_size=4, max_wait_ms=20.0) as server:
        assert get(server, "/health") == (200, {"status": "ok"})
        assert get(server, "/config")[0] == 401
        settings = {"applied": {}, "config": {"max_batch_size": 4, "max_wait_time": 0.02}}
        assert get(server, "/config", Authorization="Bearer secret") == (200, settings)
        status, reply = get(server, "/config?max_batch_size=64", Authorization="Bearer secret")
        assert status == 422
        assert "--max_batch_size" in reply["errors"][0]
        assert get(server, "/config", Authorization="Bearer secret") == (200, settings)
        assert get(server, "/other", Authorization="Bearer secret")[0] == 426
        server.service.begin_drain()
        assert get(server, "/health") == (503, {"status": "draining"})


# -- who may ask


def test_nothing_is_read_without_the_token() -> None:
    with serving(token="secret") as server:
        for options in ({}, {"user": "me:wrong@"}, {"additional_headers": {"Authorization": "Bearer wrong"}}):
            with pytest.raises(InvalidStatus) as refused:
                client_of(server, **options)
            assert refused.value.response.status_code == 401
            assert b"ws://user:TOKEN@host:port" in refused.value.response.body or options
        assert is_served(server, user="me:secret@")
        for kind in ("Bearer", "Api-Key"):
            assert is_served(server, additional_headers={"Authorization": f"{kind} secret"})


def test_a_page_of_another_site_may_not_ask(server: PolicyServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        client_of(server, origin="https://evil.example")
    assert refused.value.response.status_code == 401


def test_clients_without_the_token_cannot_keep_its_holder_out() -> None:
    with serving(token="secret", max_connections=2) as server, ExitStack() as crowd:
        for number in range(20):
            sock = crowd.enter_context(
                socket.create_connection(("127.0.0.1", port_of(server, "vla_eval")), timeout=5)
            )
            with suppress(OSError):
                sock.sendall(b"GET / HTTP/1.1\r\nHo" if number % 2 else b"")
        started = time.monotonic()
        assert is_served(server, user="me:secret@")
        assert time.monotonic() - started < 1


# -- limits


def test_a_message_past_the_limit_ends_its_connection(server: PolicyServer) -> None:
    with client_of(server) as client:
        with suppress(ConnectionClosed):
            client.socket.send(b"\0" * ((1 << 20) + 1))
        with pytest.raises(ConnectionClosed):
            client.socket.recv(timeout=5)
        assert client.socket.close_code == 1009
    assert is_served(server)


def test_images_that_announce_more_than_the_limit_are_not_decoded(server: PolicyServer) -> None:
    large = np.zeros((700, 700, 3), np.uint8)  # 1.4 MiB, and a PNG of 5 kB
    payload = {"states": np.zeros(3), "images": {"agentview": large}}
    data = encode_message("observation", payload, seq=7, timestamp=0, image_format="png")
    with client_of(server) as client:
        client.socket.send(data)
        reply = client.receive()
        assert (reply.type, reply.seq) == ("error", 7)
        assert "announce more than 1048576 bytes" in reply.payload["error"]


def test_half_a_message_costs_its_connection_and_delays_nobody() -> None:
    with serving(frame_timeout_s=0.2) as server, client_of(server) as stalling:
        stalling.socket.socket.sendall(b"\x82\xfe\x10\x00half")
        started = time.monotonic()
        assert is_served(server)
        assert time.monotonic() - started < 0.2
        with pytest.raises(ConnectionClosed):
            stalling.socket.recv(timeout=5)


def test_a_slow_client_does_not_delay_others() -> None:
    policy = SlowPolicy()
    with serving(policy) as server, client_of(server) as slow, client_of(server) as other:
        slow.send("observation", {"states": np.zeros(3)})
        wait_until(policy.started.is_set)
        started = time.monotonic()
        assert other.ask("hello").type == "hello"
        assert time.monotonic() - started < 0.5
        policy.release.set()
        assert slow.receive().type == "action"


def test_memory_stays_bounded_and_the_log_printable(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path / "log", "--vla_eval_port", "0", "--max_payload", "4000000", "--host", "127.0.0.1"
    ) as program:
        (line,) = [line for line in program.banner if line.startswith("for vla-eval: ")]
        port = int(line.partition("ws://")[2].partition(" ")[0].rpartition(":")[2])
        before = program.peak_memory()
        large = np.zeros((2000, 2000, 3), np.uint8)
        png = encode_image(large, "png", quality=95)["data"]
        bomb = {"__image__": True, "format": "png", "data": png, "shape": [2000, 2000, 3]}
        messages = [
            encode_message("observation", {"images": dict.fromkeys("abcdefghij", bomb)}, seq=1, timestamp=0),
            encode_message("observation", {"images": {"agentview": large}}, seq=1, timestamp=0)[:3_900_000],
            b"\xdd\x00\x3c\x00\x00" + b"\x90" * 3_900_000,
            b"\xdc\xff\xff" + b"\x80" * 65_535,
            encode_message("observation", {"state": [0] * 60_000}, seq=1, timestamp=0),
            encode_message("observation", {"\x1b[31m\nforged": np.zeros(3)}, seq=1, timestamp=0),
            encode_message("observation", {"task_description": "\nforged" * 1000}, seq=1, timestamp=0),
        ]
        for _ in range(3):
            with Client(port) as client:
                for message in messages:
                    client.socket.send(message)
                    assert client.receive().type in ("action", "error")  # this policy takes any state
        assert program.peak_memory() - before < 60_000_000
        assert "\x1b" not in program.log
        assert "\nforged" not in program.log
        with Client(port) as client:
            assert client.ask("hello").type == "hello"
