"""Packed observations: which of a layout's fields are those of a :class:`MetaObs`, in both directions.

The server reads a layout's prototype, an observation of zeros that takes no memory, by the same code as an
observation in a pickle, when the layout is declared: what that code says of dtypes and shapes holds for every
request of the layout. The client chooses the layout of an observation by its fields' dtypes and shapes.

No socket, thread or clock.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Hashable, Mapping, NamedTuple

import numpy as np

from robowire.errors import InvalidParams, RemoteProtocolError
from robowire.meta import MetaObs
from robowire.wire.packed import (
    IMAGE_KINDS,
    TEXT_KIND,
    Layout,
    LayoutField,
    VariableField,
    is_packed_dtype,
    read_layout,
)

__all__ = ["PackedObservation", "PolicyLayout", "packed_observation", "require_seed"]

# How a seed goes: its name, kind and shape.
_SEED = ("episode_seed", "<i8", ())

_NAMES = frozenset(field.name for field in fields(MetaObs))


class PolicyLayout:
    """A layout of observations that a client declared.

    Args:
        layout: As the client declared it. Names that no MetaObs has are left alone: a newer client may send
            more.

    Attributes:
        layout: As given.
        checked: What observations of it share that may be stacked, once the service has compared the
            prototype with the policy's spec; ``None`` where each observation must still be compared.
        decodes: Whether images are decoded, which takes long.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.checked: Hashable | None = None
        self._known = all(field.name in _NAMES for field in layout.fields)
        self._has_timestep = any(field.name == "timestep" for field in layout.fields)
        for field in layout.variable:
            if field.kind in IMAGE_KINDS and field.name in _NAMES:
                _require_decodable(field)
        self._seed = next((field for field in layout.fields if field.name == "episode_seed"), None)
        self._images = [field for field in layout.variable if field.kind in IMAGE_KINDS]
        self.decodes = bool(self._images)
        # The common case: an observation's fields are those of the payload.
        self._plain = (
            self._known
            and not self._images
            and self._seed is None
            and all(field.name not in ("timestep", "delay") for field in layout.fields)
        )

    @property
    def decoded_size(self) -> int:
        """Bytes of an observation's decoded images."""
        return sum(math.prod(field.shape) for field in self._images)

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> PolicyLayout:
        """Return the layout in the parameters of a request.

        Raises:
            InvalidParams: It is no layout.
        """
        return cls(read_layout(params.get("layout"), params.get("fields")))

    def prototype(self) -> MetaObs:
        """Return an observation of these dtypes and shapes. Its arrays are zeros and take no memory."""
        values: dict[str, Any] = {}
        for name, dtype, shape, _, _ in self.layout.fixed:
            values[name] = np.broadcast_to(np.zeros((), dtype), shape)
        for name, kind, shape, _, items in self.layout.variable:
            if kind == TEXT_KIND:
                values[name] = [""] * items if shape else ""
            else:
                values[name] = np.broadcast_to(np.zeros((), np.uint8), shape)
        return self._observation(values, 0)

    @property
    def single(self) -> bool:
        """Whether the prototype's own fields are those of one observation, without conversion."""
        return not self._has_timestep and (self._seed is None or tuple(self._seed[1:3]) == _SEED[1:])

    def observation(self, payload: bytearray, timestep: int) -> MetaObs:
        """Return the observation in a payload. Its arrays view the payload, but for images that are decoded.

        Args:
            payload: Of this layout.
            timestep: Of its header.

        Raises:
            InvalidParams: The payload has another length, a text is not UTF-8, or an image cannot be decoded
                or has another size than was declared.
        """
        values = self.layout.values(payload)
        if self._plain:
            return MetaObs(timestep=timestep, **values)
        for field in self._images:
            if field.name in _NAMES:
                values[field.name] = _decoded(field, values[field.name])
        return self._observation(values, timestep)

    def _observation(self, values: dict[str, Any], timestep: int) -> MetaObs:
        if not self._known:
            values = {name: value for name, value in values.items() if name in _NAMES}
        if not self._has_timestep:
            values["timestep"] = timestep
        delay = values.get("delay")
        if delay is not None and not delay.ndim:
            values["delay"] = delay.item()
        if self._seed is not None and self.single:
            values["episode_seed"] = require_seed(int(values["episode_seed"]))
        return MetaObs(**values)


def _require_decodable(field: VariableField) -> None:
    if field.name != "image":
        raise InvalidParams(f"{field.name} is {field.kind}, and only image may be encoded")
    from robowire.images import has_pillow  # here, as below: clients start without it

    if not has_pillow():
        raise InvalidParams(f"this server decodes no {field.kind}: send image as '|u1'")


def _decoded(field: VariableField, files: list[memoryview]) -> np.ndarray:
    """Return uint8 of the declared shape."""
    from robowire.images import decode_image, write_planes

    *_, height, width = field.shape
    images = np.empty(field.shape, np.uint8)  # not touched, so not taken, before an image is decoded
    for number, (planes, file) in enumerate(zip(images.reshape(-1, 3, height, width), files)):
        encoded = {"encoding": field.kind, "shape": (height, width, 3), "data": bytes(file)}
        try:
            write_planes(planes, decode_image(encoded))
        except RemoteProtocolError as exc:
            raise InvalidParams(f"{field.name}, image {number} of {len(files)}: {exc}") from exc
    return images


class PackedObservation(NamedTuple):
    """An observation that a packed request can carry.

    Attributes:
        fields: Names, kinds and shapes: equal for observations of one layout.
        values: Values by name.
        timestep: Of the request's header.
    """

    fields: tuple[LayoutField, ...]
    values: dict[str, Any]
    timestep: int

    def make_layout(self, number: int) -> Layout:
        """Return the layout to declare: small fields first, so that they leave in one buffer."""
        return Layout(number, sorted(self.fields, key=lambda field: _size(self.values[field.name])))


def packed_observation(obs: Any) -> PackedObservation | None:
    """Return the observation as a packed request carries it; ``None`` where only a pickle can.

    A pickle also carries object arrays, complex numbers, arrays in Fortran order, which arrive in it, of
    another byte order, which arrive in this machine's, and text that is not Unicode.
    """
    if type(obs) is not MetaObs:
        return None
    found: list[LayoutField] = []
    values: dict[str, Any] = {}
    header_timestep = 0
    for name, value in vars(obs).items():
        if value is None:
            continue
        if name not in _NAMES:
            return None
        if isinstance(value, np.ndarray):
            kind = value.dtype.str
            if kind[0] == ">" or not is_packed_dtype(kind):
                return None
            flags = value.flags
            if flags.f_contiguous and not flags.c_contiguous:
                return None
            found.append(LayoutField(name, kind, value.shape))
        elif name == "raw_lang":
            if value == "":
                continue
            shape = _text_shape(value)
            if shape is None:
                return None
            found.append(LayoutField(name, TEXT_KIND, shape))
        elif name == "timestep" and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            header_timestep = int(value)
            if not -(1 << 63) <= header_timestep < 1 << 63:
                return None
            continue
        elif name == "delay" and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            if not 0 <= value < 1 << 63:
                return None
            value = np.array(value, "<i8")
            found.append(LayoutField(name, "<i8", ()))
        elif name == "episode_seed" and type(value) is int and 0 <= value < 1 << 63:
            found.append(LayoutField(*_SEED))
            value = np.array(value, np.int64)
        else:
            return None
        values[name] = value
    return PackedObservation(tuple(found), values, header_timestep) if found else None


def require_seed(seed: int) -> int:
    """Return the seed of an episode.

    Raises:
        InvalidParams: It is negative, or has more than 63 bits.
    """
    if not 0 <= seed < 1 << 63:
        raise InvalidParams(f"episode_seed is {seed}, expected 0 to {(1 << 63) - 1}")
    return seed


def _text_shape(value: Any) -> tuple[int, ...] | None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return None
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    return () if isinstance(value, str) else (len(texts),)


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 0
