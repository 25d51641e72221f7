"""The ACT server's ZeroMQ wire with its documented client, and with clients that lie."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
import zmq
from frontend_server import port_of, running_frontends
from raw_client import RawClient

from policies.act.policy import make_policy
from robowire.interfaces import Policy, PolicyOptions
from robowire.serving.policy.server import PolicyServer
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, FailingPolicy

CAMERAS = ("rgb_main", "rgb_left", "rgb_under")


class DocumentedClient:
    """The client of the ACT server's documentation: a REQ socket and pickle."""

    def __init__(self, server: PolicyServer) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port_of(server, 'act_zmq')}")

    def ask(self, value: Any) -> Any:
        return self.ask_bytes(pickle.dumps(value))

    def ask_bytes(self, body: bytes) -> Any:
        self.socket.send(body)
        return pickle.loads(self.socket.recv())

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def serving(policy: Policy | None = None, **options: Any) -> AbstractContextManager[PolicyServer]:
    return running_frontends(policy or EchoPolicy(), act_zmq_port=0, **options)


@contextmanager
def documented(server: PolicyServer) -> Iterator[DocumentedClient]:
    client = DocumentedClient(server)
    try:
        yield client
    finally:
        client.close()


def raw(server: PolicyServer) -> RawClient:
    return RawClient(server.address)


def qpos(*numbers: float) -> dict[str, Any]:
    return {"qpos": np.float32(numbers), "images": {}}


def test_an_episode_as_documented() -> None:
    spec = PolicySpec(
        policy="constant",
        chunk_size=8,
        action_dim=16,
        state_dim=17,
        camera_names=CAMERAS,
        image_height=480,
        image_width=640,
    )
    observation = {
        "qpos": np.zeros(17),
        "images": {name: np.zeros((480, 640, 3), np.uint8) for name in CAMERAS},
    }
    with serving(ConstantPolicy(spec)) as server, documented(server) as client:
        assert client.ask("RESET") == {"status": "OK"}
        for _ in range(3):
            reply = client.ask(observation)
            assert reply["status"] == "OK"
            np.testing.assert_array_equal(reply["action"], np.full(16, 0.5, np.float32))
        assert client.ask("RESET") == {"status": "OK"}


def test_actions_are_those_of_the_dialect_on_the_native_port_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    policy = make_policy(PolicyOptions(device="cpu"))
    names = policy.spec.camera_names
    assert names is not None
    with serving(policy, temporal_agg=True) as server, documented(server) as client, raw(server) as native:
        assert native.ask("RESET") == client.ask("RESET") == {"status": "OK"}
        for step in range(5):
            observation = {
                "qpos": rng.normal(size=8),
                "images": {name: rng.integers(0, 256, (96, 96, 3), np.uint8) for name in names},
            }
            (theirs,) = native.ask_pickled(observation)
            ours = client.ask(observation)
            np.testing.assert_array_equal(ours["action"], theirs["action"], err_msg=f"step {step}")


def test_actions_are_averaged_whatever_the_server_was_started_with() -> None:
    with serving(temporal_agg=False) as server, documented(server) as client:
        first, second = (client.ask(qpos(step, 0, 0))["action"][0] for step in (0, 10))
        client.ask("RESET")
        third = client.ask(qpos(20, 0, 0))["action"][0]
        assert (first, third) == (0, 20)
        assert 1 < second < 10  # of the chunk before, 1, and of this one, 10
        with RawClient(server.address) as native:
            assert len(native.ask(qpos(1, 0, 0))) == 4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("reset", "a str is no request: send 'RESET', or a dict with 'qpos' and 'images'"),
        ({"images": {}}, "a dict is no request: send 'RESET', or a dict with 'qpos' and 'images'"),
        (qpos(1, 2), "state is a float32 array of shape (2,), expected (3,) numbers"),
        ({"qpos": [1, 2, "3"]}, "qpos is a list, expected (state_dim,) numbers"),
        ({"qpos": [1, 2, 3], "raw_lang": 7}, "raw_lang is a int, expected text, or a text for each"),
        (qpos(1, float("nan"), 2), "state[1] is nan, expected finite numbers"),
        ({"qpos": np.array([None, 1, 2])}, "qpos is a object array of shape (3,), expected"),
        ({"qpos": ["x" * 100_000]}, "qpos is a list, expected (state_dim,) numbers"),
        ({"qpos": os.getcwd}, "payload names posix.getcwd, which is not data"),
    ],
)
def test_errors_are_sentences_and_the_client_goes_on(request_: Any, message: str) -> None:
    with serving() as server, documented(server) as client:
        reply = client.ask(request_)
        assert (reply["status"], reply["message"][: len(message)]) == ("ERROR", message)
        assert len(reply["message"]) <= 500
        assert client.ask(qpos(1, 2, 3))["status"] == "OK"


@pytest.mark.parametrize("body", [b"", b"garbage", bytes(1000), b"\x80\x05.", pickle.dumps(1)[:-1]])
def test_garbage_is_answered(body: bytes) -> None:
    with serving() as server, documented(server) as client:
        assert client.ask_bytes(body)["status"] == "ERROR"
        assert client.ask("RESET") == {"status": "OK"}


def test_a_policy_that_fails_is_an_error() -> None:
    with serving(FailingPolicy()) as server, documented(server) as client:
        reply = client.ask({**qpos(1, 2, 3), "raw_lang": "raise"})
        assert reply == {
            "status": "ERROR",
            "message": "the policy failed: RuntimeError: the instruction says raise",
        }


def test_the_token_comes_first() -> None:
    with serving(token="s3cret") as server, documented(server) as client:
        hint = "on each new connection, send {'token': TOKEN} first"
        assert client.ask("RESET")["message"].endswith(hint)
        assert client.ask({"token": "wrong"})["message"] == f"the token is wrong: {hint}"
        assert client.ask({"token": "s3cret"}) == {"status": "OK"}
        assert client.ask(qpos(1, 2, 3))["status"] == "OK"


def test_a_large_request_without_the_token_is_not_parsed() -> None:
    with serving(token="s3cret") as server, documented(server) as client:
        before = psutil.Process().memory_info().rss
        reply = client.ask({"qpos": [0.5] * 1_000_000})
        assert reply["message"].startswith("the request has 9")
        assert reply["message"].endswith("send {'token': TOKEN} first")
        assert psutil.Process().memory_info().rss - before < 64 << 20  # most of it is this client's


def test_a_token_is_fine_where_none_is_needed() -> None:
    with serving() as server, documented(server) as client:
        assert client.ask({"token": "any"}) == {"status": "OK"}


def test_two_clients_have_episodes_of_their_own() -> None:
    with serving() as server, documented(server) as one, documented(server) as other:
        one.ask(qpos(0, 0, 0))
        assert other.ask(qpos(10, 0, 0))["action"][0] == 10


def test_it_says_which_images_it_takes() -> None:
    with serving(ConstantPolicy(PolicySpec(camera_names=CAMERAS, action_dim=2, chunk_size=2))) as server:
        port = port_of(server, "act_zmq")
        line = f"for the ACT server's clients: tcp://127.0.0.1:{port} (images rgb_main, rgb_left, rgb_under)"
        assert line in server.describe()
