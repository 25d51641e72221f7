"""What encode refuses, and that it copies no array. Its bytes are in the golden files."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from robowire.chunking import ActionChunk
from robowire.errors import LocalProtocolError
from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode, encode_frame


def there_and_back(value: Any) -> Any:
    return loads(b"".join(encode(value)))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_large_array_leaves_by_reference() -> None:
    image = np.zeros((200, 200), np.uint8)
    assert any(np.shares_memory(buffer, image) for buffer in encode({"image": image}))


@pytest.mark.parametrize("strided", [False, True])
def test_an_array_in_any_order_arrives_equal(strided: bool) -> None:
    image = np.arange(240_000, dtype=np.float32).reshape(200, 300, 4)
    image = image[::2, ::3] if strided else np.asfortranarray(image)
    np.testing.assert_array_equal(there_and_back(image), image)


@pytest.mark.parametrize("size", [3, 200], ids=["copied", "by reference"])
def test_a_matrix_in_fortran_order_arrives_in_it(size: int) -> None:
    matrix = np.asfortranarray(np.arange(size * size, dtype=np.float64).reshape(size, size))
    for arrived in (there_and_back(matrix), pickle.loads(b"".join(encode(matrix)))):
        np.testing.assert_array_equal(arrived, matrix)
        assert arrived.flags.f_contiguous
    assert any(np.shares_memory(buffer, matrix) for buffer in encode(matrix)) == (size == 200)


def test_a_frame_announces_all_its_buffers() -> None:
    header, *buffers = encode_frame({"image": np.zeros((200, 200), np.uint8)})
    assert int.from_bytes(header, "big") == sum(len(buffer) for buffer in buffers)


def test_equal_text_is_written_once() -> None:
    assert b"".join(encode(["camera", "camera"])).count(b"camera") == 1


def test_more_than_256_texts_are_told_apart() -> None:
    names = [f"name {number}" for number in range(300)]
    assert pickle.loads(b"".join(encode(names * 2))) == names * 2


def test_an_ordered_dict_leaves_as_a_dict() -> None:
    assert type(there_and_back(OrderedDict(a=1))) is dict


def test_text_may_hold_half_a_surrogate_pair() -> None:
    assert there_and_back("\ud800") == "\ud800"


@pytest.mark.parametrize("action_dim", [1, 3, 70, 5000])
@pytest.mark.parametrize("chunk_size", [0, 1, 2, 5])
def test_a_chunk_leaves_as_a_list_of_actions(chunk_size: int, action_dim: int) -> None:
    rows = np.random.default_rng(0).normal(size=(chunk_size, action_dim)).astype(np.float32)
    actions = there_and_back(ActionChunk(rows, "joint", "absolute"))
    assert [type(action) for action in actions] == [MetaAction] * chunk_size
    assert [action.action.tolist() for action in actions] == rows.tolist()
    assert all(
        (a.ctrl_space, a.ctrl_type, a.gripper_continuous) == ("joint", "absolute", False) for a in actions
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batched_chunk_leaves_as_object_arrays_of_dicts(batch: int) -> None:
    rows = np.random.default_rng(0).normal(size=(4, batch, 2))
    steps = there_and_back(ActionChunk(rows, "ee", "delta"))
    assert [step.shape for step in steps] == [(batch,)] * 4
    assert [[action["action"].tolist() for action in step] for step in steps] == rows.tolist()
    assert list(steps[0][0]) == list(vars(MetaAction()))


def test_a_chunk_of_a_strided_array_arrives_equal() -> None:
    rows = np.arange(40.0).reshape(8, 5)[::2, ::2]
    actions = there_and_back(ActionChunk(rows, "ee", "delta"))
    assert [action.action.tolist() for action in actions] == rows.tolist()


def test_constants_of_a_chunk_are_shared_with_what_is_around_it() -> None:
    chunk = ActionChunk(np.ones((2, 2)), "ee", "delta")
    first, second = there_and_back([chunk, chunk])
    assert [vars(action).keys() for action in first] == [vars(action).keys() for action in second]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "cannot send a object: only plain data and numpy arrays cross the wire"),
        ({1, 2}, "cannot send a set: only plain data and numpy arrays cross the wire"),
        (
            np.array(["2026-01-01"], dtype="M8[D]"),
            "cannot send an array of dtype datetime64[D]: only numbers, text and objects",
        ),
        (np.array([object()]), "cannot send a object: only plain data and numpy arrays cross the wire"),
        ({(1, 2): 3}, "cannot send a dict whose key is (1, 2): keys are text or ints of 64 bits"),
        (
            {1 << 63: 3},
            "cannot send a dict whose key is 9223372036854775808: keys are text or ints of 64 bits",
        ),
        (1 << 2040, "cannot send an integer of 2041 bits, 2039 is the most"),
        (nested(65), "cannot send a value nested deeper than 64"),
        (MetaObs(state={1, 2}), "cannot send a set: only plain data and numpy arrays cross the wire"),
    ],
)
def test_what_the_other_side_would_refuse_is_our_own_mistake(value: Any, message: str) -> None:
    with pytest.raises(LocalProtocolError) as raised:
        encode(value)
    assert str(raised.value) == message


def test_the_deepest_value_that_leaves_arrives() -> None:
    assert there_and_back(nested(64)) == nested(64)
