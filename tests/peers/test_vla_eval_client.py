"""vla-eval's own client and harness, unmodified: their actions are those of our client, to the last bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from peer_process import run_peer
from PIL import Image

from policies.act.policy import make_policy
from robowire import PolicyClient
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.testing import EchoPolicy

COUNT = 10
# Of the shipped policy: of 16 actions of a chunk these are executed.
N_ACTION_STEPS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with running_frontends(make_policy(PolicyOptions(device="cpu")), vla_eval_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of observations: smooth images, as JPEG likes them, and states."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(96), np.arange(96)).astype(np.uint8)
    images = ramp[..., np.newaxis] + rng.integers(0, 60, (2, COUNT, 1, 1, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("vla_eval") / "in.npz"
    np.savez(path, image=images[0], wrist=images[1], state=np.abs(rng.normal(size=(COUNT, 8))))
    return path


def url(server: PolicyServer, user: str = "") -> str:
    return f"ws://{user}127.0.0.1:{port_of(server, 'vla_eval')}"


def chunk(server: PolicyServer, source: Path, index: int, *, jpeg: bool = False) -> np.ndarray:
    """Return what our client gets for an observation, in vla-eval's convention."""
    with np.load(source) as observations:
        images = np.stack([observations["image"][index], observations["wrist"][index]])
        state = observations["state"][index].astype(np.float32)
    if jpeg:
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=95)  # as vla-eval's client does
            image[...] = Image.open(file)
    observation = MetaObs(
        state=state, image=np.ascontiguousarray(images.transpose(0, 3, 1, 2)), raw_lang="lift the cube"
    )
    with PolicyClient(*server.address) as client:
        actions = np.array(client.infer(observation))
    actions[:, 6] = 1 - 2 * actions[:, 6]  # 1 open, 0 closed becomes -1 open, 1 closed
    return actions


def episode(server: PolicyServer, source: Path, *, jpeg: bool = False) -> np.ndarray:
    first = chunk(server, source, 0, jpeg=jpeg)[:N_ACTION_STEPS]
    second = chunk(server, source, N_ACTION_STEPS, jpeg=jpeg)[: COUNT - N_ACTION_STEPS]
    return np.concatenate([first, second])


@pytest.fixture(scope="module")
def exchanged(server: PolicyServer, source: Path) -> dict[str, Any]:
    """What vla-eval's client got."""
    target = source.with_name("out.npz")
    lines = run_peer("vla_eval", "run_vla_eval.py", url(server), source, target)
    with np.load(target) as got:
        return {"lines": lines, **got}


@pytest.mark.parametrize("encoding", ["png", "raw", "jpeg"])
def test_its_actions_are_those_of_our_client(
    server: PolicyServer, source: Path, exchanged: dict[str, Any], encoding: str
) -> None:
    assert exchanged[encoding].dtype == np.float32
    np.testing.assert_array_equal(exchanged[encoding], episode(server, source, jpeg=encoding == "jpeg"))


def test_its_hello_says_what_is_needed_and_given(exchanged: dict[str, Any]) -> None:
    hello = exchanged["lines"][0]["hello"]
    assert hello["protocol_version"] == 1
    assert hello["model_server"] == "robowire:act"
    assert hello["observation_params"] == {"send_wrist_image": True, "send_state": True}
    assert {name: spec["format"] for name, spec in hello["action_spec"].items()} == {
        "position": "delta_xyz",
        "rotation": "axis_angle",
        "gripper": "binary_close_positive",
    }
    assert {name: spec["format"] for name, spec in hello["observation_spec"].items()} == {
        "agentview": "rgb_hwc_uint8",
        "wrist": "rgb_hwc_uint8",
        "state": "joint_pos(7) gripper_open(1)",
        "language": "language",
    }


def test_an_error_leaves_the_connection_open(exchanged: dict[str, Any]) -> None:
    error = exchanged["lines"][1]["error"]
    assert error.startswith("Server error: {'error': \"observation_failed: InvalidParams: there is no part")


def test_an_episode_and_a_connection_begin_with_a_chunk_of_their_own(
    server: PolicyServer, source: Path, exchanged: dict[str, Any]
) -> None:
    first = chunk(server, source, 0)
    np.testing.assert_array_equal(exchanged["begun"], first[[0, 1, 0, 0]])


def test_its_harness_runs_episodes(server: PolicyServer, source: Path) -> None:
    *episodes, end = run_peer("vla_eval", "run_vla_eval_harness.py", url(server), source, COUNT)
    assert end["warnings"] == []
    (result,) = end["results"]
    assert result["mean_success"] == 1.0
    expected = episode(server, source)
    assert len(episodes) == 2
    for line in episodes:
        np.testing.assert_array_equal(np.float32(line["actions"]), expected)


def test_the_token_is_the_password_of_the_address(source: Path, tmp_path: Path) -> None:
    states = np.zeros((2, 8))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "in.npz", image=images, wrist=images, state=states)
    with running_frontends(EchoPolicy(state_dim=8), vla_eval_port=0, token="s3cret/") as server:
        arguments = (
            "run_vla_eval.py",
            url(server, "me:s3cret%2F@"),
            tmp_path / "in.npz",
            tmp_path / "out.npz",
        )
        assert run_peer("vla_eval", *arguments)[0]["hello"]["model_server"] == "robowire:echo"
        refused = ("run_vla_eval.py", url(server), tmp_path / "in.npz", tmp_path / "out.npz")
        run_peer("vla_eval", *refused, code=1)
        assert server.metrics.snapshot()["errors"]["unauthenticated"] == 2
