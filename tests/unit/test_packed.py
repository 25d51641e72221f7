"""Packed payloads: golden bytes, any values both ways, and layouts and payloads that lie."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, LocalProtocolError, RemoteProtocolError
from robowire.wire.packed import (
    Layout,
    LayoutField,
    array_bytes,
    chunk_reply_frame,
    read_chunk_reply,
    read_header,
    read_layout,
    read_share_memory,
    share_memory,
)
from robowire.wire.shared_reply import SharedReply

GOLDEN = Path(__file__).parent.parent / "golden" / "packed"

SINGLE = Layout(
    2,
    [
        LayoutField("raw_lang", "utf8", ()),
        LayoutField("state", "<f4", (3,)),
        LayoutField("image", "|u1", (2, 3, 2, 4)),
    ],
)
IMAGE = np.arange(48, dtype=np.uint8).reshape(2, 3, 2, 4)
STATE = np.arange(3, dtype=np.float32) / 2
CHUNK = np.arange(9, dtype=np.float32).reshape(3, 3)
BATCH = np.arange(12, dtype=np.float32).reshape(2, 2, 3)

FRAMES = {
    "request": lambda: SINGLE.request_frame(
        {"raw_lang": "lift the cube", "state": STATE, "image": IMAGE}, timestep=7
    ),
    "request_batch": lambda: Layout(
        3,
        [
            LayoutField("timestep", "<i8", (2, 1)),
            LayoutField("state", "<f4", (2, 3)),
            LayoutField("raw_lang", "utf8", (2,)),
        ],
    ).request_frame(
        {"timestep": np.array([[7], [0]]), "state": np.stack([STATE, STATE]), "raw_lang": ["lift", "stack"]}
    ),
    "reply": lambda: chunk_reply_frame(2, ActionChunk(CHUNK, "joint", "absolute", None, 7, 1.5)),
    "reply_average": lambda: chunk_reply_frame(2, ActionChunk(CHUNK[:1], "ee", "delta", CHUNK, 7, None)),
    "reply_batch": lambda: chunk_reply_frame(
        3, ActionChunk(BATCH, "joint", "absolute", BATCH, np.array([[7], [0]]), 1.5)
    ),
}


def payload(frame: Any) -> bytearray:
    """Return the payload of a frame whose header says its length."""
    data = b"".join(frame)
    assert struct.unpack("!I", data[:4]) == (len(data) - 4,)
    return bytearray(data[4:])


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_still_exactly_these_bytes(name: str) -> None:
    assert payload(FRAMES[name]() or ()) == (GOLDEN / f"{name}.bin").read_bytes()


def test_requests_and_replies_in_shared_memory_are_still_exactly_these_bytes() -> None:
    passed = bytearray((GOLDEN / "share_memory.bin").read_bytes())
    assert passed == share_memory(1843264)
    assert read_share_memory(passed) == 1843264
    reply = bytearray((GOLDEN / "shared_reply.bin").read_bytes())
    said = SharedReply(slot=1, new=True, length=691712, size=1 << 28)
    assert reply == said.payload()
    assert SharedReply.read(reply) == said


def test_the_golden_request_is_read() -> None:
    data = bytearray((GOLDEN / "request.bin").read_bytes())
    kind, flags, layout, timestep = read_header(data)
    assert (kind, flags, layout, timestep) == (1, 0, 2, 7)
    values = SINGLE.values(data)
    assert values["raw_lang"] == "lift the cube"
    np.testing.assert_array_equal(values["state"], STATE)
    np.testing.assert_array_equal(values["image"], IMAGE)
    address = values["image"].__array_interface__["data"][0] - np.frombuffer(data, np.uint8).ctypes.data
    assert address == 48  # header and one length in 32 bytes, the state at 32


DTYPES = st.sampled_from(["|u1", "|i1", "|b1", "<i2", "<i8", ">f4", "<f2", "<f4", "<f8", ">u4"])
FIXED = st.lists(
    DTYPES.flatmap(lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, min_side=0))),
    max_size=5,
)
TEXTS = st.lists(st.one_of(st.text(), st.lists(st.text(), max_size=4)), max_size=2)


@settings(max_examples=40)
@given(FIXED, TEXTS, st.integers(-(1 << 63), (1 << 63) - 1))
def test_any_values_arrive_to_the_last_bit(fixed: list[Any], texts: list[Any], timestep: int) -> None:
    values = {f"array {index}": array for index, array in enumerate(fixed)}
    values.update({f"text {index}": text for index, text in enumerate(texts)})
    fields = [
        LayoutField(name, value.dtype.str, value.shape)
        if isinstance(value, np.ndarray)
        else LayoutField(name, "utf8", (len(value),) if isinstance(value, list) else ())
        for name, value in values.items()
    ]
    if not fields:
        return
    sent = Layout(15, fields)
    layout = read_layout(**dict(zip(("number", "fields"), sent.to_wire().values())))
    data = payload(sent.request_frame(values, timestep=timestep))
    assert read_header(data)[3] == timestep
    arrived = layout.values(data)
    assert arrived.keys() == values.keys()
    for name, value in values.items():
        if not isinstance(value, np.ndarray):
            assert arrived[name] == value
            continue
        assert (arrived[name].dtype, arrived[name].shape) == (value.dtype, value.shape)
        assert arrived[name].tobytes() == value.tobytes()
        assert arrived[name].flags.writeable


@settings(max_examples=50)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 2),
    st.booleans(),
)
def test_any_chunk_arrives_to_the_last_bit(steps: int, dim: int, rows: int, raw: int, known: bool) -> None:
    random = np.random.default_rng(steps)
    axes = (rows, dim) if rows else (dim,)
    chunk = ActionChunk(
        random.normal(size=(steps, *axes)).astype(np.float32),
        "joint",
        "absolute",
        random.normal(size=(raw, *axes)).astype(np.float32) if raw else None,
        np.arange(rows)[:, np.newaxis] if rows else -1,
        1.25 if known else None,
    )
    frame = chunk_reply_frame(3, chunk)
    assert frame is not None
    again = read_chunk_reply(payload(frame), "joint", "absolute")
    assert (again.ctrl_space, again.ctrl_type, again.infer_ms) == ("joint", "absolute", chunk.infer_ms)
    for name in ("actions", "raw_actions", "timestep"):
        np.testing.assert_array_equal(getattr(again, name), getattr(chunk, name))
        if isinstance(getattr(chunk, name), np.ndarray):
            assert getattr(again, name).shape == getattr(chunk, name).shape


def test_chunks_that_a_packed_reply_cannot_hold() -> None:
    assert chunk_reply_frame(0, ActionChunk(CHUNK.astype(np.float64), "ee", "delta", None, 7)) is None
    assert chunk_reply_frame(0, ActionChunk(CHUNK, "ee", "delta")) is None


def test_large_arrays_leave_by_reference() -> None:
    image = np.zeros((200, 200), np.uint8)
    layout = Layout(0, [LayoutField("image", "|u1", image.shape), LayoutField("tail", "<f4", (2,))])
    frame = layout.request_frame({"image": image, "tail": np.ones(2, np.float32)})
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), image) for buffer in frame)
    assert layout.values(payload(frame))["tail"].tolist() == [1, 1]


def test_images_are_items_of_any_length() -> None:
    layout = Layout(1, [LayoutField("image", "jpeg", (2, 3, 48, 64)), LayoutField("state", "<f4", (1,))])
    images = [b"a" * 5000, b"bc"]
    data = payload(layout.request_frame({"image": images, "state": np.ones(1, np.float32)}))
    assert [bytes(item) for item in layout.values(data)["image"]] == images


def test_array_bytes_are_those_in_c_order() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    assert bytes(array_bytes(array.T)) == array.T.tobytes()
    assert np.shares_memory(np.frombuffer(array_bytes(array), np.uint8), array)


@pytest.mark.parametrize(
    ("number", "fields", "told"),
    [
        (16, [["a", "<f4", [1]]], "layout is 16, expected 0 to 15"),
        (-1, [["a", "<f4", [1]]], "layout is -1"),
        (True, [["a", "<f4", [1]]], "layout is True"),
        ("0", [["a", "<f4", [1]]], "layout is '0'"),
        (0, None, "fields is a NoneType"),
        (0, [], "has 0 fields"),
        (0, [["a", "<f4", [1]]] * 33, "has 33 fields"),
        (0, [["a", "<f4", [1]]] * 2, "the same name"),
        (0, ["abc", 5], "a field of a layout is a str"),
        (0, [["a", "<f4"]], "a field of a layout is a list"),
        (0, [[1, "<f4", [1]]], "the name of a field is 1"),
        (0, [["a" * 65, "<f4", [1]]], "the name of a field"),
        (0, [["a", "|O", [1]]], "the kind of 'a' is '|O'"),
        (0, [["a", "<f4,<f4", [1]]], "the kind of 'a'"),
        (0, [["a", "<f4\n", [1]]], "the kind of 'a'"),
        (0, [["a", "<f16", [1]]], "the kind of 'a'"),
        (0, [["a", "<c8", [1]]], "the kind of 'a'"),
        (0, [["a", 4, [1]]], "the kind of 'a' is 4"),
        (0, [["a", "<f4", 3]], "the shape of 'a' is 3"),
        (0, [["a", "<f4", [-1]]], "the shape of 'a'"),
        (0, [["a", "<f4", [1.0]]], "the shape of 'a'"),
        (0, [["a", "<f4", [1] * 9]], "the shape of 'a'"),
        (0, [["a", "<f4", [1 << 40]]], "the shape of 'a'"),
        (0, [["a", "<f4", [1 << 30, 1 << 30]]], "which no payload can hold"),
        (0, [["a", "|u1", [0, 1 << 30, 1 << 30]]], "which no payload can hold"),
        (0, [["a", "<f8", [1 << 29]]], "ends after"),
        (0, [["a", "|u1", [1 << 30]], ["b", "|u1", [1 << 30]]], "'b' ends after"),
        (0, [["a", "utf8", [2, 2]]], "which is utf8, is (2, 2), expected [] or [rows]"),
        (0, [["a", "utf8", [5000]]], "has 5000 texts and images"),
        (0, [["a", "jpeg", [48, 64, 3]]], "expected [cameras, 3, height, width]"),
        (0, [["a", "png", [1, 4, 48, 64]]], "expected [cameras, 3, height, width]"),
        (0, [["a", "png", [100, 100, 3, 4, 4]]], "has 10000 texts and images"),
    ],
)
def test_a_layout_that_is_none_is_refused(number: Any, fields: Any, told: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        read_layout(number, fields)
    assert told in str(refused.value)
    assert len(str(refused.value)) < 300


@settings(max_examples=100)
@given(st.data())
def test_a_payload_of_another_length_is_refused_or_read_within_itself(data: st.DataObject) -> None:
    whole = payload(FRAMES["request"]())
    if data.draw(st.booleans()):
        changed = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        changed = bytearray(whole)
        at = data.draw(st.integers(0, len(whole) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        read_header(changed)
        values = SINGLE.values(changed)
    except InvalidParams:
        return
    assert len(changed) == len(whole)
    assert values["image"].shape == IMAGE.shape


def test_lengths_of_items_are_those_of_the_payload() -> None:
    data = payload(FRAMES["request"]())
    data[16:20] = b"\xff\xff\xff\xff"
    with pytest.raises(InvalidParams, match="a request of layout 2 has 109 bytes, expected 4294967391"):
        SINGLE.values(data)
    data[16:20] = struct.pack("<I", 13)
    data[-1] = 0xFF
    with pytest.raises(InvalidParams, match="'raw_lang' is not UTF-8"):
        SINGLE.values(data)


def test_values_that_were_not_declared_are_not_sent() -> None:
    layout = Layout(0, [LayoutField("a", "<f4", (2,)), LayoutField("t", "utf8", (2,))])
    good = {"a": np.zeros(2, np.float32), "t": ["x", "y"]}
    layout.request_frame(good)
    for wrong in ({"a": np.zeros(3, np.float32)}, {"a": np.zeros(2)}, {"t": ["x"]}, {"t": "x"}):
        with pytest.raises(LocalProtocolError, match="declared as"):
            layout.request_frame({**good, **wrong})


@settings(max_examples=100)
@given(st.sampled_from(["reply", "reply_average", "reply_batch"]), st.data())
def test_a_reply_that_lies_is_refused_or_read_within_itself(name: str, data: st.DataObject) -> None:
    whole = payload(FRAMES[name]() or ())
    at, value = data.draw(st.integers(0, 47)), data.draw(st.integers(0, 255))
    changed = bytearray(whole)
    changed[at] = value
    if data.draw(st.booleans()):
        changed = changed[: data.draw(st.integers(0, len(whole)))]
    try:
        chunk = read_chunk_reply(changed, "joint", "absolute")
    except RemoteProtocolError:
        return
    assert chunk.actions.nbytes <= len(whole)
    assert chunk.infer_ms is None or not math.isnan(chunk.infer_ms)
