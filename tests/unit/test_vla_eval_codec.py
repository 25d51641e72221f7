"""vla-eval's messages: golden bytes of its client, both directions, and messages that lie."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from robowire.errors import InvalidParams, RemoteProtocolError
from robowire.frontends.key_map import KeyMap
from robowire.frontends.layouts import GripperScale
from robowire.frontends.named_observations import ObservationAdapter
from robowire.frontends.vla_eval.codec import Message, PayloadReader, encode_message, read_message
from robowire.frontends.vla_eval.harness_specs import action_spec, observation_params, observation_spec
from robowire.specs import PolicySpec

# As vla-eval 0.8.0's client sends them.
HELLO = (
    b"\x84\xa4type\xa5hello\xa7payload\x83\xafharness_version\xa50.8.0\xb0protocol_version\x01\xa9benchmark\xa1b"
    b"\xa3seq\x01\xa9timestamp\xcb?\xe0\x00\x00\x00\x00\x00\x00"
)
OBSERVATION = (
    b"\x84\xa4type\xabobservation\xa7payload\x83\xa6images\x81\xa9agentview\x84\xa9__image__\xc3\xa6format\xa3png"
    b"\xa4data\xc4H\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x02\x00\x00\x00\x01\x08\x02\x00\x00\x00{@\xe8"
    b"\xdd\x00\x00\x00\x0fIDATx\x9cc``````\x00\x00\x00\x07\x00\x01W!b\x19\x00\x00\x00\x00IEND\xaeB`\x82\xa5shape"
    b"\x93\x01\x02\x03\xa6states\x84\xab__ndarray__\xc3\xa4data\xc4\x08\x00\x00\x00\x00\x00\x00\xe0?\xa5dtype"
    b"\xa3<f8\xa5shape\x91\x01\xa1n\x03\xa3seq\x02\xa9timestamp\xcb?\xe0\x00\x00\x00\x00\x00\x00"
)


def image(encoding: str = "png", shape: Any = (4, 6, 3), **changes: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, encoding.upper())
    return {"__image__": True, "format": encoding, "data": file.getvalue(), "shape": list(shape), **changes}


def array(**changes: Any) -> dict[str, Any]:
    return {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2], **changes}


def test_messages_are_read_as_the_client_writes_them() -> None:
    payload = {"harness_version": "0.8.0", "protocol_version": 1, "benchmark": "b"}
    assert read_message(HELLO) == Message("hello", payload, 1)
    message = read_message(OBSERVATION)
    assert (message.type, message.seq, message.payload["n"]) == ("observation", 2, 3)
    reader = PayloadReader(100)
    assert reader.value("states", message.payload["states"]).tolist() == [0.5]
    pixels = reader.value("agentview", message.payload["images"]["agentview"])
    assert np.array_equal(pixels, np.zeros((1, 2, 3), np.uint8))


def test_messages_are_written_as_the_client_writes_them() -> None:
    payload = {"harness_version": "0.8.0", "protocol_version": 1, "benchmark": "b"}
    assert encode_message("hello", payload, seq=1, timestamp=0.5) == HELLO
    written = msgpack.unpackb(
        encode_message("action", {"actions": np.float32([1]), "n": np.int64(3)}, seq=2, timestamp=0.5)
    )
    assert written == {
        "type": "action",
        "payload": {
            "actions": {"__ndarray__": True, "data": b"\0\0\x80?", "dtype": "<f4", "shape": [1]},
            "n": 3,
        },
        "seq": 2,
        "timestamp": 0.5,
    }
    with pytest.raises(TypeError, match="carries no ndarray"):
        encode_message("action", {"actions": np.array([None])}, seq=2, timestamp=0.5)


@pytest.mark.parametrize("image_format", ["raw", "png", "jpeg"])
def test_images_go_round(image_format: str) -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, np.newaxis], (40, 60, 3)).copy()
    ramp[:] = np.arange(0, 240, 4, dtype=np.uint8)[np.newaxis, :, np.newaxis]
    data = encode_message("observation", {"x": ramp}, seq=1, timestamp=0, image_format=image_format)
    again = PayloadReader(10_000).value("x", read_message(data).payload["x"])
    difference = np.abs(again.astype(int) - ramp).max()
    assert difference <= (8 if image_format == "jpeg" else 0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("text", "not text"),
        (b"", "not a msgpack message"),
        (b"\xc1", "not a msgpack message"),
        (b"\x91" * 2000, "not a msgpack message"),
        (b"\x90", "a message is a list, expected a map"),
        (msgpack.packb({"type": "hello"}), "a message has no 'payload'"),
        (
            msgpack.packb({"type": 1, "payload": {}, "seq": 1, "timestamp": 0}),
            "a message has the type 1",
        ),
        (msgpack.packb({"type": "hello", "payload": [], "seq": 1, "timestamp": 0}), "that is a list"),
        (msgpack.packb({"type": "hello", "payload": {}, "seq": True, "timestamp": 0}), "seq True"),
        (msgpack.packb(msgpack.ExtType(1, b"")), "extension of msgpack, number 1"),
        (msgpack.packb(msgpack.Timestamp(0)), "a message is a Timestamp, expected a map"),
        (b"\xdd\xff\xff\xff\xff", "not a msgpack message"),
        (msgpack.packb({1: 2}), "not a msgpack message"),
        (b"\xdc\xff\xff" + b"\x90" * 65_535, "more than 20000 maps and lists"),
    ],
)
def test_a_message_that_is_none_is_refused(wrong: bytes | str, told: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        read_message(wrong)
    assert told in str(refused.value)
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (array(dtype="|O"), "dtype is '|O', expected numbers"),
        (array(dtype="<f4,<f4"), "expected numbers"),
        (array(dtype=None), "dtype is None"),
        (array(shape=[3]), "8 bytes are not float32 of shape (3,)"),
        (array(shape=[2**40]), "8 bytes are not float32"),
        (array(shape=[0, 2**62, 2**62], data=b""), "no array has the shape"),
        (array(data="text"), "'data': bytes"),
        ({"__ndarray__": True}, "dtype is None"),
        (image(shape=(4, 6)), "the shape [4, 6], expected [height, width, 3]"),
        (image(shape=(4, -6, 3)), "expected [height, width, 3]"),
        (image(shape=(8, 6, 3)), "an image is (4, 6, 3), expected (8, 6, 3)"),
        (image(shape=(4, 6, 1)), "expected (4, 6, 1)"),
        (image(shape=(400, 600, 3)), "announce more than 100000 bytes"),
        (image(data=b"GIF89a"), "an image cannot be decoded"),
        (image(data=None), "encoded as 'png', expected"),
        (image(format="tiff"), "encoded as 'tiff', expected png, jpeg or raw"),
        (image("jpeg", format="png"), "an image cannot be decoded"),
        (
            {"__image__": True, "format": "raw", "dtype": "|O", "shape": [1], "data": b"\0" * 8},
            "dtype is '|O'",
        ),
        ({"__image__": True}, "the shape None"),
    ],
)
def test_an_array_or_an_image_that_lies_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        PayloadReader(100_000).value("front", wrong)
    assert str(refused.value).startswith("'front': ")
    assert told in str(refused.value)


def test_images_of_one_message_share_the_limit() -> None:
    reader = PayloadReader(200)
    assert all(reader.value(name, image()).shape == (4, 6, 3) for name in "ab")
    with pytest.raises(InvalidParams, match="announce more than 200 bytes"):
        reader.value("c", image())


def test_a_png_that_is_larger_than_it_says_is_not_decoded() -> None:
    """0.1 MB of zeros that inflate to 16000 x 16000 pixels."""
    header = struct.pack("!IIBBBBB", 16_000, 16_000, 8, 2, 0, 0, 0)

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    deflated = zlib.compress(b"\0" * 10_000_000)
    file = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", deflated) + part(b"IEND", b"")
    tracemalloc.start()
    with pytest.raises(InvalidParams, match="an image cannot be decoded"):
        PayloadReader(1 << 20).value("front", image(data=file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_value_that_is_neither_is_returned() -> None:
    reader = PayloadReader(0)
    for value in (None, 1, "text", [1, 2], {"a": 1}):
        assert reader.value("x", value) is value


def known(key_map: KeyMap, **spec: Any) -> dict[str, Any]:
    return ObservationAdapter(PolicySpec(policy="test", **spec), key_map).describe()


LIBERO = KeyMap(
    "test",
    images={
        "observation/image": "front",
        "agentview": "front",
        "observation/wrist_image": "hand",
        "wrist": "hand",
    },
    action_gripper=GripperScale(-1, 1),
)


def test_the_specs_are_those_of_liberos_benchmark() -> None:
    says = known(
        LIBERO,
        camera_names=("front", "hand"),
        state_dim=8,
        state_layout="ee_pos(3) ee_axisangle(3) gripper_qpos(2)",
        action_dim=7,
        action_layout="dpos(3) daxisangle(3) gripper(1)",
    )
    assert observation_params(says) == {"send_wrist_image": True, "send_state": True}
    assert {key: (one["dims"], one["format"]) for key, one in observation_spec(says).items()} == {
        "agentview": (0, "rgb_hwc_uint8"),
        "wrist": (0, "rgb_hwc_uint8"),
        "state": (8, "eef_pos3_axisangle3_gripper2"),
        "language": (0, "language"),
    }
    assert {key: (one["dims"], one["format"]) for key, one in action_spec(says).items()} == {
        "position": (3, "delta_xyz"),
        "rotation": (3, "axis_angle"),
        "gripper": (1, "binary_close_positive"),
    }
    assert action_spec(says)["gripper"]["range"] == [-1, 1]


def test_what_nobody_needs_is_not_asked_for() -> None:
    says = known(LIBERO, camera_names=("front",), action_dim=3)
    assert observation_params(says) == {}
    assert list(observation_spec(says)) == ["agentview", "language"]
    assert action_spec(says) == {}


def test_actions_of_other_arms_are_named_as_they_are_declared() -> None:
    joints = known(KeyMap("test"), action_dim=8, action_layout="joint_pos(7) gripper(1)")
    assert {key: one["format"] for key, one in action_spec(joints).items()} == {
        "joint_pos": "joint_pos",
        "gripper": "continuous_01",
    }
    arms = "left: joint_pos(6) gripper(1); right: joint_pos(6) gripper(1)"
    both = action_spec(known(KeyMap("test"), action_dim=14, action_layout=arms))
    assert both == {"action": {"name": "action", "dims": 14, "format": arms}}
