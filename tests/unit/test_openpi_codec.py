"""openpi's msgpack: the bytes of its own packer, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robowire.errors import RemoteProtocolError
from robowire.frontends.openpi.codec import decode, encode, encode_chunk


def test_an_array_has_the_bytes_of_openpis_packer() -> None:
    assert encode({"a": np.array([[1, 2]], "<i2")}) == (
        b"\x81\xa1a\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x04\x01\x00\x02\x00\xc4\x05dtype\xa3<i2\xc4\x05shape\x92\x01\x02"
    )


def test_a_scalar_has_the_bytes_of_openpis_packer() -> None:
    assert encode(np.float32(0.5)) == (
        b"\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xc4\x05dtype\xa3<f4"
    )


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        np.array(3, np.int64),
        np.zeros((0, 5), np.float16),
        np.array([True, False]),
    ],
)
def test_an_array_comes_back(array: np.ndarray) -> None:
    back = decode(encode({"nested": {"array": array}}))["nested"]["array"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert not back.flags.writeable


def test_scalars_and_texts_come_back() -> None:
    value = decode(
        encode({"a": np.float32(0.1), "b": np.str_("x"), "c": np.array(["y"]), "d": [1, None, True]})
    )
    assert value == {"a": np.float32(0.1), "b": "x", "c": "y", "d": [1, None, True]}
    assert type(value["a"]) is np.float32


@pytest.mark.parametrize(
    "value", [np.array([None]), np.zeros(2, complex), np.zeros(1, "i4,i4"), {1, 2}, object()]
)
def test_what_the_wire_does_not_carry_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError, match="openpi's wire carries no"):
        encode({"value": value})


def test_an_error_names_what_was_found() -> None:
    message = encode({b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [3]})
    with pytest.raises(RemoteProtocolError) as raised:
        decode(message)
    assert str(raised.value) == "an array of <f4 and shape (3,) holds 8 bytes, expected 12 bytes"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((16, 7), np.float32),
        np.arange(6.0).reshape(2, 3).T,
        np.zeros((64, 14)),
        np.ones((300, 80), np.float32),
        np.zeros(()),
        np.zeros((0, 3), np.int8),
    ],
)
@pytest.mark.parametrize("previous_ms", [None, 3.0, 1234.5])
def test_a_chunk_is_encoded_as_any_map(array: np.ndarray, previous_ms: float | None) -> None:
    server_timing = (
        {"infer_ms": 0.25} if previous_ms is None else {"infer_ms": 0.25, "prev_total_ms": previous_ms}
    )
    value = {"policy_timing": {"infer_ms": 0.25}, "server_timing": server_timing, "actions": array}
    assert encode_chunk(array, 0.25, previous_ms) == encode(value)
