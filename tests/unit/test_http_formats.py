"""What a body over HTTP says, and how replies look as JSON, MessagePack and PNG."""

from __future__ import annotations

import base64
import io
import json
import re
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from robowire.errors import InvalidParams
from robowire.frontends.http import models
from robowire.frontends.http.formats import read_body, to_file, to_json, to_msgpack
from robowire.meta import MetaAction, MetaObs
from robowire.wire.methods import METHODS

IMAGE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
CAMERAS = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 6), dtype=np.uint8)


def read_png(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_an_empty_body_names_nothing() -> None:
    assert read_body(b"", "") == {}


def test_a_body_is_json_whatever_curl_says_it_is() -> None:
    assert read_body(b'{"seed": 3}', "application/x-www-form-urlencoded") == {"seed": 3}


def test_arrays_of_a_msgpack_body_are_arrays() -> None:
    action = np.array([[0.5, 1.0]], np.float32)
    array = {"dtype": "<f4", "shape": [1, 2], "data": action.tobytes()}
    read = read_body(msgpack.packb({"actions": array}), "application/msgpack")["actions"]
    assert (read.dtype, read.tolist()) == (np.float32, [[0.5, 1.0]])


def test_an_action_with_its_control_space_is_a_meta_action() -> None:
    body = {"action": {"ctrl_space": "ee", "ctrl_type": "delta", "action": [1, 2]}}
    read = read_body(json.dumps(body).encode(), "")["action"]
    assert isinstance(read, MetaAction)
    assert (read.ctrl_space, read.ctrl_type) == ("ee", "delta")
    assert read.action is not None
    assert (read.action.dtype, read.action.tolist()) == (np.float32, [1, 2])


def test_a_chunk_may_be_of_meta_actions() -> None:
    body = {"actions": [{"ctrl_space": "ee", "action": [1.0]}]}
    (read,) = read_body(json.dumps(body).encode(), "")["actions"]
    assert isinstance(read, MetaAction)


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"{", "", "the body is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
         "(char 1)"),
        (b"[1]", "", "the body is a list, expected an object of parameters"),
        (b"[" * 30_000, "", "the body is not JSON: maximum recursion depth exceeded while decoding a JSON "
         "array from a unicode string"),
        (b"\x81\xa1", "application/msgpack", "the body is not MessagePack: Unpack failed: incomplete input"),
        (
            msgpack.packb({"action": {"dtype": "O", "shape": [1], "data": b"12345678"}}),
            "application/x-msgpack",
            "the body is not MessagePack: dtype is 'O', expected numbers such as '<f8'",
        ),
        (
            msgpack.packb({"action": {"dtype": "<f8", "shape": [2], "data": b"12345678"}}),
            "application/msgpack",
            "the body is not MessagePack: 8 bytes are not float64 of shape (2,)",
        ),
        (
            msgpack.packb({"action": {"dtype": "<f8", "shape": [-1], "data": b"12345678"}}),
            "application/msgpack",
            "the body is not MessagePack: an array is {'dtype': text, 'shape': list "
            "of at most 8 sizes, 'data': bytes}",
        ),
        (
            b'{"action": {"ctrl_space": "ee", "action": ["x"]}}',
            "",
            "the action of a MetaAction is not a list of numbers",
        ),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(
    body: bytes, content_type: str, message: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        read_body(body, content_type)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([1.5, np.nan, np.inf], np.float32), "[1.5,null,null]"),
        (np.array([[1, 2]]), "[[1,2]]"),
        (np.float64(0.1), "0.1"),
        (float("nan"), "null"),
        (np.bool_(True), "true"),
        ((1, "a", None), '[1,"a",null]'),
        (np.zeros((2, 2), np.uint8), "[[0,0],[0,0]]"),
        (IMAGE, '{"dtype":"|u1","shape":[4,6,3]}'),
        (b"\x01\x02", '"AQI="'),
        ({"encoding": "jpeg", "shape": (4, 6, 3), "data": b"..."}, '{"encoding":"jpeg","shape":[4,6,3]}'),
        (MetaObs(state=np.array([1.0]), timestep=3), '{"state":[1.0],"raw_lang":"","timestep":3}'),
    ],
)  # fmt: skip
def test_a_reply_as_json(value: Any, text: str) -> None:
    assert to_json({"x": value}).decode() == f'{{"x":{text}}}'


def test_images_are_in_json_where_they_are_asked_for() -> None:
    (shown,) = json.loads(to_json([IMAGE], images=True))
    assert np.array_equal(read_png(base64.b64decode(shown.pop("data"))), IMAGE)
    assert shown == {"encoding": "png", "shape": [4, 6, 3]}


def test_images_that_are_encoded_stay_so() -> None:
    image = {"encoding": "jpeg", "shape": (4, 6, 3), "data": b"\x01\x02"}
    described = {"encoding": "jpeg", "shape": [4, 6, 3]}
    assert json.loads(to_json(image, images=True)) == {**described, "data": "AQI="}
    assert msgpack.unpackb(to_msgpack(image)) == {**described, "data": b"\x01\x02"}
    assert to_file(image) == (b"\x01\x02", "image/jpeg")


def test_arrays_of_a_reply_in_msgpack_are_their_bytes() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not contiguous
    described = msgpack.unpackb(to_msgpack({"x": value}))["x"]
    assert np.array_equal(
        np.frombuffer(described["data"], described["dtype"]).reshape(described["shape"]), value
    )


def test_an_empty_array_of_a_reply_in_msgpack_has_no_bytes() -> None:
    assert msgpack.unpackb(to_msgpack(np.zeros((0, 3)))) == {"dtype": "<f8", "shape": [0, 3], "data": b""}


def test_images_are_raw_in_msgpack_unless_they_are_wanted_as_png() -> None:
    raw = msgpack.unpackb(to_msgpack(IMAGE))
    assert raw == {"dtype": "|u1", "shape": [4, 6, 3], "data": IMAGE.tobytes()}
    described = msgpack.unpackb(to_msgpack(IMAGE, images=True))
    assert np.array_equal(read_png(described.pop("data")), IMAGE)
    assert described == {"encoding": "png", "shape": [4, 6, 3]}


def test_a_png_holds_the_image() -> None:
    content, media_type = to_file(IMAGE)
    assert media_type == "image/png"
    assert np.array_equal(read_png(content), IMAGE)


def test_a_png_of_several_cameras_shows_them_side_by_side() -> None:
    shown = read_png(to_file(CAMERAS)[0])
    assert np.array_equal(shown[:, :6], CAMERAS[0].transpose(1, 2, 0))
    assert np.array_equal(shown[:, 6:], CAMERAS[1].transpose(1, 2, 0))


def test_numbers_are_not_an_image() -> None:
    with pytest.raises(InvalidParams) as caught:
        to_file(np.zeros((4, 4, 3)))
    assert str(caught.value) == (
        "this is a float64 array of shape (4, 4, 3), not an image: request it with 'Accept: application/json'"
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        # The product of these sizes keeps a processor busy for as long as there are more of them.
        (
            {"dtype": "<f8", "shape": [2**62] * 9, "data": b""},
            "an array is {'dtype': text, 'shape': list of at most 8 sizes, 'data': bytes}",
        ),
        (
            {"dtype": "<,", "shape": [1], "data": b"12345678"},
            "dtype is '<,', expected numbers such as '<f8'",
        ),
    ],
)
def test_an_array_that_cannot_be_is_refused(array: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParams, match=f"^{re.escape(f'the body is not MessagePack: {message}')}$"):
        read_body(msgpack.packb({"action": array}), "application/msgpack")


def test_a_number_past_float32_in_a_meta_action_is_infinite() -> None:
    body = {"action": {"ctrl_space": "ee", "action": [1e300]}}
    action = read_body(json.dumps(body).encode(), "")["action"]
    assert np.isinf(action.action).all()  # which the server refuses


def body_of(action: Any) -> bytes:
    return json.dumps({"action": {"ctrl_space": "ee", "action": action}}).encode()


@pytest.mark.parametrize(
    "action",
    [["1", "2"], "12", [[1, 2], [3]], [True, 1], [None], {"a": 1}, "x" * 200_000, [["x" * 100_000] * 9]],
)
def test_only_numbers_become_the_action_of_a_meta_action(action: Any) -> None:
    with pytest.raises(InvalidParams, match=r"^the action of a MetaAction is not a list of numbers$"):
        read_body(body_of(action), "")


def test_a_number_too_large_for_a_float_is_an_infinite_action() -> None:
    assert np.isinf(read_body(body_of([10**400]), "")["action"].action).all()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"action": [' + b"[]," * 500_000 + b"[]]}", ""),
        (b'{"action": [' + b"{}," * 500_000 + b"{}]}", ""),
        (msgpack.packb({"action": [[]] * 1_000_000}), "application/msgpack"),
        (msgpack.packb({"action": [{}] * 1_000_000}), "application/msgpack"),
        (body_of("x" * 200_000), ""),
        (body_of(["x" * 1000] + ["y"] * 1000), ""),
    ],
    ids=["lists", "objects", "msgpack-lists", "msgpack-maps", "text", "texts"],
)
def test_a_body_takes_a_few_times_its_length(body: bytes, content_type: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidParams):
            read_body(body, content_type)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(body) + 50_000


@pytest.mark.parametrize(
    ("body", "method"),
    [
        (models.StepBody, "step"),
        (models.ChunkBody, "step_chunk"),
        (models.RestoreBody, "restore"),
        (models.VerifyBody, "verify"),
        (models.ForkBody, "fork"),
    ],
)
def test_openapi_has_the_parameters_of_the_table(body: Any, method: str) -> None:
    row = METHODS[method]
    extra = ["session", *(["number"] if row.numbered else [])]
    assert sorted(body.model_fields) == sorted([*row.parameters, *extra])
    for name, parameter in row.parameters.items():
        assert body.model_fields[name].is_required() == parameter.required
        if not parameter.required:
            assert body.model_fields[name].default == parameter.default
