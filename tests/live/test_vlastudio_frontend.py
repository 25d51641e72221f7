"""VLAStudio's HTTP wire over real sockets: what is refused, and that nobody else notices."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import Certificates
from frontend_server import running_frontends
from raw_client import wait_until
from server_process import ServerProcess, run_server

from robowire.frontends.vlastudio.codec import encode_call, read_actions
from robowire.interfaces import Policy
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.specs import PolicySpec
from robowire.testing import EchoPolicy, FailingPolicy, SlowPolicy

JSON = {"Content-Type": "application/json"}


class BrightnessPolicy:
    """Answers height, width and mean of the first image, which is 8x8."""

    spec = PolicySpec(camera_names=("front",), image_height=8, image_width=8, state_dim=1, chunk_size=1)

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        images = [observation.image[0] for observation in observations if observation.image is not None]
        return np.float32([[[*image.shape[1:], image.mean()]] for image in images])


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)  # pooled threads are not waited for


def serving(policy: Policy | None = None, **options: Any) -> AbstractContextManager[PolicyServer]:
    return running_frontends(policy or EchoPolicy(), vlastudio_port=0, **options)


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with serving(max_payload=1 << 20) as server:
        yield server


def ask(
    server: PolicyServer,
    body: bytes | None = None,
    path: str = "/inference",
    method: str = "POST",
    headers: Mapping[str, str] = JSON,
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*server.frontends[1].address, timeout=5)
    try:
        connection.request(method, path, body, dict(headers))
        reply = connection.getresponse()
        content = reply.read()
        return reply.status, json.loads(content) if content else None
    finally:
        connection.close()


def call(*state: float, **named: Any) -> bytes:
    return encode_call(MetaObs(state=np.float32(state), **named), client="robot")


def is_served(server: PolicyServer, **headers: str) -> bool:
    status, reply = ask(server, call(1, 2, 3), headers={**JSON, **headers})
    return status == 200 and len(reply["mact_list"]) == 4


def test_an_observation_is_answered_by_the_chunk(server: PolicyServer) -> None:
    status, reply = ask(server, call(1, 2, 3))
    assert status == 200
    steps = read_actions(json.dumps(reply).encode())
    assert [[row.action.tolist() for row in step] for step in steps] == [
        [[1 + i, 2 + i, 3 + i]] for i in range(4)
    ]


def test_a_batch_is_answered_by_its_rows(server: PolicyServer) -> None:
    status, reply = ask(server, encode_call(MetaObs(state=np.float32([[1, 2, 3], [4, 5, 6]]))))
    assert status == 200
    assert [len(step) for step in reply["mact_list"]] == [2] * 4


def test_images_of_another_size_are_resized_where_the_key_map_says_so(tmp_path: Path) -> None:
    policy = BrightnessPolicy()
    image = np.full((1, 3, 16, 32), 200, np.uint8)
    seen = encode_call(MetaObs(state=np.float32([0]), image=image), client="robot")
    with serving(policy) as server:
        status, reply = ask(server, seen)
        assert (status, reply["error_type"]) == (422, "spec_mismatch")
    key_map = tmp_path / "keys.yaml"
    key_map.write_text("resize: pad\n")
    with serving(policy, key_map=str(key_map)) as server:
        status, reply = ask(server, seen)
        assert status == 200
        ((row,),) = read_actions(json.dumps(reply).encode())
        # The image fills half of the 8x8 pixels; the bars are black.
        assert row.action.tolist() == [8, 8, 100]
        batch = MetaObs(state=np.zeros((2, 1), np.float32), image=np.stack([image, image // 2]))
        status, reply = ask(server, encode_call(batch, client="robot"))
        (step,) = read_actions(json.dumps(reply).encode())
        assert [row.action.tolist() for row in step] == [[8, 8, 100], [8, 8, 50]]


def test_health_tells_what_clients_ask_for() -> None:
    with serving(token="secret") as server:
        ask(server, call(1, 2, 3), headers={**JSON, "Authorization": "Bearer secret"})
        assert ask(server, path="/health", method="GET") == (
            200,
            {
                "status": "ok",
                "requests_processed": 1,
                "batches_processed": 1,
                "superseded_requests": 0,
                "image_codecs": ["jpeg_nchw", "jpeg", "ndarray"],
            },
        )
        server.service.begin_drain()
        status, reply = ask(server, path="/health", method="GET")
        assert (status, reply["error_type"]) == (503, "shutting_down")


@pytest.mark.parametrize(
    ("body", "path", "method", "headers", "status", "error_type"),
    [
        (b"{", "/inference", "POST", JSON, 422, "invalid_params"),
        (b"", "/inference", "POST", JSON, 422, "invalid_params"),
        (b"{}", "/inference", "POST", {"Content-Type": "text/plain"}, 415, "invalid_params"),
        (b"{}", "/inference", "POST", {}, 415, "invalid_params"),
        (
            b"a=1",
            "/inference",
            "POST",
            {"Content-Type": "application/x-www-form-urlencoded"},
            415,
            "invalid_params",
        ),
        (call(1), "/inference", "POST", JSON, 422, "spec_mismatch"),
        (call(float("nan"), 0, 0), "/inference", "POST", JSON, 422, "spec_mismatch"),
        (call(1, 2, 3), "/inference", "PUT", JSON, 405, "unknown_method"),
        (None, "/inference", "GET", {}, 405, "unknown_method"),
        (call(1, 2, 3), "/health", "POST", JSON, 405, "unknown_method"),
        (None, "/metrics", "GET", {}, 404, "unknown_method"),
        (None, "/" + "%0a" * 300, "GET", {}, 404, "unknown_method"),
    ],
)
def test_a_wrong_call_gets_a_typed_error_and_a_status(
    server: PolicyServer,
    body: bytes | None,
    path: str,
    method: str,
    headers: Mapping[str, str],
    status: int,
    error_type: str,
) -> None:
    found, reply = ask(server, body, path, method, headers)
    assert (found, reply["error_type"], reply["status"]) == (status, error_type, "error")
    assert len(reply["message"]) <= 500
    assert reply["message"].isprintable()


def test_a_policy_that_fails_is_a_bad_gateway() -> None:
    with serving(FailingPolicy()) as server:
        status, reply = ask(server, call(1, 2, 3, raw_lang="raise"))
        assert (status, reply["error_type"]) == (502, "backend_error")
        assert is_served(server)


# -- who may ask


def test_nothing_is_read_without_the_token() -> None:
    with serving(token="secret") as server:
        told = (
            "this server wants a token: send 'Authorization: Bearer TOKEN', or address it as "
            "http://user:TOKEN@host:port"
        )
        status, reply = ask(server, b"[" * 1000)
        assert (status, reply["error_type"], reply["message"]) == (401, "unauthenticated", told)
        for wrong in ("Bearer wrong", "Basic d3Jvbmc6d3Jvbmc=", "Basic ?", "Basic"):
            status, reply = ask(server, b"[" * 1000, headers={**JSON, "Authorization": wrong})
            assert (status, reply["message"]) == (401, "the token is wrong")
        assert is_served(server, Authorization="Bearer secret")
        assert is_served(server, Authorization="Basic cm9ib3Q6c2VjcmV0")  # robot:secret


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},  # a name of another site that leads here
    ],
)
def test_a_page_of_another_site_may_not_ask(server: PolicyServer, headers: Mapping[str, str]) -> None:
    status, reply = ask(server, call(1, 2, 3), headers={**JSON, **headers})
    assert (status, reply["error_type"]) == (401, "unauthenticated")


def test_a_name_may_be_allowed() -> None:
    with serving(http_allowed_hosts=("gpu.lab.example",)) as server:
        assert is_served(server, Host="gpu.lab.example:8090")


# -- limits


def test_a_body_past_the_limit_is_refused(server: PolicyServer) -> None:
    with socket.create_connection(server.frontends[1].address, timeout=5) as sock:
        sock.sendall(
            b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1048577\r\n\r\n"
        )
        assert b" 413 " in sock.recv(4096)
    status, reply = ask(server, b"[" + b"0" * (1 << 20) + b"]")
    assert (status, reply["message"]) == (413, "the body exceeds the limit of 1048576 bytes")
    assert is_served(server)


def test_half_a_body_costs_its_connection_and_delays_nobody() -> None:
    with serving(frame_timeout_s=0.2) as server, ExitStack() as crowd:
        head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        socks = [
            crowd.enter_context(socket.create_connection(server.frontends[1].address, timeout=5))
            for _ in range(10)
        ]
        for sock in socks:
            sock.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert is_served(server)
        for sock in socks:
            answer = b"".join(iter(lambda sock=sock: sock.recv(4096), b""))  # type: ignore[misc]
            assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_within_its_body_is_no_bug(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(3):
        with socket.create_connection(server.frontends[1].address, timeout=5) as sock:
            sock.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert is_served(server)  # it has read the head by then
    assert is_served(server)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_requests_without_the_token_cannot_keep_its_holder_out() -> None:
    half = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with serving(max_connections=2, token="secret") as server, ExitStack() as crowd:
        for number in range(30):
            slow = crowd.enter_context(socket.create_connection(server.frontends[1].address, timeout=5))
            with suppress(OSError):  # the oldest are closed to make place
                slow.sendall(half if number % 2 else b"POST /inf")
        started = time.monotonic()
        assert is_served(server, Authorization="Bearer secret")
        assert time.monotonic() - started < 1


def test_calls_past_the_limit_are_told_overloaded() -> None:
    policy = SlowPolicy()
    with serving(policy, max_connections=1) as server:
        thread = threading.Thread(target=ask, args=(server, call(1, 2, 3)))
        thread.start()
        wait_until(policy.started.is_set)
        status, reply = ask(server, call(1, 2, 3))
        assert (status, reply["error_type"]) == (503, "overloaded")
        assert ask(server, path="/health", method="GET")[0] == 200
        policy.release.set()
        thread.join()


def test_clients_share_a_batch() -> None:
    policy = SlowPolicy()
    with serving(policy) as server:
        threads = [
            threading.Thread(
                target=ask,
                args=(server, encode_call(MetaObs(state=np.float32([1, 2, 3])), client=str(number))),
            )
            for number in range(5)
        ]
        threads[0].start()
        wait_until(policy.started.is_set)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: server.service.requests_in_hand == 5)
        time.sleep(0.05)
        policy.release.set()
        for thread in threads:
            thread.join()
        assert policy.batch_sizes == [1, 4]


def test_a_call_whose_client_left_is_not_computed() -> None:
    policy = SlowPolicy()
    with serving(policy) as server:
        thread = threading.Thread(target=ask, args=(server, call(1, 2, 3)))
        thread.start()
        wait_until(policy.started.is_set)
        body = encode_call(MetaObs(state=np.float32([1, 2, 3])), client="impatient")
        with socket.create_connection(server.frontends[1].address, timeout=5) as sock:
            sock.sendall(
                b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            wait_until(lambda: server.service.requests_in_hand == 2)
        time.sleep(0.1)
        policy.release.set()
        thread.join()
        wait_until(lambda: not server.service.requests_in_hand)
        assert policy.batch_sizes == [1]


def test_told_to_stop_it_finishes_the_calls_in_hand() -> None:
    policy, replies = SlowPolicy(), []
    with serving(policy, drain_s=5.0) as server:
        thread = threading.Thread(target=lambda: replies.append(ask(server, call(1, 2, 3))))
        thread.start()
        wait_until(policy.started.is_set)
        server.stop()
        policy.release.set()
        thread.join()
    assert replies[0][0] == 200


def test_tls_is_that_of_the_other_ports(certificates: Certificates) -> None:
    with serving(tls_cert=certificates.server_cert, tls_key=certificates.server_key) as server:
        assert server.describe()[-1].startswith("for VLAStudio: https://")
        context = ssl.create_default_context(cafile=certificates.ca)
        port = server.frontends[1].address[1]
        connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=context)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


# -- the program


def test_memory_stays_bounded_and_the_log_printable(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path / "log", "--vlastudio_port", "0", "--max_payload", "4000000", "--host", "127.0.0.1"
    ) as program:
        line = next(line for line in program.banner if line.startswith("for VLAStudio: "))
        address = ("127.0.0.1", int(line.rstrip("/").rpartition(":")[2]))

        class Server:
            frontends = (None, type("F", (), {"address": address}))

        before = program.peak_memory()
        zeros = np.zeros(2_900_000, np.uint8)
        bodies = [
            b'{"meta_obs": {"state": [' + b"0," * 60_000 + b"0]}}",
            b'{"meta_obs": {}, "reasoning": [' + b"[]," * 30_000 + b"0]}",
            b'{"meta_obs": {"raw_lang": "' + b"\\u0000" * 600_000 + b'"}}',
            b'{"meta_obs": {"raw_lang": "' + "\U0001f600".encode() + b"a" * 3_900_000 + b'"}}',
            encode_call(MetaObs(state=zeros)),
            encode_call(MetaObs(state=zeros.reshape(-1, 1))),
            b"\x1b[31m\n" * 1000,
            b'{"client_id": "\\u001b[31m\\nforged", "meta_obs": {"state": 1}}',
            b'{"meta_obs": {"state": {"__type__": "ndarray", "dtype": "\\u001b\\nforged", '
            b'"shape": [], "data": ""}}}',
        ]
        for body in bodies:
            status, reply = ask(Server(), body)  # type: ignore[arg-type]
            assert status in (200, 413, 422), reply
        assert program.peak_memory() - before < 60_000_000
        assert "\x1b" not in program.log
        assert "\nforged" not in program.log
        assert ask(Server(), path="/health", method="GET")[0] == 200  # type: ignore[arg-type]


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run_server(
            *("policy", "--policy", "random", "--host", "127.0.0.1", "--port", "0", "--vlastudio_port", port)
        )
    assert ended.returncode == 2
    assert f"port {port} is in use" in ended.stderr
    assert "--vlastudio_port" in ended.stderr
    assert "Traceback" not in ended.stderr
