"""The bytes of LeRobot 0.6.1's own client and server, and those that its client accepted from us.

``instructions.bin`` and ``observation.bin`` were sent by the unmodified ``RobotClient`` (Python 3.12,
tests/peers/lerobot_robot_client.py); ``actions_of_lerobots_server.bin`` is what its ``PolicyServer`` sends,
pickled by torch 2.11; ``actions.bin`` was executed by the client.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robowire.errors import InvalidParams, UnsafePayload
from robowire.frontends.lerobot.codec import (
    TimedAction,
    decode_actions,
    decode_instructions,
    decode_observation,
    encode_actions,
)
from robowire.wire.pickle.reader import loads

FOLDER = Path(__file__).parent / "lerobot"
JOINTS = [f"joint_{number}.pos" for number in range(6)]


def golden(name: str) -> bytes:
    return (FOLDER / f"{name}.bin").read_bytes()


def test_the_instructions_of_lerobots_client_are_read() -> None:
    instructions = decode_instructions(golden("instructions"))
    assert (instructions.policy_type, instructions.pretrained_name_or_path) == ("echo", "someone/policy")
    assert (instructions.actions_per_chunk, instructions.device, instructions.rename_map) == (4, "cpu", {})
    assert instructions.lerobot_features == {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": JOINTS},
        "observation.images.front": {
            "dtype": "image",
            "shape": (24, 32, 3),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": False},
        },
    }


def test_an_observation_of_lerobots_client_is_read() -> None:
    observation = decode_observation(bytearray(golden("observation")))
    assert (observation.timestep, observation.must_go) == (0, True)
    assert 1.7e9 < observation.timestamp < 2e9
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    joints = {name: float(np.float32(random.uniform(-1, 1))) for name in reversed(JOINTS)}
    values = dict(observation.observation)
    assert (values.pop("front") == image).all()
    assert list(values.items()) == [*joints.items(), ("task", "lift the cube")]


def test_actions_of_lerobots_server_are_read_without_torch() -> None:
    actions = decode_actions(golden("actions_of_lerobots_server"))
    assert [(action.timestamp, action.timestep) for action in actions] == [
        (1.5, 7),
        (1.5 + 1 / 30, 8),
        (1.5 + 2 / 30, 9),
    ]
    assert all(action.action.dtype == np.float32 for action in actions)
    assert np.stack([action.action for action in actions]).tolist() == np.arange(12.0).reshape(3, 4).tolist()


def test_actions_are_written_as_lerobots_client_accepted_them() -> None:
    actions = decode_actions(golden("actions"))
    assert encode_actions(actions) == golden("actions")
    assert [action.timestep for action in actions] == [0, 1, 2, 3]
    assert [action.action.shape for action in actions] == [(6,)] * 4


@pytest.mark.parametrize("name", ["instructions", "observation", "actions", "actions_of_lerobots_server"])
def test_the_native_wire_reads_none_of_them(name: str) -> None:
    with pytest.raises(UnsafePayload, match=r"^payload names lerobot\.async_inference\.helpers\.\w+, which"):
        loads(golden(name))


def test_one_message_is_not_taken_for_another() -> None:
    with pytest.raises(InvalidParams, match=r"^the policy instructions are a TimedObservation, expected"):
        decode_instructions(golden("observation"))
    with pytest.raises(InvalidParams, match=r"^the observation is a RemotePolicyConfig, expected"):
        decode_observation(bytearray(golden("instructions")))


@pytest.mark.parametrize("cut", range(0, 1272, 40))
def test_actions_that_are_cut_are_refused(cut: int) -> None:
    whole = golden("actions_of_lerobots_server")
    with pytest.raises(UnsafePayload):
        decode_actions(whole[: cut or 1])


def test_a_tensor_outside_its_storage_is_refused() -> None:
    whole = golden("actions_of_lerobots_server")
    # The second action begins at 4 of 12 numbers: one that begins at 9 would end past them.
    moved = whole.replace(b"K\x04K\x04\x85\x94K\x01", b"K\x09K\x04\x85\x94K\x01", 1)
    assert moved != whole
    with pytest.raises(UnsafePayload, match=r"^a tensor lies outside its storage$"):
        decode_actions(moved)


def test_an_archive_that_announces_more_than_it_holds_is_refused() -> None:
    whole = golden("actions_of_lerobots_server")
    more = whole.replace(b"\x0c" + bytes(7) + bytes(4), b"\xff" * 7 + b"\x7f" + bytes(4))
    assert more != whole
    with pytest.raises(UnsafePayload, match=r"^a tensor's storage of \d+ numbers has 48 bytes$"):
        decode_actions(more)


def test_actions_may_be_none() -> None:
    assert decode_actions(b"") == []
    assert decode_actions(encode_actions([])) == []


def test_a_chunk_comes_back_to_the_last_bit() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    sent = [TimedAction(index / 7, index, row) for index, row in enumerate(rows)]
    received = decode_actions(encode_actions(sent))
    assert [action.timestamp for action in received] == [index / 7 for index in range(5)]
    assert np.stack([action.action for action in received]).tobytes() == rows.tobytes()
