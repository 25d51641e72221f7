"""openpi's wire: what each side sends, in which order, and what clients that lie, stall or attack cause."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO

import msgpack
import numpy as np
import pytest
from certificates import Certificates
from frontend_server import port_of, running_frontends
from raw_client import wait_until
from websocket_frames import masked
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from robowire.frontends.openpi.codec import decode, encode
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, FailingPolicy, SlowPolicy
from robowire.transport.tls import client_tls

TOKEN = "a token of some length"
STATE = np.array([1.0, 2, 3])
ACTIONS = STATE + np.arange(4.0)[:, np.newaxis]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)  # the client's own take a moment


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    limits = {"max_payload": 1 << 20, "frame_timeout_s": 0.3, "send_timeout_s": 0.3}
    with running_frontends(EchoPolicy(), openpi_port=0, **limits) as running:
        yield running


class Client:
    """A client of the wire: metadata first, then one message for each."""

    def __init__(self, server: PolicyServer, **options: Any) -> None:
        uri = options.pop("uri", f"ws://127.0.0.1:{port_of(server, 'openpi')}")
        self._open = ExitStack()
        self.socket: ClientConnection = self._open.enter_context(
            connect(uri, compression=None, max_size=None, open_timeout=5, close_timeout=1, **options)
        )
        first = self.socket.recv(5)
        assert isinstance(first, bytes)
        self.metadata = decode(first)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def send(self, **observation: Any) -> None:
        self.socket.send(encode(observation))

    def receive(self) -> Any:
        reply = self.socket.recv(5)
        return reply if isinstance(reply, str) else decode(reply)

    def ask(self, **observation: Any) -> Any:
        self.send(**observation)
        return self.receive()

    def closed_with(self) -> int | None:
        """Return the code with which the server closes the connection, which it must do soon."""
        try:
            while True:
                self.socket.recv(5)
        except ConnectionClosed as closed:
            return None if closed.rcvd is None else closed.rcvd.code


def is_served(server: PolicyServer) -> bool:
    with Client(server) as honest:
        return bool((honest.ask(state=STATE)["actions"] == ACTIONS).all())


def get(server: PolicyServer, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server, "openpi"), timeout=5)
    connection.request("GET", path, headers=headers)
    with connection.getresponse() as response:
        found = response.status, response.read().decode(), response.headers["Content-Type"]
    connection.close()
    return found


def upgrade(server: PolicyServer) -> socket.socket:
    """Return a connection after its upgrade, for bytes that no library would send."""
    sock = socket.create_connection(("127.0.0.1", port_of(server, "openpi")), timeout=5)
    sock.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # and nothing of the frames behind it
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return sock


def ended(sock: socket.socket) -> bool:
    """Return whether the server ends the connection, which it must do soon."""
    with suppress(ConnectionError):
        while sock.recv(65536):
            pass
    return True


# -- what openpi's client expects ----------------------------------------------------------------------------


def test_a_health_check_is_answered_before_the_upgrade_and_other_paths_are_told_to_upgrade(
    server: PolicyServer,
) -> None:
    assert get(server, "/healthz") == (200, "OK\n", "text/plain; charset=utf-8")
    assert get(server, "/")[0] == 426
    assert get(server, "/metrics")[0] == 426


def test_replies_hold_arrays_and_plain_numbers(server: PolicyServer) -> None:
    with Client(server) as client:
        assert client.metadata["action_horizon"] == 4
        first, second = client.ask(state=STATE), client.ask(state=list(STATE), prompt=b"bytes are read too")
    for reply in first, second:
        np.testing.assert_array_equal(reply["actions"], ACTIONS)
        assert type(reply["policy_timing"]["infer_ms"]) is float
    assert set(first["server_timing"]) == {"infer_ms"}
    assert type(second["server_timing"]["prev_total_ms"]) is float


def test_numpy_scalars_and_views_of_every_order_are_read(server: PolicyServer) -> None:
    spec = PolicySpec(policy="any", camera_names=("top",), state_dim=2, action_dim=2, chunk_size=2)
    with running_frontends(ConstantPolicy(spec), openpi_port=0) as other, Client(other) as client:
        message = {
            "images": {"top": np.asfortranarray(np.zeros((3, 8, 6), np.float16))},
            "state": np.array([1, 2], ">i8"),
            "prompt": np.str_("text"),
            "timestep": np.int64(3),
        }
        assert client.ask(**message)["actions"].shape == (2, 2)
    with Client(server) as client:
        assert client.ask(**{"observation/state": STATE.astype(np.float32)})["actions"].shape == (4, 3)


def test_alohas_nested_names_and_droids_parts_are_read_with_their_key_maps() -> None:
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    spec = PolicySpec(policy="a", camera_names=cameras, state_dim=14, action_dim=14, chunk_size=2)
    with running_frontends(ConstantPolicy(spec), openpi_port=0, key_map="aloha") as server, Client(
        server
    ) as client:
        images = {name: np.zeros((3, 6, 8), np.uint8) for name in reversed(cameras)}
        assert client.ask(images=images, state=np.zeros(14))["actions"].shape == (2, 14)
    layouts = {"state_layout": "joint_pos(7) gripper_open(1)", "action_layout": "joint_vel(7) gripper(1)"}
    spec = PolicySpec(policy="d", camera_names=(), state_dim=8, action_dim=8, ctrl_space="joint", **layouts)
    with running_frontends(ConstantPolicy(spec), openpi_port=0, key_map="droid") as server, Client(
        server
    ) as client:
        parts = {"observation/joint_position": np.zeros(7), "observation/gripper_position": np.float64(1)}
        np.testing.assert_array_equal(client.ask(**parts, prompt="x")["actions"], np.full((1, 8), 0.5))
        assert client.metadata["action_gripper"] == "0 open, 1 closed"
        assert client.metadata["action_space"] == "joint_velocity"


def test_a_batch_is_answered_by_one_reply_with_a_batch(server: PolicyServer) -> None:
    with Client(server) as client:
        reply = client.ask(batch=[{"state": STATE + row, "prompt": "x"} for row in range(3)])
        for row, answer in enumerate(reply["batch"]):
            np.testing.assert_array_equal(answer["actions"], ACTIONS + row)
        assert "infer_ms" in reply["server_timing"]


def test_roboarenas_endpoints_answer_the_array_itself_and_a_text() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, temporal_agg=True) as server, Client(
        server
    ) as client:

        def ask(value: float, session: str) -> float:
            actions = client.ask(endpoint="infer", session_id=session, state=STATE * 0 + value)
            assert actions.shape == (1, 3)
            return float(actions[0, 0])

        assert ask(0, "a") == 0
        assert 1 < ask(10, "a") < 10  # averaged with the chunk before
        assert ask(10, "b") == 10  # another session, another episode
        assert client.ask(endpoint="reset") == "reset successful"
        assert ask(20, "b") == 20
        assert 20 < ask(30, "b") < 30


def test_an_error_is_text_and_close_1011_for_openpis_client(server: PolicyServer) -> None:
    with Client(server) as client:
        error = client.ask(state=STATE[:2])
        assert error == "spec_mismatch: the state has 2 numbers ('state' 2), expected 3"
        assert client.closed_with() == 1011


def test_a_client_that_says_so_gets_typed_errors_and_keeps_its_connection() -> None:
    with running_frontends(FailingPolicy(), openpi_port=0) as server, Client(server) as client:
        error = client.ask(state=STATE[:2], errors="typed")
        assert error["status"] == error["type"] == "error"
        assert error["error_type"] == "spec_mismatch"
        assert client.ask(state=STATE, prompt="raise")["error_type"] == "backend_error"
        assert client.ask(state=STATE)["actions"].shape == (4, 3)
        assert client.ask(state=STATE, errors="text", prompt="raise").startswith("backend_error: ")
        assert client.closed_with() == 1011


# -- the token, places, other sites --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Api-Key", "Bearer", "api-key"])
def test_the_token_comes_with_the_upgrade(kind: str) -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, token=TOKEN) as server:
        with Client(server, additional_headers={"Authorization": f"{kind} {TOKEN}"}) as client:
            assert client.ask(state=STATE)["actions"].shape == (4, 3)
        assert get(server, "/healthz")[0] == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Api-Key wrong"}, {"Authorization": TOKEN}])
def test_without_the_token_the_upgrade_is_refused(headers: dict[str, str]) -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, token=TOKEN) as server:
        with pytest.raises(InvalidStatus) as raised:
            Client(server, additional_headers=headers)
        assert raised.value.response.status_code == 401
        assert (raised.value.response.body or b"").startswith(b"unauthenticated: ")
        assert server.service.stats()["sessions"] == 0


def test_wrong_tokens_cost_a_growing_delay() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, token=TOKEN) as server:
        began = time.monotonic()
        for _ in range(5):
            assert get(server, "/", Authorization="Api-Key wrong")[0] == 401
        assert time.monotonic() - began > 0.25  # 0, 0, 0, 0.1 and 0.2 s


def test_nothing_is_received_before_the_token_was_looked_at() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, token=TOKEN, frame_timeout_s=2) as server:
        for _ in range(5):
            get(server, "/", Authorization="Api-Key wrong")
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += b"Authorization: Api-Key wrong\r\n\r\n"
        frame = b"\x82\xff" + struct.pack("!Q", 60 << 20) + b"mask" + bytes(50 << 20)
        tracemalloc.start()
        with socket.create_connection(("127.0.0.1", port_of(server, "openpi")), timeout=0.2) as sock:
            sock.sendall(head)
            with suppress(OSError):  # it stops reading
                sock.sendall(frame)
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 << 20


def test_idle_connections_do_not_keep_a_client_with_the_token_out() -> None:
    with running_frontends(
        EchoPolicy(), openpi_port=0, token=TOKEN, max_connections=3
    ) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server, "openpi")), timeout=5))
        began = time.monotonic()
        with Client(server, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as client:
            assert client.ask(state=STATE)["actions"].shape == (4, 3)
        assert time.monotonic() - began < 1


def test_a_client_past_max_connections_is_told_so() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, max_connections=2) as server, ExitStack() as stack:
        first = stack.enter_context(Client(server))
        stack.enter_context(Client(server))
        with pytest.raises(InvalidStatus) as raised:
            Client(server)
        assert raised.value.response.status_code == 503
        assert get(server, "/healthz")[0] == 200
        first.socket.close()
        wait_until(lambda: server.service.stats()["sessions_open"] == 1)
        assert is_served(server)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:1", "http://evil.example:{port}"]
)
def test_a_page_of_another_site_may_not_upgrade(server: PolicyServer, origin: str) -> None:
    port = port_of(server, "openpi")
    host = origin.format(port=port).removeprefix("http://") if "{port}" in origin else f"127.0.0.1:{port}"
    found = get(
        server, "/", Origin=origin.format(port=port), Host=host, Connection="Upgrade", Upgrade="websocket"
    )
    assert found[0] == 401
    assert found[1] == "unauthenticated: pages of another site may not ask this server\n"


def test_tls_is_that_of_the_server(certificates: Certificates) -> None:
    tls = {"tls_cert": certificates.server_cert, "tls_key": certificates.server_key}
    with running_frontends(EchoPolicy(), openpi_port=0, **tls) as server:
        uri = f"wss://localhost:{port_of(server, 'openpi')}"
        with Client(server, uri=uri, ssl=client_tls(ca=str(certificates.ca))) as client:
            assert client.ask(state=STATE)["actions"].shape == (4, 3)


# -- messages that lie ---------------------------------------------------------------------------------------


def array(**fields: Any) -> dict[bytes, Any]:
    honest = {"__ndarray__": True, "data": bytes(24), "dtype": "<f8", "shape": [3]}
    return {name.encode(): value for name, value in {**honest, **fields}.items()}


HOSTILE: dict[str, Any] = {
    "objects": array(dtype="|O"),
    "records": array(dtype="|V8"),
    "complex": array(dtype="<c16"),
    "a dtype that is code": array(dtype="__import__('os')"),
    "a dtype that is no text": array(dtype=[["a", "<f8"]]),
    "more than it sends": array(shape=[1 << 40]),
    "less than it sends": array(shape=[2]),
    "a negative length": array(shape=[-3, -1]),
    "lengths that overflow": array(shape=[1 << 31, 1 << 31, 1 << 31, 0], data=b""),
    "a shape that is no list": array(shape=24),
    "data that is no bytes": array(data="x" * 24),
    "many dimensions": array(shape=[1] * 60 + [3]),
    "a number that is none": {b"__npgeneric__": True, b"data": [1], b"dtype": "<f8"},
    "a number out of range": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
    "a pickle": msgpack.ExtType(42, b"\x80\x04."),
    "not a number": np.array([1, 2, np.nan]),
    "nested": {"a": {"b": {"c": STATE}}},
    "text": "x" * 100,
    "many numbers": [[1] * 60_000] * 5,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_value_that_lies_is_refused_with_a_reason(server: PolicyServer, name: str) -> None:
    with Client(server) as client:
        client.ask(state=STATE, errors="typed")
        error = client.ask(state=HOSTILE[name])
        assert error["error_type"] in ("invalid_params", "spec_mismatch")
        assert len(error["message"]) <= 500
        np.testing.assert_array_equal(client.ask(state=STATE)["actions"], ACTIONS)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no msgpack at all",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb(None),
        msgpack.packb({1: 2}),
        encode({"state": STATE})[:-3],
        encode({"state": STATE}) + b"more",
        b"\xdf\xff\xff\xff\xff",  # a map of four thousand million entries
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1" * 50_000,
        b"\x81\xa5state\xdd\x00\x00\xff\xff" + b"\x80" * 65_535,
        b"\x81\xa2\xff\xfe\xc0",  # a name that is not Unicode
    ],
)
def test_garbage_is_answered_and_the_connection_ended(server: PolicyServer, payload: bytes) -> None:
    with Client(server) as client:
        client.socket.send(payload)
        answer = client.receive()
        assert answer.startswith("invalid_params: ")
        assert len(answer) < 520
        assert answer.isprintable()
        assert client.closed_with() == 1011
    assert is_served(server)


def test_text_is_no_request(server: PolicyServer) -> None:
    with Client(server) as client:
        client.socket.send(json.dumps({"state": [1, 2, 3]}))
        assert client.receive() == "invalid_params: a request is a binary message of msgpack, not text"


def test_a_peers_words_are_bounded_and_printable(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(server) as client:
        answer = client.ask(**{"\x1b[31m\n" + "x" * 60_000: STATE})
    assert len(answer) < 520
    assert answer.isprintable()
    assert all(len(message) < 600 and message.isprintable() for message in caplog.messages)


def test_a_batch_past_the_limit_is_refused_before_it_is_read() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, max_waiting=4) as server, Client(server) as client:
        error = client.ask(batch=[{"state": STATE}] * 5, errors="typed")
        assert error["message"] == "the batch has 5 rows, expected at most 4: send several"
        for batch in ([], [1], {"a": 1}, "x"):
            assert client.ask(batch=batch)["error_type"] == "invalid_params"
        assert client.ask(batch=[{"state": STATE}], prompt="one for all")["error_type"] == "invalid_params"
        assert len(client.ask(batch=[{"state": STATE}] * 4)["batch"]) == 4


def test_small_things_in_great_number_cost_little_memory(server: PolicyServer) -> None:
    payloads = [
        b"\x81\xa5state\x9f" + (b"\xdc\xff\xff" + b"\x80" * 65_535) * 15,
        b"\x81\xa5state\x9f" + (b"\xdc\xff\xff" + b"\xcd\x04\x00" * 65_535) * 5,
    ]
    tracemalloc.start()
    for payload in payloads:
        assert len(payload) < 1 << 20
        with Client(server) as client:
            client.socket.send(payload)
            assert client.receive().startswith("invalid_params: ")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20
    assert is_served(server)


def test_a_client_that_does_not_wait_for_replies_has_one_message_waiting_here() -> None:
    policy = SlowPolicy(ConstantPolicy(PolicySpec(chunk_size=4, action_dim=3)))
    message = encode({"image": np.zeros((500, 600, 3), np.uint8)})  # 0.9 MB
    with running_frontends(policy, openpi_port=0) as running, Client(running) as client:
        tracemalloc.start()
        sending = threading.Thread(target=lambda: [client.socket.send(message) for _ in range(30)])
        sending.start()
        assert policy.started.wait(5)
        time.sleep(0.3)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        policy.release.set()
        assert all(client.receive()["actions"].shape == (4, 3) for _ in range(30))
        sending.join()
    # In hand: a message and its image in the policy's layout; waiting: a message and the beginning of another
    # one; the client's own: a message.
    assert held < 8 << 20


# -- clients that stall --------------------------------------------------------------------------------------


def test_a_message_past_the_limit_ends_the_connection(server: PolicyServer) -> None:
    with Client(server) as client:
        with suppress(ConnectionClosed):
            client.socket.send(bytes((1 << 20) + 1))
        assert client.closed_with() == 1009
    with upgrade(server) as sock:
        sock.sendall(b"\x82\xff" + struct.pack("!Q", 1 << 62) + b"mask")  # only announced
        assert ended(sock)
    assert is_served(server)


@pytest.mark.parametrize(
    "begin",
    [
        b"\x82\xfe\x10\x00mask" + b"half",
        b"\x02\x84mask" + b"full",  # a fragment, and never the next one
        b"\x82",
    ],
)
def test_half_a_message_is_closed_and_pings_gain_no_time(server: PolicyServer, begin: bytes) -> None:
    with upgrade(server) as sock:
        started = time.monotonic()
        sock.sendall(begin)
        with suppress(ConnectionError):
            while time.monotonic() < started + 5:
                sock.sendall(b"\x89\x80mask" if begin[0] == 2 else b"\0")
                time.sleep(0.02)
        assert ended(sock)
        assert time.monotonic() < started + 2
    assert is_served(server)


@pytest.mark.parametrize("begin", [b"\x82", b"\x82\xfe\x00\x7fmaskhalf", b"\x82\xfe\x10\x00maskhalf"])
def test_half_a_message_after_whole_ones_is_closed(server: PolicyServer, begin: bytes) -> None:
    message = encode({"state": STATE})
    with upgrade(server) as sock:
        sock.recv(65536)
        for _ in range(3):
            sock.sendall(masked(message))
            assert sock.recv(65536)[0] == 0x82
        started = time.monotonic()
        sock.sendall(begin)
        with suppress(ConnectionError):
            while time.monotonic() < started + 5:
                sock.sendall(b"\0")
                time.sleep(0.02)
        assert ended(sock)
        assert time.monotonic() < started + 2
    assert is_served(server)


@pytest.mark.parametrize("step", [1, 7, 60, 1 << 16])
def test_messages_are_answered_in_their_order_however_they_are_cut(server: PolicyServer, step: int) -> None:
    """Whole messages, messages in fragments, pings between and inside, all at once."""
    first, second, third = (encode({"state": STATE + i, "prompt": "lift" * 8 * i}) for i in range(3))
    stream = b"".join(
        (
            *(masked(first), masked(second), masked(b"one", 0x89), masked(first)),
            *(masked(second[:9], 0x02), masked(b"two", 0x89), masked(second[9:], 0x80)),
            *(masked(third), masked(third), masked(first)),
        )
    )
    with upgrade(server) as sock, sock.makefile("rb") as received:
        sock.sendall(masked(first))
        list(frames(received, 2))  # the metadata, and the answer
        for i in range(0, len(stream), step):
            sock.sendall(stream[i : i + step])
        found = [reply for opcode, reply in frames(received, 9) if opcode == 2]
    states = [float(decode(reply)["actions"][0, 0]) for reply in found]
    assert states == [float(STATE[0]) + i for i in (0, 1, 0, 1, 2, 2, 0)]


def frames(stream: BinaryIO, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and data of a server's frames."""
    for _ in range(count):
        first, length = stream.read(2)
        if length > 125:
            length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
        yield first & 15, stream.read(length)


def test_the_same_form_with_other_numbers_and_words_is_answered_by_them(server: PolicyServer) -> None:
    with Client(server) as client:
        client.ask(state=STATE, errors="typed")
        for step in range(6):
            reply = client.ask(state=STATE + step)
            np.testing.assert_array_equal(reply["actions"], ACTIONS + step)
        nan = client.ask(state=np.array([1, np.nan, 3]))
        assert nan["error_type"] == "spec_mismatch"
        assert nan["message"].startswith("state[1] is nan")
        other = client.ask(stata=STATE)  # of the same length
        assert other["type"] == "error"
        np.testing.assert_array_equal(client.ask(state=STATE)["actions"], ACTIONS)


class _Listener(EchoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.heard += [str(observation.raw_lang) for observation in observations]
        return super().infer(observations)


def test_words_of_observations_of_one_form_are_heeded_each_time() -> None:
    policy = _Listener()
    with running_frontends(policy, openpi_port=0) as server, Client(server) as client:
        for step in range(12):
            session_id = "ab"[step // 3 % 2]
            array = client.ask(
                state=STATE + step, endpoint="infer", session_id=session_id, prompt=f"lift {step % 3}"
            )
            np.testing.assert_array_equal(array, ACTIONS + step)
        assert policy.heard == [f"lift {step % 3}" for step in range(12)]


def test_a_client_that_asks_is_not_closed_for_the_time_of_its_first_request() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, session_timeout_s=0.2) as server, Client(
        server
    ) as client:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert "actions" in client.ask(state=STATE)
        assert client.closed_with() == 1001


def test_a_client_that_says_nothing_for_too_long_is_closed() -> None:
    with running_frontends(EchoPolicy(), openpi_port=0, session_timeout_s=0.2) as server, Client(
        server
    ) as client:
        assert client.closed_with() == 1001


def test_a_connection_without_a_request_is_closed(server: PolicyServer) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server, "openpi")), timeout=5) as sock:
        sock.sendall(b"GET / HT")
        assert ended(sock)


def test_a_client_that_never_reads_is_closed_and_delays_nobody(server: PolicyServer) -> None:
    message = encode({"batch": [{"state": STATE}] * 200})
    mask = struct.pack("!BBH", 0x82, 0xFE, len(message)) if len(message) < 65536 else None
    assert mask is not None
    with upgrade(server) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(OSError):  # the server stops reading, then closes
            for _ in range(5000):
                deaf.sendall(mask + bytes(4) + message)
        assert is_served(server)


def test_pings_are_answered_and_clients_share_a_batch_while_the_policy_works() -> None:
    policy = SlowPolicy()
    with running_frontends(policy, openpi_port=0) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(9)]
        clients[0].send(state=STATE)
        assert policy.started.wait(5)
        assert clients[0].socket.ping().wait(2)
        for client in clients[1:]:
            client.send(state=STATE)
        wait_until(lambda: server.service.requests_in_hand == 9)
        policy.release.set()
        for client in clients:
            np.testing.assert_array_equal(client.receive()["actions"], ACTIONS)
    assert policy.batch_sizes == [1, 8]


def test_rows_of_a_client_that_left_are_not_computed() -> None:
    policy = SlowPolicy()
    with running_frontends(policy, openpi_port=0) as server, Client(server) as stays:
        stays.send(state=STATE)
        assert policy.started.wait(5)
        with Client(server) as leaves:
            leaves.send(batch=[{"state": STATE}] * 20)
            wait_until(lambda: server.service.requests_in_hand == 2)
        time.sleep(0.06)  # the dispatcher looks after 50 ms
        policy.release.set()
        assert stays.receive()["actions"].shape == (4, 3)
        wait_until(lambda: server.service.requests_in_hand == 0)
    assert policy.batch_sizes == [1]


# -- the end -------------------------------------------------------------------------------------------------


def test_a_drain_answers_what_is_in_hand_and_closes_idle_connections() -> None:
    policy = SlowPolicy()
    with ExitStack() as stack, running_frontends(policy, openpi_port=0) as server:
        busy, idle = stack.enter_context(Client(server)), stack.enter_context(Client(server))
        busy.send(state=STATE)
        assert policy.started.wait(5)
        server.stop()
        wait_until(lambda: server.service.draining)
        policy.release.set()
        np.testing.assert_array_equal(busy.receive()["actions"], ACTIONS)
        assert busy.closed_with() == 1001
        assert idle.closed_with() == 1001


class AnyThreadSlowPolicy(SlowPolicy):
    """Runs on the thread that received the observation."""

    any_thread = True


@pytest.mark.parametrize("first", [False, True], ids=["at first", "after it was fast"])
@pytest.mark.parametrize("policy", [SlowPolicy, AnyThreadSlowPolicy])
def test_a_policy_that_hangs_does_not_hold_the_server(first: bool, policy: type[SlowPolicy]) -> None:
    slow = policy()
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        with running_frontends(slow, openpi_port=0, drain_s=0.6) as server:
            client = stack.enter_context(Client(server))
            if first:  # the frontend then answers in its loop
                slow.release.set()
                assert client.ask(state=STATE)["actions"].shape == (4, 3)
                slow.release.clear()
                slow.started.clear()
            answer = pool.submit(client.ask, state=STATE)
            assert slow.started.wait(5)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        slow.release.set()
        with suppress(ConnectionClosed):
            assert answer.result(5) is not None
    ends = ("openpi", "dispatcher")
    wait_until(lambda: not any(thread.name.startswith(ends) for thread in threading.enumerate()))
