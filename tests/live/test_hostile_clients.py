"""Clients that lie, stall, die or attack: the others are served meanwhile, and memory stays bounded."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_client import RawClient, wait_until
from server_process import ServerProcess

from robowire.client.http_simulator_client import HttpSimulatorClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import InvalidParams
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS, EchoPolicy, SlowPolicy, running_server

PING = {"method": "ping"}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)  # pooled threads of HTTP are not waited for


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    options = PolicyServerOptions(max_payload=1 << 20, frame_timeout_s=0.2, send_timeout_s=0.2, drain_s=2)
    with running_server(EchoPolicy(), options) as running:
        yield running


def obs(*state: float) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32))


def is_served(server: PolicyServer) -> bool:
    with RawClient(server.address) as honest:
        return len(honest.ask(obs(1, 2, 3))) == 4


class System:
    """Pickles as a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_half_a_frame_and_silence_delays_nobody_and_is_closed(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with RawClient(server.address) as stalling:
        stalling.sock.sendall(struct.pack("!I", 1000) + b"half")
        assert is_served(server)
        assert stalling.closed()
    wait_until(lambda: "did not finish a frame within 0.2 s" in caplog.text)


def test_a_byte_now_and_then_does_not_keep_a_frame_open(server: PolicyServer) -> None:
    started = time.monotonic()
    with RawClient(server.address) as dripping:
        dripping.sock.sendall(struct.pack("!I", 1000))
        with suppress(ConnectionError):
            while time.monotonic() < started + 5:
                dripping.sock.sendall(b"x")
                time.sleep(0.02)
    assert time.monotonic() < started + 2


def test_a_client_that_never_reads_is_closed_and_delays_nobody(server: PolicyServer) -> None:
    observation = MetaObs(state=np.zeros((200, 3), np.float32), timestep=np.zeros((200, 1), np.int64))
    with RawClient(server.address) as deaf:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(ConnectionError):  # the server stops reading, then closes
            while True:
                deaf.send(observation)
        assert is_served(server)


@pytest.mark.parametrize("length", [0xFFFF_FFFF, 1 << 31, (1 << 20) + 1])
def test_a_frame_beyond_the_limit_is_closed_with_its_reason_in_the_log(
    server: PolicyServer, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(server.address) as hostile:
        hostile.sock.sendall(struct.pack("!I", length))
        assert hostile.closed()
    wait_until(lambda: bool(caplog.messages))
    assert caplog.messages == [
        f"client #1 sent what cannot be read: frame of {length} bytes exceeds the limit of 1048576 bytes"
    ]
    assert is_served(server)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_names_os_system_runs_nothing(
    server: PolicyServer, tmp_path: Path, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    trace = tmp_path / "trace"
    with RawClient(server.address) as hostile:
        hostile.send_payload(pickle.dumps(System(f"touch {trace}"), protocol=protocol))
        assert hostile.receive()["message"] == (
            "the request cannot be read: payload names posix.system, which is not data; send numpy arrays "
            "(of a tensor, its .numpy()) and plain Python values"
        )
        assert hostile.closed()
    assert not trace.exists()
    wait_until(lambda: bool(caplog.messages))
    assert caplog.messages == [
        "client #1 sent what cannot be read: payload names posix.system, which is not data"
    ]
    assert is_served(server)


def lying_array() -> bytes:
    """Return a pickle of an array whose shape promises a terabyte more than its data holds."""
    honest = pickle.dumps(np.zeros(3, np.float64), protocol=2)
    return honest.replace(b"K\x03\x85", b"\x8a\x05\x00\x00\x00\x00\x01\x85")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x05",
        b"no pickle at all",
        b"\x80\x05" + b"]" * 5000 + b"a" * 4999 + b".",  # nesting
        pickle.dumps({"method": "ping"}, protocol=0),
        b"\x80\x05Nr\xff\xff\xff\x7f.",  # a memo index that would reserve gigabytes
        b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b".",  # a terabyte of bytes
        b"\x80\x05}\x94(" + b"h\x00" * 3 + b"u.",
        lying_array(),
    ],
    ids=["empty", "cut", "text", "nesting", "old", "memo", "terabyte", "unhashable", "lying array"],
)
def test_a_payload_that_cannot_be_read_is_answered_closed_and_logged(
    server: PolicyServer, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(server.address) as hostile:
        hostile.send_payload(payload)
        reply = hostile.receive()
        assert (reply["status"], reply["error_type"]) == ("error", "invalid_params")
        assert reply["message"].startswith("the request cannot be read: ")
        assert hostile.closed()
    wait_until(lambda: len(caplog.messages) == 1)
    assert caplog.messages[0].startswith("client #1 sent what cannot be read: ")
    assert is_served(server)


@pytest.mark.parametrize("text", [b"A" * 10_000, "PING é\n".encode(), b"GET / HTTP/1.1\r\n" + b"x" * 9000])
def test_text_that_never_ends_or_is_no_text_is_closed(server: PolicyServer, text: bytes) -> None:
    with RawClient(server.address) as hostile:
        hostile.sock.sendall(text)
        assert hostile.closed()
    assert is_served(server)


def test_http_headers_that_never_end_are_answered_all_the_same_or_closed(server: PolicyServer) -> None:
    started = time.monotonic()
    with RawClient(server.address) as hostile:
        hostile.sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        hostile.read_to_the_end()
    assert time.monotonic() - started < 2
    assert is_served(server)


def test_one_connection_too_many_is_told_so_and_a_freed_place_is_given_again() -> None:
    overloaded = {
        "status": "error",
        "error_type": "overloaded",
        "message": "all 2 connections are taken; try again later",
    }
    options = PolicyServerOptions(max_connections=2)
    with running_server(EchoPolicy(), options) as server, RawClient(server.address) as one:
        with RawClient(server.address) as two:
            assert [one.ask(PING), two.ask(PING)] == [{"status": "ok"}] * 2
            with RawClient(server.address) as three:
                assert three.ask(PING) == overloaded
                assert three.closed()
            with RawClient(server.address) as large:  # the reply must survive what the client still sends
                assert large.ask(MetaObs(image=np.zeros((30, 3, 480, 640), np.uint8))) == overloaded
            with RawClient(server.address) as person:
                said = person.say("INFO\n")
                assert said == "ERROR overloaded: all 2 connections are taken; try again later\n"
            with RawClient(server.address) as probe:
                assert probe.say("GET /healthz HTTP/1.1\r\n\r\n").endswith("\r\n\r\nok\n")
        wait_until(lambda: server.metrics.snapshot()["sessions_open"] == 1)
        with RawClient(server.address) as four:
            assert four.ask(PING) == {"status": "ok"}
        assert server.metrics.snapshot()["sessions_refused"] == 4


def test_a_crowd_that_says_nothing_cannot_stop_the_served_ones() -> None:
    options = PolicyServerOptions(max_connections=1)
    with running_server(EchoPolicy(), options) as server, RawClient(
        server.address
    ) as served, ExitStack() as crowd:
        served.ask(PING)
        for _ in range(40):
            crowd.enter_context(RawClient(server.address))
        wait_until(lambda: server.metrics.snapshot()["sessions_refused"] == 40)
        assert sum(thread.name == "refusal" for thread in threading.enumerate()) <= 16
        assert len(served.ask(obs(1, 2, 3))) == 4


def test_a_client_that_dies_with_its_request_in_hand_harms_nobody() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server:
        with RawClient(server.address) as dying:
            dying.send(obs(1, 2, 3))
            policy.started.wait()
            # A reset, as from a process that was killed with unread data.
            dying.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        policy.release.set()
        assert is_served(server)


def test_a_client_that_dies_in_the_middle_of_a_frame_is_logged(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(server.address) as dying:
        dying.sock.sendall(struct.pack("!I", 1000) + b"x" * 10)
        dying.sock.shutdown(socket.SHUT_WR)
        assert dying.closed()
    wait_until(lambda: bool(caplog.messages))
    assert caplog.messages == [
        "client #1 sent what cannot be read: stream ended after 10 of 1000 payload bytes"
    ]


def test_no_file_descriptor_left_does_not_end_the_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", "--max_connections", "200", max_files=40) as server:
        with ExitStack() as crowd:
            for _ in range(60):
                crowd.enter_context(RawClient(server.address))
            server.wait_for_log("cannot take connections for now: Too many open files")
        with RawClient(server.address) as later:
            assert later.ask(PING) == {"status": "ok"}


def test_memory_stays_bounded_whatever_clients_send(tmp_path: Path) -> None:
    limit = 8 << 20
    payloads = [
        b"\x00" * limit,
        b"\x80\x05(" + b"]" * (limit - 4) + b"t.",  # eight million lists
        b"\x80\x05]\x94("
        + b"h\x00" * (limit // 2 - 4)
        + b"e.",  # a list that holds itself four million times
        lying_array(),
        pickle.dumps([np.zeros(limit - 200, np.uint8)]),  # data, but no request
    ]
    with ServerProcess(tmp_path / "log", "--max_payload", str(limit)) as server:
        with RawClient(server.address) as client:
            client.ask(PING)
        before = server.peak_memory()
        for payload in payloads * 2:
            for length in (len(payload), 0xFFFF_FFFF):
                # It may be closed while we are sending.
                with RawClient(server.address) as hostile, suppress(OSError):
                    hostile.sock.sendall(struct.pack("!I", length) + payload)
                    hostile.sock.shutdown(socket.SHUT_WR)
                    hostile.read_to_the_end()
        with RawClient(server.address) as client:
            assert client.ask(PING) == {"status": "ok"}
        grown = server.peak_memory() - before
    # The payload itself, and what reading it may cost: 24 bytes for each of its own.
    assert grown < 30 * limit


def test_clients_without_the_token_cannot_keep_its_holder_out() -> None:
    options = PolicyServerOptions(max_connections=4, token="sesame", drain_s=2)
    with running_server(EchoPolicy(), options) as server, ExitStack() as crowd:
        idle = [crowd.enter_context(RawClient(server.address)) for _ in range(20)]
        for client in idle[:10]:
            with suppress(OSError):  # some were closed to make place
                client.sock.sendall(struct.pack("!I", 1000) + b"half")
        holders = [crowd.enter_context(RawClient(server.address)) for _ in range(4)]
        for holder in holders:
            assert holder.hello(token="sesame")["status"] == "ok"
            assert len(holder.ask(obs(1, 2, 3))) == 4
        fifth = crowd.enter_context(RawClient(server.address))
        assert fifth.hello(token="sesame")["error_type"] == "overloaded"
        assert fifth.closed()
        more = [crowd.enter_context(RawClient(server.address)) for _ in range(20)]
        assert more[0].closed()
        assert len(holders[0].ask(obs(1, 2, 3))) == 4


def test_nothing_of_a_peers_making_forges_a_line_of_the_log(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = "x\n2026-01-01 12:00:00 WARNING all is well\x1b[31m" + "y" * 100_000
    payload = b"\x80\x05" + b"X" + struct.pack("<I", len(name)) + name.encode() + b"\x8c\x01y\x93."
    with RawClient(server.address) as hostile:
        hostile.send_payload(payload)
        refusal = hostile.receive()["message"]
        assert refusal.isprintable()
        assert len(refusal) < 500
        assert hostile.closed()
    with RawClient(server.address) as hostile:
        hostile.hello()
        for value in (
            {"method": name},
            {"qpos": [1.0], "images": {name: 1}},
            {"method": "hello", "reply": name},
        ):
            hostile.ask(value)
    wait_until(lambda: len(caplog.messages) >= 4)
    for message in caplog.messages:
        assert message.isprintable()
        assert len(message) < 700


def test_a_batch_of_nothing_costs_a_client_without_the_token_nothing() -> None:
    observation = MetaObs(state=np.zeros((4_000_000, 0), np.float32))
    with running_server(EchoPolicy(), PolicyServerOptions(token="sesame", drain_s=2)) as server:  # noqa: SIM117
        with RawClient(server.address) as hostile:
            hostile.ask({"method": "ping"})
            tracemalloc.start()
            try:
                assert hostile.ask(observation) == []
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x05(" + b"]" * 4000 + b"t.",
        b"\x80\x05(" + b"}" * 4000 + b"t.",
        b"\x80\x05(" + b"K\x01" * 2000 + b"t.",
        b"\x80\x05(" + b"\x8c\x03\xf0\x9f\x98" * 800 + b"t.",
    ],
    ids=["lists", "dicts", "numbers", "texts"],
)
def test_no_payload_of_a_client_without_the_token_costs_more_than_a_megabyte(payload: bytes) -> None:
    options = PolicyServerOptions(token="sesame", drain_s=2)
    with running_server(EchoPolicy(), options) as server, RawClient(server.address) as hostile:
        hostile.ask({"method": "ping"})
        tracemalloc.start()
        try:
            hostile.send_payload(payload)
            hostile.sock.shutdown(socket.SHUT_WR)
            hostile.read_to_the_end()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("wire", ["tcp", "http"])
def test_a_text_as_an_action_costs_little_and_keeps_nobody_waiting(wire: str) -> None:
    text = "9" * 203_000  # as an array of text it was 955 MB, and the others waited for 10 s
    actions = [text, [text], [["9" * 200] * 1000]]
    options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2.0)
    frontends = [lambda service: HttpServer(service, HttpOptions())]
    with ExitStack() as stack:
        server = stack.enter_context(SimulatorServer(FAKE_SIMULATORS, options, frontends=frontends))
        client: Any = (
            HttpSimulatorClient("http://{}:{}".format(*server.frontends[1].address))
            if wire == "http"
            else SimulatorClient(*server.address)
        )
        stack.enter_context(client)
        other = stack.enter_context(RawClient(server.address))
        client.select_simulator("fake")
        client.load_task("reach")
        client.reset(seed=0)
        stopping, waited = threading.Event(), [0.0]

        def ask() -> None:
            while not stopping.is_set():
                begun = time.monotonic()
                other.ask({"method": "ping"})
                waited.append(time.monotonic() - begun)

        asking = threading.Thread(target=ask)
        asking.start()
        tracemalloc.start()
        try:
            for action in actions:
                with pytest.raises(InvalidParams, match="expected"):
                    client.step(action)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            stopping.set()
            asking.join()
        assert client.step([0, 0, 0]).reward is not None
    assert peak < 10 * len(text)  # client and server together
    assert max(waited) < 0.5  # 50 ms, on a machine that does other work, traced
