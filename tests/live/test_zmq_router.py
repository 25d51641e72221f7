"""The ZeroMQ server with libzmq's own sockets, and with peers that lie, stall and flood."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest
import zmq
from raw_client import wait_until

from robowire.errors import ConfigurationError, RequestError
from robowire.frontends.zmq_router import ZmqRouter
from robowire.frontends.zmtp import SIGNATURE
from robowire.serving.runner import Runner
from robowire.serving.tcp.options import TcpOptions
from robowire.testing.echo_service import EchoService
from robowire.wire.messages import error_reply

MIB = 1 << 20
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"REQ"


class EchoRouter(ZmqRouter):
    """Answers a body with itself; ``wait`` waits for ``release``. The token is the whole body."""

    name = "echo"

    def __init__(self, service: EchoService, options: TcpOptions, port: int = 0) -> None:
        super().__init__(service, options, port)
        self.waits = threading.Event()
        self.release = threading.Event()

    def answer(self, session: Any, body: bytearray) -> bytes:
        with self.service.request_in_hand(session):
            if body == b"wait":
                self.waits.set()
                self.release.wait(10)
            return b"%d:" % session.id + bytes(body)

    def failure(self, error: RequestError) -> bytes:
        return json.dumps(error_reply(error)).encode()

    def token_of(self, body: bytearray) -> object:
        return body.decode() if body.startswith(b"s3cret") else None


@contextmanager
def running(**options: Any) -> Iterator[EchoRouter]:
    given = TcpOptions(**{"host": "127.0.0.1", "port": 0, "drain_s": 2.0, **options})
    service = EchoService(token=given.token)
    router = EchoRouter(service, given)
    with Runner(service, [router], drain_s=given.drain_s):
        yield router
        router.release.set()


@contextmanager
def peer(router: EchoRouter, kind: int = zmq.REQ, **settings: int) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.RCVTIMEO, 5000)
    for name, value in settings.items():
        sock.setsockopt(getattr(zmq, name), value)
    sock.connect(router.url)
    try:
        yield sock
    finally:
        sock.close()
        context.term()


@contextmanager
def raw(router: EchoRouter, *, shake: bool = True) -> Iterator[socket.socket]:
    with socket.create_connection(router.address, timeout=5) as sock:
        if shake:
            sock.sendall(GREETING + READY)
            received = b""
            while len(received) < 64 + 2 + 6 or b"ROUTER" not in received:
                received += sock.recv(4096)
        yield sock


def ask(sock: zmq.Socket[bytes], body: bytes) -> bytes:
    sock.send(body)
    return sock.recv()


def frame(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


def ends(sock: socket.socket) -> bool:
    """Whether the server ended the connection, within five seconds."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def sends_until_it_fails(sock: socket.socket, data: bytes, *, count: int, pause_s: float = 0) -> None:
    """The server ends the connection, or stops reading, before ``count`` sends."""
    with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        for _ in range(count):
            sock.sendall(data)
            time.sleep(pause_s)
        pytest.fail("the server took everything")


@pytest.mark.usefixtures("nothing_is_left_behind")
def test_a_req_socket_is_answered_by_one_session() -> None:
    with running() as router, peer(router) as sock:
        assert [ask(sock, b"a"), ask(sock, b""), ask(sock, b"c" * 3 * MIB)] == [
            *(b"1:a", b"1:"),
            b"1:" + b"c" * 3 * MIB,
        ]
        with peer(router) as other:
            assert ask(other, b"x") == b"2:x"


def test_the_session_ends_with_the_connection() -> None:
    with running() as router:
        with peer(router) as sock:
            ask(sock, b"a")
        assert router.service.closed.wait(5)


def test_a_dealer_gets_its_answers_in_order_with_its_envelope() -> None:
    with running() as router, peer(router, zmq.DEALER) as sock:
        for number in range(20):
            sock.send_multipart([b"", b"%d" % number])
        answers = [sock.recv_multipart() for _ in range(20)]
    assert answers == [[b"", b"1:%d" % number] for number in range(20)]


def test_ids_of_req_correlate_go_back() -> None:
    with running() as router, peer(router, REQ_CORRELATE=1, REQ_RELAXED=1) as sock:
        assert ask(sock, b"a") == b"1:a"


@pytest.mark.parametrize("frames", [[b"one"], [b"", b"one", b"two"], [b"a", b"b", b"c"], [b""]])
def test_other_counts_of_frames_are_an_error(frames: list[bytes]) -> None:
    with running() as router, peer(router, zmq.DEALER) as sock:
        sock.send_multipart(frames)
        assert json.loads(sock.recv_multipart()[-1])["error_type"] == "invalid_params"
        sock.send_multipart([b"", b"fine"])
        assert sock.recv_multipart() == [b"", b"1:fine"]


@pytest.mark.parametrize("kind", [zmq.SUB, zmq.PAIR])
def test_other_kinds_of_sockets_are_refused(kind: int, caplog: pytest.LogCaptureFixture) -> None:
    with running() as router, peer(router, kind):
        wait_until(lambda: "connected to a ROUTER: use REQ or DEALER" in caplog.text)


def test_a_slow_client_delays_no_other() -> None:
    with running() as router, peer(router) as slow, peer(router) as quick:
        slow.send(b"wait")
        assert router.waits.wait(5)
        assert ask(quick, b"a").endswith(b":a")
        router.release.set()
        assert slow.recv().endswith(b":wait")


def test_heartbeats_are_answered_while_a_request_is_in_hand() -> None:
    settings = {"HEARTBEAT_IVL": 100, "HEARTBEAT_TIMEOUT": 600}
    with running() as router, peer(router, **settings) as sock:
        sock.send(b"wait")
        assert router.waits.wait(5)
        time.sleep(1.5)
        router.release.set()
        assert sock.recv() == b"1:wait"  # libzmq would have dialled again, and the reply been lost


def test_ipv6() -> None:
    with running(host="::1") as router:
        assert router.url.startswith("tcp://[::1]:")
        with peer(router, IPV6=1) as sock:
            assert ask(sock, b"a") == b"1:a"


def test_a_port_in_use_is_named_with_its_flag() -> None:
    with running() as router:
        port = router.address[1]
        with pytest.raises(ConfigurationError, match=rf"^port {port} is in use: .* with --echo_port$"):
            EchoRouter(router.service, TcpOptions(host="127.0.0.1"), port)


def test_tls_is_refused_beyond_loopback() -> None:
    with pytest.raises(ConfigurationError, match=r"^--echo_port is ZeroMQ's, which has no TLS"):
        EchoRouter(EchoService(), TcpOptions(tls_cert="any.pem"))


def test_the_token_opens_the_session() -> None:
    with running(token="s3cret") as router, peer(router) as sock:
        assert json.loads(ask(sock, b"a"))["error_type"] == "unauthenticated"
        assert json.loads(ask(sock, b"s3cret7"))["message"] == "the token is wrong"
        assert ask(sock, b"s3cret") == b"1:s3cret"
        assert ask(sock, b"a") == b"1:a"


def test_clients_without_the_token_do_not_keep_its_holder_out() -> None:
    with running(token="s3cret", max_connections=2) as router:
        floods = [socket.create_connection(router.address, timeout=5) for _ in range(40)]
        with peer(router) as sock:
            assert ask(sock, b"s3cret").endswith(b"s3cret")
        for flood in floods:
            flood.close()


def test_large_requests_without_the_token_take_the_memory_of_a_few() -> None:
    half = frame(bytes(4 * MIB))[: 2 * MIB]
    with running(token="s3cret") as router, ExitStack() as stack:
        begun = []
        for _ in range(6):
            begun.append(stack.enter_context(raw(router)))
            begun[-1].sendall(frame(b"", 1) + half)
            wait_until(lambda: len(router._large) == min(len(begun), 4))
        # The two that began first were closed; the others go on, and keep nobody out who shows the token.
        assert all(ends(sock) for sock in begun[:2])
        with peer(router) as client:
            assert ask(client, b"s3cret").endswith(b"s3cret")
        for sock in begun[2:]:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        begun[2].setblocking(True)
        begun[2].sendall(frame(bytes(4 * MIB))[2 * MIB :])
        wait_until(lambda: len(router._large) == 3)  # it is complete, and refused


def test_a_client_past_the_limit_is_told_so() -> None:
    with running(max_connections=1) as router, peer(router) as first, peer(router) as second:
        assert ask(first, b"a") == b"1:a"
        assert json.loads(ask(second, b"b"))["error_type"] == "overloaded"
        assert ask(first, b"c") == b"1:c"


def test_an_idle_client_yields_its_place() -> None:
    with running(session_timeout_s=0.3, max_connections=1) as router, raw(router) as sock:
        assert ends(sock)


def test_the_reply_in_hand_is_sent_when_the_server_stops() -> None:
    with peer_of_stopping_server() as answers:
        assert answers == [b"1:wait"]


@contextmanager
def peer_of_stopping_server() -> Iterator[list[bytes]]:
    given = TcpOptions(host="127.0.0.1", port=0, drain_s=5.0)
    service = EchoService()
    router = EchoRouter(service, given)
    runner = Runner(service, [router], drain_s=5.0)
    runner.start()
    with peer(router) as sock:
        sock.send(b"wait")
        assert router.waits.wait(5)
        runner.stop()
        router.release.set()
        answers = [sock.recv()]
        runner.shutdown()
        yield answers


def test_a_request_that_is_too_large_is_answered_before_memory_is_set_aside() -> None:
    with running(max_payload=MIB) as router, peer(router) as sock:
        reply = json.loads(ask(sock, bytes(5 * MIB)))
    assert reply["error_type"] == "invalid_params"
    assert reply["message"] == f"the request has {5 * MIB} bytes, expected at most {MIB}"


def test_a_message_of_frames_without_an_end_is_cut_off() -> None:
    # libzmq has no limit for it: 400 such frames are 400 MiB of its memory.
    with running(max_payload=4 * MIB) as router, raw(router) as sock:
        before = psutil.Process().memory_info().rss
        sends_until_it_fails(sock, frame(bytes(MIB), flags=1), count=400)
        assert psutil.Process().memory_info().rss - before < 16 * MIB


def test_small_frames_without_an_end_are_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    with running() as router, raw(router) as sock:
        sock.sendall(b"\x01\x01x" * 17)
        assert ends(sock)
        wait_until(lambda: "a message has more than 16 frames" in caplog.text)


def test_a_giant_frame_that_is_announced_costs_no_memory() -> None:
    with running() as router, raw(router) as sock:
        before = psutil.Process().memory_info().rss
        sock.sendall(b"\x01\x00\x02" + struct.pack(">Q", 2**62))
        assert b"invalid_params" in sock.recv(4096)
        assert psutil.Process().memory_info().rss - before < 8 * MIB


@pytest.mark.parametrize(
    "start",
    [
        *(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00\x00\x00\x05hello", b"\xff" * 64, bytes(200)),
        SIGNATURE + b"\x01\x00" + bytes(52),  # ZMTP 2
        SIGNATURE + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32),
        GREETING + b"\x04\xff" + b"x" * 255,
        GREETING + b"\x00\x00",
        GREETING + b"\xf0\x00",
        GREETING + b"\x04\x00",
        GREETING + b"\x06" + struct.pack(">Q", 2**40),
        GREETING + b"\x04\x0d\x05READY\x0bSocket",
        GREETING + READY + b"\x05\x01x",
    ],
)
def test_garbage_ends_its_connection_only(start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with running() as router, peer(router) as sock:
        ask(sock, b"a")
        with raw(router, shake=False) as hostile:
            hostile.sendall(start)
            assert ends(hostile)
        assert ask(sock, b"b") == b"1:b"
    warnings = [line for line in caplog.messages if "cannot be read" in line]
    assert len(warnings) == 1
    assert len(warnings[0]) < 600
    assert warnings[0].isprintable()


def test_a_handshake_that_stalls_ends() -> None:
    with running(frame_timeout_s=0.3) as router, raw(router, shake=False) as sock:
        sock.sendall(GREETING[:5])
        assert ends(sock)


def test_a_message_that_stalls_ends_and_heartbeats_do_not_prolong_it() -> None:
    with running(frame_timeout_s=0.5) as router, raw(router) as sock:
        sock.sendall(b"\x01\x00\x02" + struct.pack(">Q", 100) + b"x")
        assert ends(sock)


def test_heartbeats_do_not_keep_an_idle_place() -> None:
    ping = b"\x04\x07\x04PING\x00\x00"
    with running(session_timeout_s=0.5) as router, raw(router) as sock:
        sends_until_it_fails(sock, ping, count=100, pause_s=0.05)


def test_a_client_that_does_not_read_loses_its_connection() -> None:
    with running(send_timeout_s=0.3, max_payload=32 * MIB) as router, raw(router) as sock:
        sock.sendall(b"\x01\x00" + frame(bytes(32 * MIB)))
        assert router.service.closed.wait(5)


def test_a_flood_of_requests_is_read_one_at_a_time() -> None:
    with running(max_payload=MIB) as router, raw(router) as sock, peer(router) as other:
        before = psutil.Process().memory_info().rss
        sock.sendall(b"\x01\x00" + frame(b"wait"))
        sock.settimeout(0.5)
        sends_until_it_fails(sock, b"\x01\x00" + frame(bytes(MIB)), count=200)
        assert ask(other, b"a").endswith(b":a")
        assert psutil.Process().memory_info().rss - before < 16 * MIB


def test_a_bug_in_an_answer_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "robowire.serving.tcp.server")
    with running() as router, peer(router) as sock:
        router.answer = lambda session, body: 1 / 0  # type: ignore[assignment,return-value]
        sock.send(b"a")
        assert router.service.closed.wait(5)
