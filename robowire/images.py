"""Images on the wire and off it: JPEG or PNG by Pillow, and the planes that policies take.

Pillow and OpenCV are imported when they are used.

An encoded image is ``{"encoding": "jpeg" or "png", "shape": (height, width, 3), "data": bytes}``: plain data,
which a client without Pillow can keep, or decode with another library.
"""

from __future__ import annotations

import functools
import io
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from robowire.errors import MissingDependency, RemoteProtocolError

__all__ = [
    "decode_image",
    "decode_images",
    "encode_image",
    "encode_images",
    "has_pillow",
    "is_encoded",
    "opencv_split",
    "require_pillow",
    "resize_image",
    "stack_images",
    "write_planes",
]

_FORMATS = {"jpeg": "JPEG", "png": "PNG"}
_KEYS = {"encoding", "shape", "data"}
# Sixteen million pixels are what a task may be asked for at most; a small file can claim to be far more.
_MAX_PIXELS = 4096 * 4096
# Each scan of a progressive JPEG costs a pass over the whole image, however few bytes it has. Encoders write
# ten.
_MAX_SCANS = 64


def require_pillow(why: str) -> Any:
    """Return Pillow's module of images.

    Args:
        why: What needs it, for the message.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as exc:
        raise MissingDependency(f"{why} needs Pillow: pip install 'robowire[images]'") from exc
    return Image


def has_pillow() -> bool:
    """Return whether images can be encoded and decoded here."""
    try:
        require_pillow("")
    except MissingDependency:
        return False
    return True


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return uint8 (height, width, 3) of an image (any height, any width, 3), stretched to that size.

    By Pillow's bilinear interpolation, which averages all pixels of an image that becomes smaller.

    Raises:
        MissingDependency: Pillow is not installed.
    """
    pillow = require_pillow("resize")
    opened = pillow.fromarray(np.ascontiguousarray(image))
    return np.asarray(opened.resize((width, height), resample=pillow.Resampling.BILINEAR))


def write_planes(planes: np.ndarray | list[np.ndarray], image: np.ndarray) -> None:
    """Write an image (height, width, 3) into an array (3, height, width), both uint8.

    Args:
        planes: The array, or a list of its three planes, each in C order, whose views are made once.
        image: The image.
    """
    split = opencv_split()
    whole = planes if isinstance(planes, np.ndarray) else None
    if split is not None and image.flags.c_contiguous and (whole is None or whole.flags.c_contiguous):
        split(image, list(planes))  # a seventh of numpy's time: 70 us for 640x480
    elif whole is not None:
        whole[...] = image.transpose(2, 0, 1)
    else:
        for plane, part in zip(planes, image.transpose(2, 0, 1)):
            plane[...] = part


def stack_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return uint8 (B, cameras, 3, height, width) in C order, a fresh array.

    Args:
        images: Of each observation: uint8 (cameras, 3, height, width), all of one shape, in any order of
            memory.
    """
    batch: np.ndarray = np.empty((len(images), *images[0].shape), np.uint8)
    for row, image in zip(batch, images):
        if image.flags.c_contiguous:
            row[...] = image
        else:
            for planes, camera in zip(row, image):
                write_planes(planes, camera.transpose(1, 2, 0))
    return batch


@functools.lru_cache(maxsize=None)
def opencv_split() -> Callable[[np.ndarray, list[np.ndarray]], object] | None:
    """Return OpenCV's function where it is installed, as simulators bring it."""
    try:
        import cv2
    except ImportError:  # a build for desktops without their libraries, too
        return None
    return cv2.split  # type: ignore[no-any-return, unused-ignore]


def encode_image(image: np.ndarray, encoding: str, *, quality: int) -> dict[str, Any]:
    """Return an image as it crosses the wire.

    Args:
        image: uint8 (height, width, 3), RGB.
        encoding: ``"jpeg"`` or ``"png"``, which loses nothing.
        quality: Quality of JPEG, 1 to 100, as in Pillow: above 95 files grow and images hardly get better.

    Raises:
        MissingDependency: Pillow is not installed.
    """
    opened = require_pillow(f"image_encoding {encoding!r}").fromarray(np.ascontiguousarray(image))
    file = io.BytesIO()
    if encoding == "jpeg":
        opened.save(file, "JPEG", quality=quality)
    else:
        # For a rendered scene, level 1 makes files 16 % larger than the default, in half the time.
        opened.save(file, "PNG", compress_level=1)
    return {"encoding": encoding, "shape": tuple(image.shape), "data": file.getvalue()}


def is_encoded(value: Any) -> bool:
    """Return whether a value of an observation is an encoded image."""
    return isinstance(value, Mapping) and set(value) == _KEYS


def decode_image(encoded: Mapping[str, Any]) -> np.ndarray:
    """Return uint8 (height, width, 3), RGB; a fresh array.

    Raises:
        RemoteProtocolError: It is not such an image, or not as large as it says.
        MissingDependency: Pillow is not installed.
    """
    encoding, shape, data = encoded["encoding"], encoded["shape"], encoded["data"]
    if encoding not in _FORMATS or not isinstance(data, (bytes, bytearray)):
        raise RemoteProtocolError(f"an image is encoded as {encoding!r}, expected 'jpeg' or 'png'"[:200])
    module = require_pillow(f"an image encoded as {encoding!r}")
    if encoding == "jpeg" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise RemoteProtocolError(f"a JPEG has more than {_MAX_SCANS} scans")
    try:
        with module.open(io.BytesIO(data), formats=[_FORMATS[encoding]]) as image:
            found = (image.height, image.width, len(image.getbands()))
            if found != tuple(shape) or found[2] != 3 or found[0] * found[1] > _MAX_PIXELS:
                raise RemoteProtocolError(f"an image is {found}, expected {shape!r}"[:200])
            return np.array(image)
    # What Pillow raises for damaged files, and for those that claim to be huge.
    except (
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        module.DecompressionBombError,
        module.DecompressionBombWarning,
    ) as exc:
        raise RemoteProtocolError(f"an image cannot be decoded: {exc}"[:200]) from exc


def encode_images(observation: Mapping[str, Any], encoding: str, *, quality: int) -> dict[str, Any]:
    """Return the observation with every image in it, uint8 (height, width, 3), encoded."""
    return {
        name: encode_image(value, encoding, quality=quality) if _is_image(value) else value
        for name, value in observation.items()
    }


def decode_images(observation: Any) -> Any:
    """Return the observation with every encoded image in it decoded; unchanged where it is not a dict."""
    if not isinstance(observation, dict):
        return observation
    return {name: decode_image(value) if is_encoded(value) else value for name, value in observation.items()}


def _is_image(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    )
