"""A template accepts what the full reader accepts, and gives the same value."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robowire.chunking import ActionChunk
from robowire.errors import UnsafePayload
from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle import templates
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.templates import TemplateReader
from robowire.wire.pickle.writer import encode

PIXELS = np.random.default_rng(0).integers(0, 255, (1, 3, 90, 90), np.uint8)  # large: read without a copy


def observation(step: int = 3, protocol: int = 4) -> bytes:
    state = np.full(14, step, np.float32)
    return pickle.dumps(MetaObs(state=state, image=PIXELS + step, raw_lang="lift", timestep=step), protocol)


def actions(first: float = 0.0, protocol: int = 4) -> bytes:
    rows = [MetaAction("joint", "absolute", np.full(7, first + row, np.float32)) for row in range(64)]
    return pickle.dumps(rows, protocol)


def chunk(first: float = 0.0) -> bytes:
    values = np.arange(64 * 14, dtype=np.float32).reshape(64, 14) + first
    return b"".join(encode(ActionChunk(values, ctrl_space="joint", ctrl_type="absolute")))


def described(value: Any) -> Any:
    """Return everything a policy could tell of a value: types, order, bits, and what numpy says of memory."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        flags = value.flags
        memory = (flags.c_contiguous, flags.f_contiguous, flags.owndata, flags.writeable, flags.aligned)
        items = described(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return kind, value.dtype.str, value.shape, value.strides, memory, items
    if isinstance(value, np.generic):
        return kind, value.dtype.str, value.tobytes()
    if isinstance(value, dict):
        return kind, [(described(key), described(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return kind, [described(item) for item in value]
    if isinstance(value, (MetaObs, MetaAction)):
        return kind, described(vars(value))
    return kind, value if kind is bytes else repr(value)


def read(reader: Any, payload: bytes) -> Any:
    try:
        return described(reader(bytearray(payload)))
    except UnsafePayload as exc:
        return str(exc)


def assert_as_in_full(reader: TemplateReader, payload: bytes) -> None:
    assert read(reader.loads, payload) == read(loads, payload)


def taught(payload: bytes) -> TemplateReader:
    reader = TemplateReader()
    for _ in range(2):
        reader.loads(bytearray(payload))
    return reader


PAYLOADS = {
    "observation": observation(),
    "observation of protocol 5": observation(protocol=5),
    "actions": actions(),
    "actions of protocol 5": actions(protocol=5),
    "our list": chunk(),
    "our chunk": b"".join(
        encode({"status": "ok", "actions": np.ones((8, 7), np.float32), "timestep": 4, "infer_ms": 0.5})
    ),
    "ACT": pickle.dumps({"qpos": [0.5, 1.5], "images": {"front": PIXELS[0].transpose(1, 2, 0).copy()}}),
    "a step": pickle.dumps({"method": "step", "action": np.ones(7), "number": 300, "more": (1, [2.5])}),
    "Fortran": pickle.dumps({"a": np.asfortranarray(np.ones((3, 4))), "b": np.zeros(2, "S5")}),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_repeated_payloads_are_read_by_a_template_and_give_what_the_full_reader_gives(
    payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = taught(payload)
    expected = read(loads, payload)

    def refuse(payload: bytearray) -> Any:
        raise AssertionError("read in full")

    monkeypatch.setattr(templates, "loads", refuse)
    assert read(reader.loads, payload) == expected


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_every_byte_that_changes_is_read_as_in_full(payload: bytes) -> None:
    reader = taught(payload)
    chosen = random.Random(1)
    outside = [place for place in range(len(payload)) if place < 150 or place > len(payload) - 100]
    for place in outside + chosen.sample(range(len(payload)), 40):
        changed = bytearray(payload)
        changed[place] ^= chosen.randrange(1, 256)
        assert_as_in_full(reader, bytes(changed))
    assert_as_in_full(reader, payload)
    assert_as_in_full(reader, payload[:-1])


def test_numbers_and_arrays_of_the_next_payload_are_its_own() -> None:
    reader = taught(observation(3))
    first, second = reader.loads(bytearray(observation(4))), reader.loads(bytearray(observation(5)))
    first.state[:] = first.image[:] = 9
    assert (second.timestep, second.state[0]) == (5, 5)
    assert np.array_equal(second.image, PIXELS + 5)
    rows = taught(actions(0)).loads(bytearray(actions(1)))
    rows[0].action[:] = 0
    assert [row.action[0] for row in rows] == [0, *range(2, 65)]


SHARED = np.ones(9)
UNFIT = {
    "an array twice": pickle.dumps([SHARED, SHARED]),
    "a list twice": pickle.dumps([[1.5]] * 2),
    "bytes that are no array": pickle.dumps(b"x" * 8),
    "text": pickle.dumps(np.array(["lift"])),
    "objects": pickle.dumps(np.array([1.5, "a"], object)),
    "a scalar": pickle.dumps(np.float64(1)),
    "another byte order": pickle.dumps(np.ones(3, ">f4")),
    "nothing": pickle.dumps(np.zeros(0)),
    "a bytearray": pickle.dumps([bytearray(b"abc"), 1.5], 5),
    "no numbers": pickle.dumps({"method": "reset"}),
}


@pytest.mark.parametrize("payload", UNFIT.values(), ids=UNFIT)
def test_payloads_of_which_one_byte_matters_twice_get_no_template(payload: bytes) -> None:
    assert templates._template(bytearray(payload)) is None
    reader = taught(payload)
    assert_as_in_full(reader, payload)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.sampled_from(["f4", "u1", "i8", "S3", "U2", "b1", ">f8", "c16"]).flatmap(
        lambda spec: st.integers(0, 5).map(lambda size: np.ones((size,), spec))
    )
    | st.builds(MetaAction, action=st.integers(1, 4).map(lambda size: np.ones(size, "f4")))
)
values = st.recursive(
    leaves,
    lambda items: st.lists(items) | st.lists(items).map(tuple) | st.dictionaries(st.text(max_size=4), items),
    max_leaves=8,
)


@settings(max_examples=60)
@given(values, st.integers(2, 5), st.randoms(use_true_random=False))
def test_whatever_was_read_before_a_payload_reads_as_in_full(value: Any, protocol: int, chance: Any) -> None:
    payload = pickle.dumps(value, protocol)
    reader = taught(payload)
    assert_as_in_full(reader, payload)
    for _ in range(10):
        changed = bytearray(payload)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        assert_as_in_full(reader, bytes(changed))


def test_a_peer_whose_payloads_always_differ_ends_with_no_templates() -> None:
    reader = TemplateReader()
    for number in range(100):
        reader.loads(bytearray(pickle.dumps([f"{number:03}", 1.5])))
    assert reader._credit < templates._COST
    assert len(reader._templates) <= 4


def test_a_connection_keeps_four_templates_of_bounded_size() -> None:
    reader = TemplateReader()
    for size in range(1, 8):
        payload = bytearray(pickle.dumps(np.ones(size)))
        reader.loads(bytearray(payload))
        reader.loads(payload)
    assert len(reader._templates) == 4
    long = pickle.dumps({"text": "x" * templates._MAX_SKELETON, "number": 1.5})
    assert templates._template(bytearray(long)) is None
    assert templates._template(bytearray(pickle.dumps([1.5] * (templates._MAX_HOLES + 1)))) is None
