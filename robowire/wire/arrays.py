"""Checks of values that a peer calls arrays, before anything is converted or allocated. Pure."""

from __future__ import annotations

import math
from typing import Any, Sequence

import numpy as np

from robowire.errors import InvalidParams, RequestError
from robowire.wire.text_safety import quoted

__all__ = ["are_finite", "describe", "is_numeric", "require_array", "require_timestep", "view_array"]

# A batch of images of several cameras has five.
_MAX_AXES = 8

_FLOATS = (np.dtype("<f4"), np.dtype("<f8"))


def describe(value: Any) -> str:
    """Return what a value is, for an error message: its dtype and shape, or its type. Never its contents."""
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type(value).__name__}"


def is_numeric(value: Any, kinds: str = "biuf") -> bool:
    """Return whether a value is an array of numbers, of one of the dtype kinds."""
    return isinstance(value, np.ndarray) and value.dtype.kind in kinds


def are_finite(array: np.ndarray) -> bool:
    """Return whether every number of a small array of floats is finite, in less time than ``np.isfinite``."""
    if array.dtype in _FLOATS:
        # The last byte of a number has its sign and high bits of its exponent, which are all set in what is
        # not finite, and in numbers from 1.7e38, for float64 from 5.4e303.
        last = array.tobytes()[array.itemsize - 1 :: array.itemsize]
        if 0x7F not in last and 0xFF not in last:
            return True
    return bool(np.isfinite(array).all())


def require_array(
    name: str,
    value: Any,
    expected: str,
    *,
    kinds: str = "biuf",
    dtype: type | None = None,
    shape: Sequence[int | None] | None = None,
    error: type[RequestError] = InvalidParams,
) -> np.ndarray:
    """Return the value, an array of numbers as expected.

    Args:
        name: What the message calls it.
        value: Any value.
        expected: Shape and kind, in words, for the message.
        kinds: Accepted dtype kinds.
        dtype: Accepted dtype; ``None`` accepts any of these kinds.
        error: Class of the error that is raised.
        shape: Accepted shape; ``None`` in it accepts any length. Any shape where it is ``None``.

    Raises:
        RequestError: It is something else; of the class ``error``.
    """
    if (
        is_numeric(value, kinds)
        and (dtype is None or value.dtype == dtype)
        and (shape is None or _fits(value.shape, shape))
    ):
        array: np.ndarray = value
        return array
    raise error(f"{name} is {describe(value)}, expected {expected}")


def require_timestep(value: Any, *, name: str = "timestep") -> None:
    """Accept an int, or an int array of one entry or with one for each row of a batch, (B, 1).

    Raises:
        InvalidParams: It is something else.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return
    if is_numeric(value, "iu") and (value.size == 1 or value.ndim == 2):
        return
    raise InvalidParams(f"{name} is {describe(value)}, expected an int or an int array (B, 1)")


def view_array(dtype: Any, shape: Any, data: Any) -> np.ndarray:
    """Return the array of numbers that a peer describes by dtype, shape and bytes. Nothing is copied.

    Args:
        dtype: Name or short form: ``"float32"``, ``"<f4"``.
        shape: Sizes, at most 8.
        data: All bytes, in C order.

    Returns:
        A view of ``data``; read-only where that is ``bytes``.

    Raises:
        InvalidParams: It is no such array, or the three contradict each other.
    """
    try:
        kind = np.dtype(dtype) if isinstance(dtype, str) else None
    except (TypeError, SyntaxError, ValueError):  # numpy parses "f8,..." as Python code
        kind = None
    if kind is None or kind.kind not in "biuf":
        raise InvalidParams(f"dtype is {quoted(dtype, 50)}, expected numbers such as '<f8'")
    if (
        not isinstance(data, (bytes, bytearray))
        or not isinstance(shape, (list, tuple))
        or len(shape) > _MAX_AXES  # first: the product of many large sizes takes minutes
        or not all(isinstance(size, int) and size >= 0 for size in shape)
    ):
        raise InvalidParams("an array is {'dtype': text, 'shape': list of at most 8 sizes, 'data': bytes}")
    if len(data) != math.prod(shape) * kind.itemsize:
        raise InvalidParams(f"{len(data)} bytes are not {kind} of shape {quoted(tuple(shape), 99)}")
    try:
        return np.frombuffer(data, kind).reshape(shape)
    except ValueError:  # (0, 2**31, 2**31, 2**31): nothing to hold, and still too large
        raise InvalidParams(f"no array has the shape {quoted(tuple(shape), 99)}") from None


def _fits(shape: tuple[int, ...], accepted: Sequence[int | None]) -> bool:
    return len(shape) == len(accepted) and all(
        limit in (None, length) for length, limit in zip(shape, accepted)
    )
