"""How a policy client sends its images over a slow link: encoded, and of the policy's own size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping

import numpy as np

from robowire.errors import ConfigurationError
from robowire.meta import MetaObs
from robowire.wire.packed import IMAGE_KINDS
from robowire.wire.packed_policy import PackedObservation

__all__ = ["ImageOptions"]


@dataclass(frozen=True)
class ImageOptions:
    """How images are sent.

    Attributes:
        image_encoding: ``"raw"``, ``"jpeg"``, or ``"png"``, which loses nothing.
        jpeg_quality: 1 to 100.
        resize: Whether images are sent in the policy's own size.

    Raises:
        ConfigurationError: A value is none of these.
        MissingDependency: Pillow is needed, and is not installed.
    """

    image_encoding: str = "raw"
    jpeg_quality: int = 90
    resize: bool = False

    def __post_init__(self) -> None:
        if self.image_encoding not in ("raw", *IMAGE_KINDS):
            raise ConfigurationError(
                f"image_encoding is {self.image_encoding!r}, expected raw, {' or '.join(IMAGE_KINDS)}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigurationError(f"jpeg_quality is {self.jpeg_quality}, expected 1 to 100")
        if not self.change:
            return
        from robowire.images import require_pillow  # here, as below: other clients start without it

        if self.encodes:
            require_pillow(f"image_encoding {self.image_encoding!r}")
        if self.resize:
            require_pillow("resize")

    @property
    def encodes(self) -> bool:
        """Whether images are encoded."""
        return self.image_encoding != "raw"

    @property
    def change(self) -> bool:
        """Whether images are not sent as they are."""
        return self.encodes or self.resize

    def require_server(self, info: Mapping[str, Any] | None, address: str) -> None:
        """Accept a server that takes images in this way.

        Raw images in the place of encoded ones would make a robot on a slow link ten times slower, so they
        are not sent unasked.

        Args:
            info: Of the server; ``None`` where it is too old to have any.
            address: Of the server, for messages.

        Raises:
            ConfigurationError: It does not.
        """
        decodes = (info or {}).get("image_encodings") or ()
        if self.encodes and self.image_encoding not in decodes:
            raise ConfigurationError(
                f"{address} does not decode {self.image_encoding} images (it is older, or has no Pillow): "
                "leave image_encoding out to send them raw"
            )
        if self.resize and _uses_images(info) and self._size(info) is None:
            raise ConfigurationError(
                f"{address} does not say which size of images its policy takes: leave resize out"
            )

    def resized(self, obs: MetaObs, info: Mapping[str, Any] | None) -> MetaObs:
        """Return the observation with its images in the policy's size; itself where they are.

        Only uint8 (..., 3, height, width) is resized: what else there is, the server refuses by name.
        """
        size, image = self._size(info), _images(obs.image)
        if not self.resize or size is None or image is None or image.shape[-2:] == size:
            return obs
        from robowire.images import resize_image

        planes = image.reshape(-1, *image.shape[-3:])
        resized = np.empty((len(planes), 3, *size), np.uint8)
        for target, plane in zip(resized, planes):
            target[...] = resize_image(plane.transpose(1, 2, 0), *size).transpose(2, 0, 1)
        return replace(obs, image=resized.reshape(*image.shape[:-2], *size))

    def encoded(self, packed: PackedObservation) -> PackedObservation:
        """Return the observation with its images encoded; itself where there are none of uint8."""
        image = _images(packed.values.get("image"))
        if not self.encodes or image is None:
            return packed
        from robowire.images import encode_image

        files = [
            encode_image(plane.transpose(1, 2, 0), self.image_encoding, quality=self.jpeg_quality)["data"]
            for plane in image.reshape(-1, *image.shape[-3:])
        ]
        fields = tuple(
            field._replace(kind=self.image_encoding) if field.name == "image" else field
            for field in packed.fields
        )
        return packed._replace(fields=fields, values={**packed.values, "image": files})

    def _size(self, info: Mapping[str, Any] | None) -> tuple[int, int] | None:
        height, width = ((info or {}).get(name) for name in ("image_height", "image_width"))
        if isinstance(height, int) and isinstance(width, int) and 0 < height <= 4096 and 0 < width <= 4096:
            return height, width
        return None


def _uses_images(info: Mapping[str, Any] | None) -> bool:
    cameras = (info or {}).get("camera_names")
    return cameras is None or len(cameras) > 0


def _images(value: Any) -> np.ndarray | None:
    """Return the value where it is uint8 (..., 3, height, width)."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (4, 5):
        return None
    return value if value.shape[-3] == 3 and value.size else None
