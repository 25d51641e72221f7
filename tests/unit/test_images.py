from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robowire.errors import RemoteProtocolError
from robowire.images import decode_image, decode_images, encode_image, encode_images, is_encoded, stack_images

ROOT = Path(__file__).resolve().parents[2]


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """An image as smooth as a rendered one, whose axes and colours cannot be mixed up unseen."""
    rows, columns = np.mgrid[:height, :width]
    planes = (rows * 255 // height, columns * 255 // width, np.full_like(rows, 40))
    return np.stack(planes, axis=-1).astype(np.uint8)


def test_png_loses_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(noise, "png", quality=95)), noise)


@pytest.mark.parametrize("opencv", [True, False])
def test_a_stack_of_images_is_in_c_order_whatever_theirs_is(
    monkeypatch: pytest.MonkeyPatch, opencv: bool
) -> None:
    if not opencv:
        monkeypatch.setattr("robowire.images.opencv_split", lambda: None)
    rows = np.stack([scene(), scene()[:, ::-1]])
    planes = np.ascontiguousarray(rows.transpose(0, 3, 1, 2))
    given = [planes, rows.transpose(0, 3, 1, 2), np.asfortranarray(planes), planes[:, ::-1][:, ::-1]]
    stacked = stack_images(given)
    assert stacked.flags.c_contiguous
    np.testing.assert_array_equal(stacked, np.stack(4 * [planes]))
    stacked[0] = 0
    assert planes.any()


def test_an_image_that_is_upside_down_in_memory_stays_so() -> None:
    flipped = scene()[::-1]
    assert np.array_equal(decode_image(encode_image(flipped, "png", quality=95)), flipped)


def test_jpeg_is_close() -> None:
    decoded = decode_image(encode_image(scene(), "jpeg", quality=95))
    assert np.abs(decoded.astype(int) - scene()).mean() < 1


def test_a_lower_quality_is_smaller_and_further_off() -> None:
    sizes, distances = [], []
    for quality in (95, 30):
        encoded = encode_image(scene(), "jpeg", quality=quality)
        sizes.append(len(encoded["data"]))
        distances.append(np.abs(decode_image(encoded).astype(int) - scene()).mean())
    assert sizes[0] > sizes[1]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(("encoding", "share"), [("png", 0.5), ("jpeg", 0.2)])
def test_an_encoded_image_is_smaller(encoding: str, share: float) -> None:
    image = scene(128, 128)
    assert len(encode_image(image, encoding, quality=95)["data"]) < share * image.nbytes


def test_the_form_on_the_wire() -> None:
    encoded = encode_image(scene(), "jpeg", quality=95)
    assert (encoded["encoding"], encoded["shape"]) == ("jpeg", (48, 64, 3))
    with Image.open(io.BytesIO(encoded["data"])) as image:
        assert (image.format, image.size) == ("JPEG", (64, 48))


def test_a_decoded_image_is_the_callers_to_change() -> None:
    decoded = decode_image(encode_image(scene(), "png", quality=95))
    decoded += 1
    assert decoded.dtype == np.uint8


def test_only_images_of_an_observation_are_encoded() -> None:
    observation = {
        "front_image": scene(),
        "depth": np.zeros((4, 4, 1), np.float32),
        "labels": np.zeros((4, 4), np.uint8),
        "position": np.zeros(3),
        "flags": np.zeros((1, 2, 3), bool),
    }
    encoded = encode_images(observation, "png", quality=95)
    assert [name for name, value in encoded.items() if is_encoded(value)] == ["front_image"]
    decoded = decode_images(encoded)
    assert all(np.array_equal(decoded[name], value) for name, value in observation.items())


def test_an_observation_that_is_no_dict_stays_as_it_is() -> None:
    observation = object()
    assert decode_images(observation) is observation


def good(**changes: Any) -> dict[str, Any]:
    return {**encode_image(scene(), "png", quality=95), **changes}


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (good(encoding="webp"), "an image is encoded as 'webp', expected 'jpeg' or 'png'"),
        (good(data=3), "an image is encoded as 'png', expected 'jpeg' or 'png'"),
        (good(shape=(64, 48, 3)), "an image is (48, 64, 3), expected (64, 48, 3)"),
        (good(shape=7), "an image cannot be decoded: 'int' object is not iterable"),
        (good(encoding="jpeg"), "an image cannot be decoded: cannot identify image file "),
        (good(data=b""), "an image cannot be decoded: cannot identify image file "),
        (good(data=good()["data"][:100]), "an image cannot be decoded: "),
    ],
    ids=["encoding", "data", "shape", "no shape", "format", "empty", "cut"],
)
def test_what_is_not_an_image_is_refused(encoded: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{re.escape(message)}"):
        decode_image(encoded)


def test_an_image_larger_than_any_task_gives_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4097, 4096)).save(file, "PNG")
    with pytest.raises(RemoteProtocolError, match=r"^an image is \(4096, 4097, 3\), expected "):
        decode_image({"encoding": "png", "shape": (4096, 4097, 3), "data": file.getvalue()})


def test_without_pillow_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["PIL"] = None
from robowire.errors import MissingDependency
from robowire.images import decode_image, decode_images
encoded = {"encoding": "png", "shape": (1, 1, 3), "data": b""}
assert decode_images({"position": 3}) == {"position": 3}
try:
    decode_image(encoded)
except MissingDependency as exc:
    print(exc)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "an image encoded as 'png' needs Pillow: pip install 'robowire[images]'\n"
