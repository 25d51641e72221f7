"""Templates of packed requests: the frames of the layout itself, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robowire.meta import MetaObs
from robowire.wire.packed import IN_SHARED_MEMORY, Layout
from robowire.wire.packed_policy import PackedObservation, packed_observation
from robowire.wire.packed_template import RequestTemplate

OBS = MetaObs(
    image=np.arange(2 * 3 * 40 * 50, dtype=np.uint32).astype(np.uint8).reshape(2, 3, 40, 50),
    depth=np.linspace(0, 1, 2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50),
    state=np.arange(5, dtype=np.float32),
    state_joint=np.arange(3.0),
    raw_lang="lift the cube",
    timestep=7,
)


def packed(obs: MetaObs) -> tuple[PackedObservation, Layout]:
    found = packed_observation(obs)
    assert found is not None
    return found, found.make_layout(3)


def template(obs: MetaObs, memory: memoryview | None = None) -> RequestTemplate:
    return RequestTemplate(obs, *packed(obs), memory)


def whole(buffers: Any) -> bytes:
    assert buffers is not None
    return b"".join(buffers)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"raw_lang": ""},
        {"image": None, "depth": None},
        {"image": None, "depth": None, "state": None, "raw_lang": ""},
        {"delay": 3, "prefix": np.ones((4, 7), np.float32), "episode_seed": 12},
        {"state": np.ones((2, 5), np.float32), "timestep": np.array([[1], [2]]), "raw_lang": ""},
        {"image": np.zeros((2, 3, 9, 40, 50), np.uint8)[:, :, 4]},  # not contiguous
        {"image": OBS.image.astype("<u2"), "depth": OBS.depth.astype(np.float16)},
    ],
    ids=str,
)
def test_the_frame_is_that_of_the_layout(more: dict[str, Any]) -> None:
    first = replace(OBS, **more)
    asked = template(first)
    for number in range(3):
        changes: dict[str, Any] = {
            name: value + number
            for name, value in vars(first).items()
            if isinstance(value, (int, np.ndarray))
        }
        if first.raw_lang:
            changes["raw_lang"] = "é" * (number + 1)
        obs = replace(first, **changes)
        found, layout = packed(obs)
        expected = whole(layout.request_frame(found.values, timestep=found.timestep))
        assert whole(asked.frame(obs)) == expected


@pytest.mark.parametrize(
    "more",
    [
        {"image": OBS.image[:1]},
        {"image": OBS.image.astype(np.int8)},
        {"image": None},
        {"image": OBS.image.tolist()},
        {"image": np.asfortranarray(OBS.image)},
        {"image": OBS.image.view(np.memmap)},
        {"state": np.arange(5.0)},
        {"state": np.arange(5, dtype=">f4")},
        {"state": 5},
        {"pc": np.zeros((1, 3))},
        {"delay": 1},
        {"episode_seed": 0},
        {"raw_lang": ""},
        {"raw_lang": None},
        {"raw_lang": ["lift"]},
        {"raw_lang": "\ud800"},
        {"timestep": np.int64(7)},
        {"timestep": True},
        {"timestep": 1 << 63},
        {"timestep": None},
    ],
    ids=str,
)
def test_another_observation_has_no_frame(more: dict[str, Any]) -> None:
    asked = template(OBS)
    assert asked.frame(replace(OBS, **more)) is None
    assert asked.frame(OBS) is not None


def test_what_is_no_observation_of_ours_has_no_frame() -> None:
    class Other(MetaObs):
        pass

    marked = replace(OBS)
    marked.camera = "wrist"  # type: ignore[attr-defined]
    for obs in (Other(**vars(OBS)), marked, vars(OBS)):
        assert template(OBS).frame(obs) is None  # type: ignore[arg-type]


def test_numbers_that_no_packed_request_has_get_no_frame() -> None:
    seeded = replace(OBS, delay=0, episode_seed=5, prefix=np.zeros((1, 7), np.float32))
    asked = template(seeded)
    for more in ({"episode_seed": -1}, {"episode_seed": None}, {"delay": 1 << 63}, {"delay": np.int64(1)}):
        assert asked.frame(replace(seeded, **more)) is None


def test_a_batch_of_texts_gets_no_template() -> None:
    with pytest.raises(ValueError, match="several texts"):
        template(replace(OBS, raw_lang=["lift", "stack"]))


@settings(max_examples=20)
@given(st.integers(0, 255), st.text(min_size=1))
def test_in_shared_memory_lies_what_else_is_sent(level: int, text: str) -> None:
    _, layout = packed(OBS)
    memory = memoryview(bytearray(layout.fixed_size))
    asked = template(OBS, memory)
    obs = replace(OBS, image=np.full_like(OBS.image, level), raw_lang=text, timestep=level)
    (frame,) = asked.frame(obs) or ()
    found, layout = packed(obs)
    expected = whole(layout.request_frame(found.values, timestep=level))
    assert frame[5] == IN_SHARED_MEMORY
    begin, end = layout.data_offset, layout.fixed_size
    sent = bytearray(frame[4 : 4 + begin]) + memory[begin:] + frame[4 + begin :]
    sent[1] = 0
    assert sent == expected[4:]
    assert len(frame) == 4 + int.from_bytes(frame[:4], "big")
    assert len(expected) - len(frame) == end - begin
