"""A message that a template reads is one that the full reader accepts, and gives the same values."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import numpy as np
import pytest

from robowire.errors import RemoteProtocolError
from robowire.frontends.msgpack_templates import MessageTemplate, MessageTemplates
from robowire.frontends.openpi.codec import ARRAY_FIELDS, decode, encode


def observation(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "observation/image": rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
        "observation/state": rng.normal(size=8),
        "images": {"cam_high": rng.integers(0, 256, (3, 2, 2), dtype=np.uint8)},
        "flags": rng.integers(0, 2, 3).astype(bool),
        "prompt": "lift the cube",
        "more": [1, -1, 2.5, None, True, b"bytes", {"a": "b"}],
    }


def template(message: bytes) -> MessageTemplate[None]:
    return MessageTemplate(message, ARRAY_FIELDS)


def read(known: MessageTemplate[None], message: bytes | bytearray) -> list[np.ndarray] | None:
    """Return the arrays of a message where the template fits."""
    if not known.fits(memoryview(message)):
        return None
    return [np.ndarray(shape, dtype, message, begin) for shape, dtype, begin in known.places]


def arrays_of(value: Any) -> list[np.ndarray]:
    """Return the arrays of a value, in their order."""
    if isinstance(value, np.ndarray):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [array for item in values for array in arrays_of(item)]


def test_other_numbers_are_read_as_the_full_reader_reads_them() -> None:
    known = template(encode(observation(0)))
    for number in range(5):
        message = encode(observation(number))
        found = read(known, message)
        assert found is not None
        expected = arrays_of(decode(message))
        assert len(found) == len(expected) == 4
        for array, other in zip(found, expected):
            assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def test_the_prototype_is_the_value_with_arrays_of_zeros() -> None:
    known = template(encode(observation(0)))
    expected = decode(encode(observation(1)))
    assert list(known.prototype) == list(expected)
    assert known.prototype["more"] == expected["more"]
    for number, (array, other) in enumerate(zip(arrays_of(known.prototype), arrays_of(expected))):
        assert (array.dtype, array.shape, array.any()) == (other.dtype, other.shape, False)
        assert known.index(array) == number


def test_a_change_of_any_byte_is_one_of_a_number_or_needs_the_full_reader() -> None:
    message = encode(observation(0))
    known = template(message)
    rng = random.Random(1)
    fitting = 0
    for place in range(len(message)):
        changed = bytearray(message)
        changed[place] ^= 1 << rng.randrange(8)
        found = read(known, changed)
        if found is None:
            continue
        fitting += 1
        expected = decode(bytes(changed))
        assert [a.tobytes() for a in found] == [a.tobytes() for a in arrays_of(expected)]
        assert expected["prompt"] == "lift the cube"
    assert fitting == sum(array.nbytes for array in arrays_of(observation(0)))


def array(**changed: Any) -> dict[bytes, Any]:
    return {
        b"__ndarray__": True,
        b"data": bytes(8),
        b"dtype": "<f8",
        b"shape": [1],
        **{key.encode(): value for key, value in changed.items()},
    }


@pytest.mark.parametrize(
    "message",
    [
        msgpack.packb({"prompt": "no array"}),
        msgpack.packb({"a": array(dtype="<U2")}),
        msgpack.packb({"a": array(dtype="<U2", shape=[])}),
        msgpack.packb({"a": array(shape=[0], data=b"")}),
        msgpack.packb({"a": array(shape=[2])}),
        msgpack.packb({"a": array(shape=array())}),
        msgpack.packb({"a": array(data="text")}),
        msgpack.packb({"a": array(dtype="O")}),
        msgpack.packb({"a": array(), "b": msgpack.ExtType(1, b"x")}),
        b"\x82" + 2 * (msgpack.packb("twice") + msgpack.packb(array())),
        msgpack.packb([[[[[[[[[[array()]]]]]]]]]]),
        msgpack.packb({str(i): array() for i in range(65)}),
        msgpack.packb({"a": array(), "text": "x" * 9000}),
        msgpack.packb({"a": array()})[:-1],
        msgpack.packb({"a": array()}) + b"\0",
    ],
)
def test_what_may_mean_something_else_gets_no_template(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"^the message gets no template$"):
        template(message)


def test_a_client_whose_messages_always_differ_is_read_in_full() -> None:
    made = []

    def recipe(known: MessageTemplate[int]) -> int:
        made.append(known)
        return len(made)

    templates: MessageTemplates[int] = MessageTemplates(ARRAY_FIELDS, recipe)
    for number in range(1000):
        message = encode({**observation(number), "prompt": f"{number:05}"})
        assert templates.read(message) is None
        templates.accepted(message)
    assert len(made) == 8
    assert len(templates._templates) == 1


def test_an_observation_is_read_by_its_template_from_the_third_on() -> None:
    templates: MessageTemplates[str] = MessageTemplates(ARRAY_FIELDS, lambda known: "the recipe")
    for number in range(2):
        message = encode(observation(number))
        assert templates.read(message) is None
        templates.accepted(message)
    assert templates.read(encode(observation(2))) == "the recipe"


@pytest.mark.parametrize("error", [ValueError("no"), RemoteProtocolError("no")])
def test_a_message_whose_values_decide_is_read_in_full(error: Exception) -> None:
    def recipe(known: MessageTemplate[None]) -> None:
        raise error

    templates: MessageTemplates[None] = MessageTemplates(ARRAY_FIELDS, recipe)
    for number in range(50):
        message = encode(observation(number))
        assert templates.read(message) is None
        templates.accepted(message)
