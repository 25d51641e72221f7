"""An observation like an earlier one is read without its value, and gives what the value gives."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from robowire.frontends.act_zmq.codec import make_observation_reader
from robowire.frontends.key_map import KeyMap
from robowire.frontends.named_observations import ObservationAdapter, ObservationReader
from robowire.meta import MetaObs
from robowire.serving.policy.validation import observation_kind
from robowire.specs import PolicySpec
from robowire.wire.codecs import PolicyCodec, read_act
from robowire.wire.pickle.templates import TemplateReader

RNG = np.random.default_rng(0)
SIZE = (48, 64, 3)


def image(dtype: Any = np.uint8, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(dtype)


def request(cameras: tuple[Any, ...] = ("top",), dtype: Any = np.float32, **more: Any) -> dict[str, Any]:
    return {
        "qpos": RNG.standard_normal(7).astype(dtype),
        "images": {name: image() for name in cameras},
        **more,
    }


def reader_of(
    value: Any, spec: PolicySpec, *, strided_images: bool = False
) -> tuple[ObservationReader | None, PolicyCodec]:
    """Return what reads observations like one that was read before."""
    codec = PolicyCodec(spec.camera_names, float_images="convert", strided_images=strided_images)
    adapter = ObservationAdapter(spec, KeyMap("none"), strided_images=strided_images)
    payload, templates = pickle.dumps(value), TemplateReader()
    for _ in range(2):
        templates.loads(payload)
    match = templates.match(bytearray(payload))
    assert match is not None
    return make_observation_reader(match.template, codec, adapter, spec), codec


def spec_for(*cameras: str, state_dim: int | None = 7) -> PolicySpec:
    return PolicySpec(camera_names=cameras, state_dim=state_dim)


@pytest.mark.parametrize("strided_images", [False, True])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2"])
@pytest.mark.parametrize(
    ("cameras", "spec"),
    [
        (("top",), spec_for("top")),
        (("wrist", "top"), spec_for("top", "wrist")),
        (("a", "b", "c"), spec_for("b", "c")),  # one that the policy has not
        (("b", "a"), PolicySpec()),  # any, in the order they come
        (("a",), spec_for()),
    ],
)
def test_it_is_read_as_its_value_is(
    cameras: tuple[str, ...], spec: PolicySpec, dtype: str, strided_images: bool
) -> None:
    reader, codec = reader_of(request(cameras, dtype), spec, strided_images=strided_images)
    assert reader is not None
    other = request(cameras, dtype)
    found = reader.request(bytearray(pickle.dumps(other)))
    expected = read_act(other, codec)
    (observation,) = found.observations
    assert (found.method, found.batched, found.kind) == ("infer", False, observation_kind(expected))
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(observation, name), value)
            assert getattr(observation, name).dtype == value.dtype
        else:
            assert getattr(observation, name) == value
    if not strided_images and observation.image is not None:
        assert observation.image.flags.c_contiguous


@pytest.mark.parametrize(
    ("value", "spec"),
    [
        (request(timestep=3), spec_for("top")),  # it is another one with each observation
        (request(raw_lang="lift"), spec_for("top")),
        (request(("wrist",)), spec_for("top")),
        (request(), spec_for("top", state_dim=8)),
        (request(dtype=np.int32), spec_for("top")),
        ({**request(), "images": {"top": image(np.float32) / 255}}, spec_for("top")),
        ({**request(), "images": {"top": image(shape=(48, 64, 4))}}, spec_for("top")),
        ({**request(), "images": {"top": np.asfortranarray(image())}}, spec_for("top")),
        (
            {**request(), "images": {"top": image(), "wrist": image(shape=(24, 64, 3))}},
            spec_for("top", "wrist"),
        ),
        ({**request(), "images": {"top": image(), "qpos": image()}}, spec_for("top")),
        ({**request(), "images": [image()]}, spec_for()),
        (MetaObs(state=np.zeros(7, np.float32), image=image()[np.newaxis]), spec_for("top")),
    ],
    ids=[
        *("timestep", "instruction", "camera", "state length", "integers", "floats", "channels", "order"),
        *("sizes", "name", "list", "MetaObs"),
    ],
)
def test_what_needs_its_value_has_no_reader(value: Any, spec: PolicySpec) -> None:
    assert reader_of(value, spec)[0] is None
