"""Pictures as they may cross the wire: JPEG or PNG by Pillow, which is imported by who asks for it.

An encoded picture is ``{"encoding": "jpeg" or "png", "shape": (height, width, 3), "data": bytes}``: plain
data, which a client without Pillow can hold, and hand to whatever decodes it there.
"""

from __future__ import annotations

import io
from typing import Any, Mapping

import numpy as np

from robowire.errors import MissingDependency, RemoteProtocolError

__all__ = ["decode_image", "decode_images", "encode_image", "encode_images", "is_encoded", "require_pillow"]

_FORMATS = {"jpeg": "JPEG", "png": "PNG"}
_KEYS = {"encoding", "shape", "data"}
# Sixteen million pixels are what a task may be asked for at most; a small file can pretend to be far more.
_MAX_PIXELS = 4096 * 4096


def require_pillow(why: str) -> Any:
    """Return Pillow's module of images.

    Args:
        why: Who needs it, for the message.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as exc:
        raise MissingDependency(f"{why} needs Pillow: pip install 'robowire[images]'") from exc
    return Image


def encode_image(picture: np.ndarray, encoding: str, *, quality: int) -> dict[str, Any]:
    """Return a picture as it crosses the wire.

    Args:
        picture: uint8 (height, width, 3), RGB.
        encoding: ``"jpeg"`` or ``"png"``, which loses nothing.
        quality: Of JPEG, 1 to 100, as Pillow means it: above 95 files grow and pictures hardly get better.

    Raises:
        MissingDependency: Pillow is not installed.
    """
    image = require_pillow(f"image_encoding {encoding!r}").fromarray(np.ascontiguousarray(picture))
    file = io.BytesIO()
    if encoding == "jpeg":
        image.save(file, "JPEG", quality=quality)
    else:
        # Of a rendered scene, level 1 makes files 16 % larger than the default does, in half the time.
        image.save(file, "PNG", compress_level=1)
    return {"encoding": encoding, "shape": tuple(picture.shape), "data": file.getvalue()}


def is_encoded(value: Any) -> bool:
    """Return whether a value of an observation is an encoded picture."""
    return isinstance(value, Mapping) and set(value) == _KEYS


def decode_image(encoded: Mapping[str, Any]) -> np.ndarray:
    """Return uint8 (height, width, 3), RGB; a fresh array.

    Raises:
        RemoteProtocolError: It is no such picture, or not as large as it says.
        MissingDependency: Pillow is not installed.
    """
    encoding, shape, data = encoded["encoding"], encoded["shape"], encoded["data"]
    if encoding not in _FORMATS or not isinstance(data, (bytes, bytearray)):
        raise RemoteProtocolError(f"a picture is encoded as {encoding!r}, expected 'jpeg' or 'png'"[:200])
    module = require_pillow(f"a picture encoded as {encoding!r}")
    try:
        with module.open(io.BytesIO(data), formats=[_FORMATS[encoding]]) as image:
            found = (image.height, image.width, len(image.getbands()))
            if found != tuple(shape) or found[2] != 3 or found[0] * found[1] > _MAX_PIXELS:
                raise RemoteProtocolError(f"a picture is {found}, expected {shape!r}"[:200])
            return np.array(image)
    # What Pillow raises for damaged files, and for those that claim to be huge.
    except (OSError, SyntaxError, TypeError, ValueError, module.DecompressionBombError) as exc:
        raise RemoteProtocolError(f"a picture cannot be decoded: {exc}"[:200]) from exc


def encode_images(observation: Mapping[str, Any], encoding: str, *, quality: int) -> dict[str, Any]:
    """Return the observation with every picture in it, uint8 (height, width, 3), encoded."""
    return {
        name: encode_image(value, encoding, quality=quality) if _is_picture(value) else value
        for name, value in observation.items()
    }


def decode_images(observation: Any) -> Any:
    """Return the observation with every encoded picture in it decoded; one that is no dict as it is."""
    if not isinstance(observation, dict):
        return observation
    return {name: decode_image(value) if is_encoded(value) else value for name, value in observation.items()}


def _is_picture(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    )
