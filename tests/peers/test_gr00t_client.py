"""GR00T's clients of three versions get the actions that our own client gets, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from peer_process import run_peer
from saved_arrays import load_arrays

from policies.act.policy import make_policy
from robowire import PolicyClient
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

COUNT = 3
KEY_MAP = """
video.front: image.agentview
video.wrist: image.robot0_eye_in_hand
state: state.state
"""


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the three clients and ours got for the same observations of the shipped policy."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("gr00t")
    front, wrist = rng.integers(0, 256, (2, COUNT, 96, 96, 3)).astype(np.uint8)
    states = rng.normal(size=(COUNT, 8)).astype(np.float32)
    np.savez(folder / "in.npz", front=front, wrist=wrist, state=states)
    (folder / "keys.yaml").write_text(KEY_MAP)
    policy = make_policy(PolicyOptions(device="cpu"))
    found: dict[str, Any] = {}
    with running_frontends(policy, gr00t_port=0, key_map=str(folder / "keys.yaml")) as server:
        for version in ("n1.5", "n1.6", "n1.7"):
            arguments = (version, port_of(server, "gr00t"), folder / "in.npz", folder / f"{version}.npz")
            found[version] = run_peer("gr00t", "gr00t_client.py", *arguments)
        with PolicyClient(*server.address) as client:
            images = np.stack([front, wrist], axis=1).transpose(0, 1, 4, 2, 3)
            found["ours"] = np.stack(
                [
                    client.infer(
                        MetaObs(
                            state=states[index],
                            image=np.ascontiguousarray(images[index]),
                            raw_lang="lift the cube",
                        )
                    )
                    for index in range(COUNT)
                ]
            )
    for version in ("n1.5", "n1.6", "n1.7"):
        found[f"{version} arrays"] = load_arrays(folder / f"{version}.npz")
    return found


def line(exchanged: dict[str, Any], version: str, key: str) -> Any:
    return next(line[key] for line in exchanged[version] if key in line)


@pytest.mark.parametrize("version", ["n1.5", "n1.6", "n1.7"])
def test_its_actions_are_those_of_our_client(exchanged: dict[str, Any], version: str) -> None:
    chunks = exchanged[f"{version} arrays"]["chunks"]
    assert chunks.dtype == np.float32
    np.testing.assert_array_equal(chunks, exchanged["ours"])


@pytest.mark.parametrize("version", ["n1.6", "n1.7"])
def test_a_batch_is_computed_as_one(exchanged: dict[str, Any], version: str) -> None:
    # Other kernels round otherwise where more rows are multiplied.
    np.testing.assert_allclose(exchanged[f"{version} arrays"]["batch"], exchanged["ours"], atol=1e-4)


@pytest.mark.parametrize("version", ["n1.6", "n1.7"])
def test_keys_are_those_of_the_policy_and_the_key_map(exchanged: dict[str, Any], version: str) -> None:
    config = line(exchanged, version, "config")
    assert config["video"] == {"delta_indices": [0], "modality_keys": ["front", "wrist"]}
    assert config["state"] == {"delta_indices": [0], "modality_keys": ["state"]}
    assert config["action"] == {
        "delta_indices": list(range(16)),
        "modality_keys": ["dpos", "daxisangle", "gripper"],
    }
    assert config["language"]["modality_keys"] == ["annotation.human.task_description"]
    assert line(exchanged, version, "keys") == ["dpos", "daxisangle", "gripper"]
    assert line(exchanged, version, "dtypes") == ["float32"] * 3


@pytest.mark.parametrize("version", ["n1.6", "n1.7"])
def test_dotted_names_are_answered_by_dotted_names(exchanged: dict[str, Any], version: str) -> None:
    assert line(exchanged, version, "flat") == ["action.dpos", "action.daxisangle", "action.gripper"]
    assert line(exchanged, version, "same")


def test_n1_5_gets_a_map_of_dotted_names(exchanged: dict[str, Any]) -> None:
    assert line(exchanged, "n1.5", "ping") is True
    assert line(exchanged, "n1.5", "keys") == ["action.dpos", "action.daxisangle", "action.gripper"]


def test_errors_name_both_sides(exchanged: dict[str, Any]) -> None:
    assert line(exchanged, "n1.5", "error").startswith(
        "GR00T server error: invalid_params: there is no part 'state.state'"
    )
    kill, empty = (line["error"] for line in exchanged["n1.7"] if "error" in line)
    assert kill == "Server error: unknown_method: kill is refused: a client may not end this server"
    assert empty.startswith("Server error: invalid_params: there is no")
