"""openpi's own client, unmodified, gets the actions that our own client gets, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from peer_process import run_peer

from policies.act.policy import make_policy
from robowire import PolicyClient
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

COUNT = 3


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What openpi's client and ours got for the same observations of the shipped policy."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("openpi")
    images = rng.integers(0, 256, (2, COUNT, 96, 96, 3)).astype(np.uint8)
    states = np.abs(rng.normal(size=(COUNT, 8)))
    np.savez(folder / "in.npz", image=images[0], wrist=images[1], state=states)
    with running_frontends(make_policy(PolicyOptions(device="cpu")), openpi_port=0) as server:
        arguments = ("127.0.0.1", port_of(server, "openpi"), folder / "in.npz", folder / "out.npz")
        lines = run_peer("openpi", "run_openpi.py", *arguments)
        with PolicyClient(*server.address) as client:
            ours = [
                client.infer(
                    MetaObs(
                        state=states[index].astype(np.float32),
                        image=np.ascontiguousarray(images[:, index].transpose(0, 3, 1, 2)),
                        raw_lang="lift the cube",
                    )
                )
                for index in range(COUNT)
            ]
    with np.load(folder / "out.npz") as theirs:
        return {"lines": lines, "ours": np.stack(ours), **theirs}


def in_openpis_convention(chunks: np.ndarray) -> np.ndarray:
    """The gripper is 1 open and 0 closed in a MetaAction, -1 open and 1 closed in LIBERO."""
    converted = chunks.copy()
    converted[..., 6] = 1 - 2 * chunks[..., 6]
    return converted


def test_its_actions_are_those_of_our_client(exchanged: dict[str, Any]) -> None:
    assert exchanged["chunks"].dtype == np.float32
    np.testing.assert_array_equal(exchanged["chunks"], in_openpis_convention(exchanged["ours"]))


def test_a_broker_executes_the_chunks_step_by_step(exchanged: dict[str, Any]) -> None:
    steps = in_openpis_convention(exchanged["ours"])[:, :2].reshape(2 * COUNT, 7)
    np.testing.assert_array_equal(exchanged["steps"], steps)


def test_its_metadata_says_what_is_sent(exchanged: dict[str, Any]) -> None:
    metadata = exchanged["lines"][0]["metadata"]
    assert metadata["images"]["observation/image"] == "agentview"
    assert (metadata["rtc_mode"], metadata["rtc_max_delay_steps"]) == ("none", 0)
    assert metadata["action_gripper"] == "-1 open, 1 closed"
    assert metadata["action_horizon"] == 16
    assert metadata["image_resolution"] == [96, 96]


def test_timings_are_plain_numbers(exchanged: dict[str, Any]) -> None:
    replies = [line["reply"] for line in exchanged["lines"] if "reply" in line]
    assert "prev_total_ms" not in replies[0]["server_timing"]
    for reply in replies:
        assert reply["server_timing"]["infer_ms"] == reply["policy_timing"]["infer_ms"] > 0
    assert replies[1]["server_timing"]["prev_total_ms"] > replies[0]["policy_timing"]["infer_ms"]


def test_an_error_is_text_and_ends_the_connection(exchanged: dict[str, Any]) -> None:
    error, after = exchanged["lines"][-2]["error"], exchanged["lines"][-1]["after"]
    assert error.startswith(
        "Error in inference server:\ninvalid_params: there is no part 'observation/state'"
    )
    assert after == "ConnectionClosedError"
