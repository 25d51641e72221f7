"""VLAStudio's own HTTP client against ``--vlastudio_port``."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontend_server import running_frontends
from peer_process import run_peer
from PIL import Image

from policies.registry import POLICIES
from robowire.client.policy_client import PolicyClient
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import load_policy
from robowire.serving.policy.server import PolicyServer
from robowire.testing import EchoPolicy


@pytest.fixture(scope="module")
def lift() -> Iterator[PolicyServer]:
    with running_frontends(
        load_policy("act", PolicyOptions(device="cpu"), POLICIES), vlastudio_port=0
    ) as server:
        yield server


def url(server: PolicyServer, user: str = "") -> str:
    return "http://{}{}:{}".format(user, *server.frontends[1].address)


def actions_of(line: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(line["actions"]), line["dtype"]).reshape(line["shape"])


def save(path: Path, server: PolicyServer, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Write observations that fit the policy, and return states and images."""
    spec, random = server.service.dispatcher.spec, np.random.default_rng(7)
    states = random.normal(size=(count, spec.state_dim)).astype(np.float32)
    shape = (count, len(spec.camera_names), 3, spec.image_height, spec.image_width)
    # Smooth, as JPEG likes it, and each pixel is another one.
    ramp = np.add.outer(np.arange(shape[3]), np.arange(shape[4])) % 256
    images = np.broadcast_to(ramp, shape).astype(np.uint8) + random.integers(
        0, 50, (*shape[:3], 1, 1), np.uint8
    )
    np.savez(path, state=states, image=images)
    return states, images


def expected(server: PolicyServer, states: np.ndarray, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    with PolicyClient(*server.address, chunk_size=server.service.chunk_size) as client:
        return [
            client.infer(MetaObs(state=state, image=image, raw_lang="lift the cube", timestep=0))
            for state, image in zip(states, images)
        ]


def test_actions_are_those_of_our_client_to_the_last_bit(lift: PolicyServer, tmp_path: Path) -> None:
    states, images = save(tmp_path / "observations.npz", lift)
    health, *replies, end = run_peer(
        "vlastudio", "run_vlastudio.py", url(lift), tmp_path / "observations.npz", "raw", "robot"
    )
    assert health == {"healthy": True, "codecs": ["jpeg_nchw", "jpeg", "ndarray"]}
    assert end == {"encoding": "raw"}
    spec = lift.service.dispatcher.spec
    for reply, wanted in zip(replies, expected(lift, states, images), strict=True):
        assert reply["keys"] == ["action", "ctrl_space", "ctrl_type", "gripper_continuous"]
        assert reply["ctrl"] == [spec.ctrl_space, spec.ctrl_type]
        assert np.array_equal(actions_of(reply), wanted)


def test_images_as_jpeg_are_those_that_the_files_hold(lift: PolicyServer, tmp_path: Path) -> None:
    states, images = save(tmp_path / "observations.npz", lift)
    _, *replies, end = run_peer(
        "vlastudio", "run_vlastudio.py", url(lift), tmp_path / "observations.npz", "auto", "robot"
    )
    assert end == {"encoding": "jpeg"}
    sent = [
        np.stack(
            [
                np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))).transpose(2, 0, 1)
                for file in reply["frames"]
            ]
        )
        for reply in replies
    ]
    assert not np.array_equal(sent[0], images[0])
    for reply, wanted in zip(replies, expected(lift, states, sent), strict=True):
        assert np.array_equal(actions_of(reply), wanted)


def test_another_size_is_refused_with_both_sizes(lift: PolicyServer, tmp_path: Path) -> None:
    states, images = save(tmp_path / "observations.npz", lift, count=1)
    np.savez(tmp_path / "observations.npz", state=states, image=images[..., :32, :48])
    _, refused, end = run_peer(
        "vlastudio", "run_vlastudio.py", url(lift), tmp_path / "observations.npz", "auto", "robot"
    )
    assert refused["status"] == 422
    assert refused["error"]["error_type"] == "spec_mismatch"
    assert "(2, 3, 32, 48), expected uint8 (2, 3, 96, 96)" in refused["error"]["message"]
    assert end == {"encoding": "raw"}  # it asked again with numbers


def test_a_jpeg_that_is_refused_makes_the_client_send_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server without Pillow: it does not offer JPEG, and the client tries all the same.
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with running_frontends(EchoPolicy(), vlastudio_port=0) as server:
        state, image = np.float32([[1, 2, 3]]), np.zeros((1, 1, 3, 8, 8), np.uint8)
        np.savez(tmp_path / "observations.npz", state=state, image=image)
        health, reply, end = run_peer(
            "vlastudio", "run_vlastudio.py", url(server), tmp_path / "observations.npz", "auto", "robot"
        )
        assert server.metrics.snapshot()["errors"] == {"invalid_params": 1}
    assert health["codecs"] == ["ndarray"]
    assert end == {"encoding": "raw"}
    assert np.array_equal(actions_of(reply), state + np.arange(4)[:, np.newaxis])


def test_an_episode_id_that_changes_begins_an_episode(tmp_path: Path) -> None:
    states = np.float32([[0, 0, 0], [10, 10, 10], [20, 20, 20], [30, 30, 30]])
    np.savez(tmp_path / "observations.npz", state=states)
    with running_frontends(EchoPolicy(), vlastudio_port=0, temporal_agg=True) as server:
        _, *replies, _ = run_peer(
            "vlastudio",
            "run_vlastudio.py",
            url(server),
            tmp_path / "observations.npz",
            "raw",
            "robot",
            *("7", "7", "8", "-"),
        )
        assert server.metrics.snapshot()["sessions"] == 1
    first, averaged, reset, goes_on = (float(actions_of(reply)[0, 0]) for reply in replies)
    assert (first, reset) == (0, 20)
    assert 1 < averaged < 10
    assert 21 < goes_on < 30


def test_the_token_is_the_password_of_the_address(tmp_path: Path) -> None:
    np.savez(tmp_path / "observations.npz", state=np.float32([[1, 2, 3]]))
    with running_frontends(EchoPolicy(), vlastudio_port=0, token="s3cret/") as server:
        arguments = (tmp_path / "observations.npz", "raw", "robot")
        _, refused, _ = run_peer("vlastudio", "run_vlastudio.py", url(server), *arguments)
        assert (refused["status"], refused["error"]["error_type"]) == (401, "unauthenticated")
        _, reply, _ = run_peer("vlastudio", "run_vlastudio.py", url(server, "me:s3cret%2F@"), *arguments)
        assert reply["shape"] == [4, 3]
