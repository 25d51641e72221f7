"""Packed steps: equal to the pickle path to the last bit, and refused where they lie."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_values import require_same

from robowire.errors import InvalidParams, RemoteProtocolError, UnsafePayload
from robowire.meta import MetaAction, MetaObs
from robowire.wire.messages import Request, ok
from robowire.wire.packed_simulator import (
    StepLayout,
    StepReplies,
    StepReplyWriter,
    read_step_request,
    step_request,
)
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "packed"
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (96, 64, 3), dtype=np.uint8)

OBSERVATIONS: dict[str, Any] = {
    "named arrays": {"image": IMAGE, "state": RNG.normal(size=7), "count": np.array(3, np.int32)},
    "views": {"flipped": IMAGE[::-1], "fortran": np.asfortranarray(RNG.normal(size=(40, 60))), "T": IMAGE.T},
    "scalars": {"a": 1.5, "b": -3, "c": True, "d": None, "e": -0.0, "f": float("nan"), "g": 1 << 70},
    "numpy scalars": {"a": np.float32(1.5), "b": np.bool_(True), "c": np.float64(2)},
    "other arrays": {
        "text": np.array(["a", "b"]),
        "empty": np.zeros((0, 3)),
        "big": np.arange(4.0).astype(">f8"),
    },
    "flags": {"mask": np.array([True, False]), "half": np.float16([1, 2]), "complex": np.complex64([1j])},
    "encoded": {"image": {"encoding": "png", "shape": (2, 2, 3), "data": b"\x89PNG"}},
    "a MetaObs": MetaObs(
        image=IMAGE[None].transpose(0, 3, 1, 2), state=np.float32([1, 2]), raw_lang="lift", timestep=3
    ),
    "nothing": {},
}
INFOS: tuple[dict[str, Any], ...] = (
    {},
    {"success": False},
    {"success": True, "distance": 0.5, "contacts": ["a", {"b": np.zeros(2)}], "label": "text", "n": 3},
)


def by_pickle(reply: Any) -> Any:
    return loads(bytearray(b"".join(map(bytes, encode(reply)))))


def reply_of(observation: Any, info: Any = INFOS[1], **changes: Any) -> dict[str, Any]:
    ended = {"reward": 0.25, "terminated": False, "truncated": True, "info": info}
    return ok(observation=observation, **{**ended, **changes})


def packed(writer: StepReplyWriter, reply: Any, known: int) -> bytearray:
    memory = writer.write(reply, known, lambda length: memoryview(bytearray(length)))
    assert memory is not None
    return bytearray(memory)


@pytest.mark.parametrize("info", INFOS, ids=["no info", "flat info", "nested info"])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_a_reply_is_that_of_the_pickle_path(name: str, info: dict[str, Any]) -> None:
    writer, replies = StepReplyWriter(), StepReplies()
    reply = reply_of(OBSERVATIONS[name], info)
    first = packed(writer, reply, replies.known)
    require_same(replies.read(first), by_pickle(reply))
    second = packed(writer, reply, replies.known)  # without its layout
    assert len(second) < len(first)
    require_same(replies.read(second), by_pickle(reply))


def test_a_chunk_is_that_of_the_pickle_path() -> None:
    writer, replies = StepReplyWriter(), StepReplies()
    for rewards in ([0.5], [0.1, 0.2, -1e-300]):
        reply = ok(
            observation=OBSERVATIONS["named arrays"],
            rewards=rewards,
            terminated=True,
            truncated=False,
            info=INFOS[1],
            steps=len(rewards),
        )
        require_same(replies.read(packed(writer, reply, replies.known)), by_pickle(reply))


def test_another_shape_dtype_order_key_or_text_is_another_layout() -> None:
    writer, replies = StepReplyWriter(), StepReplies()
    state = np.zeros((2, 3))
    meta = OBSERVATIONS["a MetaObs"]
    seen = []
    for observation, info in (
        ({"a": state}, {}),
        ({"a": state[:1]}, {}),
        ({"a": state.astype(np.float32)}, {}),
        ({"a": np.asfortranarray(state)}, {}),
        ({"b": state}, {}),
        ({"b": state}, {"c": 1}),
        ({"b": state}, {"c": 1.0}),
        ({"b": state}, {"c": True}),
        ({"b": state}, {"c": None}),
        ({"b": state}, {"c": "x"}),
        (meta, {}),
        (MetaObs(**{**vars(meta), "raw_lang": "stack"}), {}),
        ({"a": state}, {}),
    ):
        reply = reply_of(observation, info)
        require_same(replies.read(packed(writer, reply, replies.known)), by_pickle(reply))
        seen.append(replies.known)
    assert seen[0] == seen[-1]
    assert len(set(seen)) == len(seen) - 1


def test_many_small_arrays_are_read_from_where_they_are() -> None:
    sizes = (*range(1, 60), 2000, 1500, 1, 3000, 5, 7)  # runs that are cut by their size, and by images
    observation = {str(index): RNG.normal(size=size) for index, size in enumerate(sizes)}
    observation = {**observation, "image": IMAGE, "last": np.float32([[1, 2]]).T, "flipped": IMAGE[:, ::-1]}
    writer, replies = StepReplyWriter(), StepReplies()
    for _ in range(2):
        reply = reply_of(observation)
        require_same(replies.read(packed(writer, reply, replies.known)), by_pickle(reply))


def test_small_arrays_do_not_keep_the_images_of_their_reply() -> None:
    reply = reply_of(OBSERVATIONS["named arrays"])
    replies = StepReplies()
    observation = replies.read(packed(StepReplyWriter(), reply, 0))["observation"]
    owner = observation["state"].base
    assert len(owner) < 1024
    assert len(observation["image"].base) > IMAGE.nbytes


@pytest.mark.parametrize(
    ("observation", "info"),
    [({1: 2.0}, {}), ({}, {1: 2}), ({"x" * 300: 1.0}, {}), ({str(i): 0.0 for i in range(600)}, {})],
)
def test_what_has_no_layout_is_left_to_the_pickle(observation: Any, info: Any) -> None:
    writer = StepReplyWriter()
    assert writer.write(reply_of(observation, info), 0, lambda length: memoryview(bytearray(length))) is None


@pytest.mark.parametrize("number", [None, 7])
@pytest.mark.parametrize(
    ("method", "action"),
    [
        ("step", np.arange(7.0)),
        ("step", np.arange(7, dtype=np.float32)),
        ("step", np.arange(14.0)[::2]),
        ("step", np.zeros(0)),
        ("step", np.arange(3)),
        ("step", np.zeros((2, 3))),
        ("step", [1.0, 2, 3]),
        ("step", None),
        ("step", MetaAction("joint", "absolute", np.float32([1, 2]), True)),
        ("step", MetaAction("é", "delta", np.zeros(3))),
        ("step", MetaAction(action=None)),
        ("step_chunk", np.arange(12.0).reshape(4, 3)),
        ("step_chunk", np.asfortranarray(np.arange(12.0).reshape(4, 3))),
        ("step_chunk", np.zeros((0, 3))),
        ("step_chunk", [MetaAction(action=np.zeros(3)), np.zeros(3)]),
        ("step_chunk", np.zeros(3)),
    ],
)
def test_a_request_says_what_the_pickled_one_says(method: str, action: Any, number: int | None) -> None:
    params = {"action" if method == "step" else "actions": action}
    if number is not None:
        params["number"] = number
    request = read_step_request(bytearray(step_request(method, params, known=5)))
    assert (request.method, request.known, isinstance(request, Request)) == (method, 5, True)
    found, expected = request.params, by_pickle(params)
    for value in (*found.values(), *expected.values()):
        if isinstance(value, np.ndarray):
            value.flags.writeable = True
    assert found.keys() == expected.keys()
    if isinstance(action, np.ndarray) and action.flags.fnc:  # rows are taken from it: their values count
        np.testing.assert_array_equal(found["actions"], expected["actions"])
    else:
        require_same(dict(found), expected)


def test_the_bytes_are_those_of_the_golden_files() -> None:
    step = {"action": np.float32([0.5, 1, 0]), "number": 2}
    known = int.from_bytes((GOLDEN / "step_reply.bin").read_bytes()[16:24], "little")
    reply = reply_of({"state": np.arange(3, dtype=np.float32)}, {"success": False})
    writer = StepReplyWriter()
    found = {
        "step.bin": step_request("step", step, known),
        "step_reply_with_layout.bin": bytes(packed(writer, reply, 0)),
        "step_reply.bin": bytes(packed(writer, reply, known)),
    }
    for name, payload in found.items():
        assert payload == (GOLDEN / name).read_bytes(), name


def test_a_request_of_another_length_is_refused() -> None:
    whole = step_request("step", {"action": MetaAction(action=np.zeros(7)), "number": 1}, known=5)
    for length in range(len(whole)):
        with pytest.raises(InvalidParams):
            read_step_request(bytearray(whole[:length]))
    with pytest.raises(InvalidParams):
        read_step_request(bytearray(whole + b"x"))


def test_a_request_of_billions_of_actions_costs_nothing() -> None:
    lie = struct.pack("<BBBBIqQII", 3, 1, 0, 0, 0xFFFFFFFF, 0, 0, 0xFFFFFFFF, 0)
    with pytest.raises(InvalidParams, match=r"^a packed step has 32 bytes, expected \d+ for"):
        read_step_request(bytearray(lie))


@pytest.mark.parametrize("flags", [0x40, 0x80, 0x11])
def test_unknown_flags_and_chunks_of_meta_actions_are_refused(flags: int) -> None:
    lie = struct.pack("<BBBBIqQII", 3, flags, 0, 0, 1, 0, 0, 2, 0) + bytes(8)
    with pytest.raises(InvalidParams):
        read_step_request(bytearray(lie))


def test_a_pickle_in_a_request_is_read_by_the_reader_of_the_wire() -> None:
    head = struct.pack("<BBBBIqQII", 3, 2, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(UnsafePayload):
        read_step_request(bytearray(head + b"cos\nsystem\n(S'true'\ntR."))
    disguised = b"".join(map(bytes, encode({"method": "disconnect"})))
    with pytest.raises(InvalidParams, match=r"^a packed step holds another method"):
        read_step_request(bytearray(head + disguised))


def test_a_mutated_reply_is_an_error_or_a_reply() -> None:
    reply = reply_of(OBSERVATIONS["scalars"], INFOS[2])
    whole = packed(StepReplyWriter(), reply, 0)
    rng = np.random.default_rng(1)
    for _ in range(3000):
        mutated = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            mutated[rng.integers(len(mutated))] = rng.integers(256)
        if rng.random() < 0.3:
            del mutated[rng.integers(len(mutated)) :]
        with suppress(RemoteProtocolError):
            StepReplies().read(mutated)


@pytest.mark.parametrize(
    "entry",
    [
        ["a", "<f8", [1 << 31], False],
        ["a", "<f8", [0], False],
        ["a", "<f8", [1] * 9, False],
        ["a", "O", [1], False],
        ["a", "text", 3, False],
        ["a", "float", None, 1],
        [3, "float", None, False],
        ["a", "float"],
    ],
)
def test_a_layout_that_lies_is_refused(entry: Any) -> None:
    definition = b"".join(map(bytes, encode([False, [entry], []])))
    with pytest.raises(RemoteProtocolError):
        StepLayout.read(definition)


def test_a_layout_that_was_never_defined_is_an_error() -> None:
    writer, replies = StepReplyWriter(), StepReplies()
    reply = reply_of(OBSERVATIONS["named arrays"])
    replies.read(packed(writer, reply, 0))
    with pytest.raises(RemoteProtocolError, match=r"which was never defined|never defined"):
        StepReplies().read(packed(writer, reply, replies.known))
