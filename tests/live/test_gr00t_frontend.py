"""GR00T's wire with clients as third parties write them: golden bytes, sessions, and clients that lie."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from frontend_server import port_of, running_frontends
from raw_client import RawClient

from robowire.frontends.gr00t.codec import decode, encode, find_token
from robowire.frontends.gr00t.frontend import action_parts
from robowire.interfaces import Policy
from robowire.serving.policy.server import PolicyServer
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, FailingPolicy, SlowPolicy

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "gr00t"
TASK = "annotation.human.task_description"


class Client:
    """A REQ socket and msgpack. Nothing here waits longer than ten seconds."""

    def __init__(self, server: PolicyServer) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port_of(server, 'gr00t')}")

    def ask_bytes(self, body: bytes) -> bytes:
        self.socket.send(body)
        return self.socket.recv()

    def ask(self, endpoint: str, **request: Any) -> Any:
        return decode(self.ask_bytes(encode({"endpoint": endpoint, **request})))

    def act(self, state: Any, text: Any = None, **names: Any) -> Any:
        """Ask with N1.6's nested observation."""
        observation = {"state": {"state": state}, "language": {TASK: text or [["go"]] * len(state)}, **names}
        return self.ask("get_action", data={"observation": observation, "options": None})

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def serving(policy: Policy | None = None, **options: Any) -> AbstractContextManager[PolicyServer]:
    return running_frontends(policy or EchoPolicy(), gr00t_port=0, **options)


@contextmanager
def connected(server: PolicyServer) -> Iterator[Client]:
    client = Client(server)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with serving(max_payload=1 << 22) as server:
        yield server


@pytest.fixture
def client(server: PolicyServer) -> Iterator[Client]:
    with connected(server) as client:
        yield client


def rows(*states: list[float]) -> np.ndarray:
    return np.float32(states)[:, np.newaxis]


# -- versions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["n1_5", "n1_6", "n1_7"])
def test_recorded_requests_are_answered_by_the_recorded_bytes(version: str) -> None:
    # n1_7 by msgpack-numpy 0.4.8; all with a token, which this server looks at.
    with serving(token="s3cret") as server, connected(server) as client:
        reply = client.ask_bytes((GOLDEN / f"{version}_get_action.msgpack").read_bytes())
    assert reply == (GOLDEN / f"{version}_reply.msgpack").read_bytes()


def test_a_batch_is_one_batch(client: Client, server: PolicyServer) -> None:
    actions, info = client.act(rows([1, 2, 3], [4, 5, 6]))
    assert info == {}
    steps = np.arange(4)[:, np.newaxis]
    np.testing.assert_array_equal(actions["action"], rows([1, 2, 3], [4, 5, 6]) + steps)
    assert server.metrics.snapshot()["batch_size_max"] == 2


def test_the_newest_of_several_steps_counts(client: Client) -> None:
    actions, _ = client.act(np.float32([[[9, 9, 9], [1, 2, 3]]]))
    np.testing.assert_array_equal(actions["action"][0, 0], [1, 2, 3])


def test_without_the_axis_of_a_batch_the_reply_has_none(client: Client) -> None:
    actions = client.ask("get_action", data={"state.state": np.float64([[1, 2, 3]])})
    assert actions["action.action"].shape == (4, 3)


def test_n1_5_gets_its_modality_config_as_text(client: Client) -> None:
    assert client.ask("get_modality_config")["state"]["as_json"]["modality_keys"] == ["state"]
    client.ask("get_action", data={"state.state": np.float32([[1, 2, 3]])})
    text = client.ask("get_modality_config")["action"]["as_json"]
    assert text == '{"delta_indices": [0, 1, 2, 3], "modality_keys": ["action.action"]}'


def test_reset_begins_an_episode() -> None:
    with serving(temporal_agg=True) as server, connected(server) as client:
        client.act(rows([0, 0, 0]))
        assert client.act(rows([10, 0, 0]))[0]["action"][0, 0, 0] < 10
        assert client.ask("reset", data={"options": None}) == {}
        assert client.act(rows([10, 0, 0]))[0]["action"][0, 0, 0] == 10


@pytest.mark.parametrize(
    ("layout", "dim", "parts"),
    [
        (None, 7, {}),
        ("dpos(3) gripper(1)", 4, {"dpos": slice(0, 3), "gripper": slice(3, 4)}),
        ("dpos(3) gripper(1)", 5, {}),
        ("right: pos(1); left: pos(2)", 3, {"right_pos": slice(0, 1), "left_pos": slice(1, 3)}),
        ("pos(1) pos(2)", 3, {"pos_1": slice(0, 1), "pos_2": slice(1, 3)}),
    ],
)
def test_keys_of_an_action(layout: str | None, dim: int, parts: dict[str, slice]) -> None:
    assert action_parts(layout, dim) == parts


# -- token ---------------------------------------------------------------------------------------------------


def test_the_token_is_looked_at_before_the_data() -> None:
    with serving(token="s3cret") as server, connected(server) as client:
        wrong = {"error": "Unauthorized: Invalid API token"}
        assert client.ask("ping") == wrong
        assert client.ask("ping", api_token="guess") == wrong
        # Data that would be an error, if it was read.
        assert client.ask("get_action", data={"x": 1}, api_token=7) == wrong
        assert client.ask_bytes(b"\xc1" * 1000) == encode(wrong)
        assert client.ask("ping", api_token="s3cret")["status"] == "ok"


@pytest.mark.parametrize(
    ("message", "token"),
    [
        (encode({"endpoint": "ping", "api_token": "t"}), "t"),
        (encode({"api_token": "t", "endpoint": "ping", "data": {}}), "t"),
        (encode({"endpoint": "x", "data": np.zeros(9), "api_token": "t" * 300}), "t" * 300),
        (encode({"endpoint": "ping"}), None),
        (encode({"endpoint": "ping", "data": {"api_token": "t"}, "x": 1}), None),
        (encode({"api_token": b"t"}), None),
        (encode({"api_token": "t" * 5000}), None),
        *(
            (data, None)
            for data in (b"", b"\x8f", b"\x81\xa9api_token", b"\x81\xa9api_token\xda\xff", b"\xa9api_token")
        ),
    ],
)
def test_a_token_is_found_in_the_first_or_last_entries(message: bytes, token: str | None) -> None:
    assert find_token(message) == token


# -- clients that lie ----------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"", *, version: int = 1) -> dict[str, Any]:
    text = header.encode("latin-1") + b"\n"
    return {
        "__ndarray_class__": True,
        "as_npy": b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + data,
    }


def saved(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}


@pytest.mark.parametrize(
    "array",
    [
        saved(np.array([object, None])),
        saved(np.zeros(2, [("a", "f4")])),
        saved(np.zeros(2, np.complex128)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4000000000, 4000000000, 4000000000), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 40 + "), }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"12345"),
        npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", b"\xff\xff\xff\xff"),
        npy("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (1,), }"),
        npy("{" * 60_000),
        *(npy("x" * 99, version=2), npy("x", version=9)),
        *({"__ndarray_class__": True, "as_npy": data} for data in (b"", b"\x93NUMPY", 7, pickle.dumps(1))),
        {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": pickle.dumps([1])},
        {b"nd": True, b"type": [["a", "<f4"]], b"kind": b"V", b"shape": [1], b"data": bytes(4)},
        {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2**62], b"data": bytes(4)},
        {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1] * 60, b"data": bytes(4)},
        {b"nd": True, b"type": "f8,f8", b"kind": b"", b"shape": [1], b"data": bytes(16)},
        {b"nd": False, b"type": "<f4", b"data": b"12345"},
        *({b"nd": True}, {b"nd": 1, b"type": 3, b"data": 4}),
    ],
)
def test_an_array_that_lies_is_refused(client: Client, array: dict[Any, Any]) -> None:
    before = psutil.Process().memory_info().rss
    reply = client.act([array])
    assert reply["error"].startswith("invalid_params: ")
    assert len(reply["error"]) < 520
    assert reply["error"].isprintable()
    assert client.ask("ping") == {"status": "ok", "message": "Server is running"}
    assert psutil.Process().memory_info().rss - before < 32 << 20


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"endpoint": "kill"}, "unknown_method: kill is refused: a client may not end this server"),
        ({"endpoint": "pong"}, "unknown_method: unknown endpoint 'pong'. Did you mean 'ping'?"),
        ({"endpoint": ["ping"]}, "unknown_method: unknown endpoint ['ping']. Known: ping,"),
        ({}, "invalid_params: data is a NoneType, expected a map of an observation"),
        ({"data": {"observation": 7}}, "invalid_params: an observation is 7, expected a map"),
        ({"data": {"observation": {"video": 7, "state": {}}}}, "invalid_params: video is 7, expected a map"),
        (
            {"data": {"observation": {"state": {}, "x": {}}}},
            "invalid_params: the observation has the name 'x'",
        ),
        ({"data": {"image": 1}}, "invalid_params: the observation has the name 'image', expected video.NAME"),
        ({"data": {"state.state": [1, 2, 3]}}, "invalid_params: 'state.state' is a list, expected (B, T,"),
        (
            {"data": {"state.state": np.zeros(3)}},
            "invalid_params: 'state.state' is a float64 array of shape (3,)",
        ),
        ({"data": {"state.state": np.zeros((0, 1, 3))}}, "invalid_params: 'state.state' is a float64 array"),
        ({"data": {"state.state": np.zeros((1, 4))}}, "spec_mismatch: the state has 4 numbers"),
        (
            {"data": {"state.state": np.zeros((1, 3)), TASK: ["a", "b"]}},
            f"invalid_params: '{TASK}' is ['a', 'b']",
        ),
        (
            {"data": {"state.state": np.zeros((1, 3)), TASK: ["a"], "annotation.b": ["b"]}},
            "invalid_params: the observation has the instructions",
        ),
        (
            {"data": {"state.a": np.zeros((1, 1, 3)), "state.b": np.zeros((1, 3))}},
            "invalid_params: 'state.b' has shape",
        ),
        (
            {"data": {"state.a": np.zeros((9999, 1, 3))}},
            "invalid_params: the batch has 9999 rows, expected at most",
        ),
    ],
)
def test_errors_say_what_was_found(client: Client, request_: dict[str, Any], error: str) -> None:
    assert decode(client.ask_bytes(encode(request_)))["error"][: len(error)] == error


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xc1", b"garbage", pickle.dumps({"endpoint": "ping"}), msgpack.packb([1]), b"\x91" * 5000),
        *(b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x90" * (1 << 20), b"\xdc\xff\xff" * 4),
        msgpack.packb({"endpoint": msgpack.ExtType(4, b"x")}),
        msgpack.packb({"endpoint": "\n\x1b[31m" * 200}),
    ],
)
def test_garbage_is_answered_by_an_error(client: Client, body: bytes) -> None:
    (error,) = decode(client.ask_bytes(body)).values()
    assert error.isprintable()
    assert len(error) < 520
    assert client.ask("ping")["status"] == "ok"


def test_a_policy_that_fails_is_an_error() -> None:
    with serving(FailingPolicy()) as server, connected(server) as client:
        reply = client.act(rows([1, 2, 3]), [["raise"]])
        assert reply == {
            "error": "backend_error: the policy failed: RuntimeError: the instruction says raise"
        }


def test_clients_share_a_batch_and_a_ping_waits_for_none_of_it() -> None:
    policy = SlowPolicy()
    with serving(policy) as server, connected(server) as first, connected(server) as other:
        thread = threading.Thread(target=first.act, args=(rows([1, 2, 3]),))
        thread.start()
        assert policy.started.wait(5)
        assert other.ask("ping")["status"] == "ok"
        policy.release.set()
        thread.join()


def test_the_native_port_and_this_one_serve_one_policy(server: PolicyServer, client: Client) -> None:
    with RawClient(server.address) as native:
        theirs = native.ask({"qpos": np.float32([1, 2, 3]), "images": {}})
    ours = client.act(rows([1, 2, 3]))[0]["action"][0]
    np.testing.assert_array_equal(ours, [action["action"] for action in theirs])


def test_it_says_which_names_it_knows() -> None:
    spec = PolicySpec(
        camera_names=("front",), state_dim=6, action_dim=6, chunk_size=2, action_layout="arm(5) gripper(1)"
    )
    with serving(ConstantPolicy(spec)) as server:
        names = "video front; state state; action arm, gripper; language annotation.human.task_description"
        assert (
            f"for GR00T's clients: tcp://127.0.0.1:{port_of(server, 'gr00t')} ({names})" in server.describe()
        )
