"""The first difference of two values, in words: field, expected, found. Runs on Python 3.8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from robowire.meta import MetaAction, MetaObs
from robowire.wire.text_safety import quoted

__all__ = ["Difference", "first_difference"]


@dataclass(frozen=True)
class Difference:
    """Where two values differ first.

    Attributes:
        field: Path of the value: ``"observation.state[3]"``.
        expected: The recorded one, as text.
        found: The other, as text.
    """

    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, found {self.found}"


def first_difference(
    expected: Any, found: Any, field: str = "", *, tolerance: float = 0.0, images: bool = True
) -> Difference | None:
    """Return the first difference, or ``None``.

    Args:
        expected: The recorded value.
        found: The other.
        field: Name of the value.
        tolerance: Largest absolute difference of two numbers that are equal; NaN is equal to NaN.
        images: Whether images are compared by their pixels; otherwise by their shape.
    """
    if isinstance(expected, (MetaObs, MetaAction)):
        expected = vars(expected)
    if isinstance(found, (MetaObs, MetaAction)):
        found = vars(found)
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            name = f"{field}.{key}" if field else str(key)
            if key not in found or key not in expected:
                return Difference(name, _shown(expected.get(key)), _shown(found.get(key)))
            inner = first_difference(expected[key], found[key], name, tolerance=tolerance, images=images)
            if inner is not None:
                return inner
        return None
    if isinstance(expected, np.ndarray) or isinstance(found, np.ndarray):
        return _arrays(expected, found, field, tolerance, images)
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(expected) != len(found):
            return Difference(f"len({field})", str(len(expected)), str(len(found)))
        for index, (one, other) in enumerate(zip(expected, found)):
            inner = first_difference(one, other, f"{field}[{index}]", tolerance=tolerance, images=images)
            if inner is not None:
                return inner
        return None
    if _equal(expected, found, tolerance):
        return None
    return Difference(field, _shown(expected), _shown(found))


def _arrays(expected: Any, found: Any, field: str, tolerance: float, images: bool) -> Difference | None:
    if expected is None or found is None:
        return Difference(field, _shown(expected), _shown(found))
    one, other = np.asarray(expected), np.asarray(found)
    if one.shape != other.shape:
        return Difference(f"{field}.shape", str(one.shape), str(other.shape))
    if one.dtype == np.uint8 and other.dtype == np.uint8 and one.ndim >= 3 and not images:
        return None
    if one.dtype.hasobject or other.dtype.hasobject:
        return first_difference(one.tolist(), other.tolist(), field, tolerance=tolerance, images=images)
    if one.dtype.kind not in "biufc" or other.dtype.kind not in "biufc":
        same = one == other
    else:
        with np.errstate(all="ignore"):
            if tolerance and one.dtype.kind != "b" and other.dtype.kind != "b":
                same = np.abs(np.subtract(one, other, dtype=np.result_type(one, other, np.float64)))
                same = (same <= tolerance) | (one == other)
            else:
                same = one == other
            if one.dtype.kind in "fc" and other.dtype.kind in "fc":
                same = same | ((one != one) & (other != other))
    if np.all(same):
        return None
    index = tuple(int(place) for place in np.argwhere(~np.asarray(same))[0])
    where = f"[{', '.join(map(str, index))}]" if index else ""
    return Difference(f"{field}{where}", _shown(one[index]), _shown(other[index]))


def _equal(expected: Any, found: Any, tolerance: float) -> bool:
    numbers = (int, float, np.integer, np.floating)
    if isinstance(expected, numbers) and isinstance(found, numbers):
        if expected == found or (expected != expected and found != found):
            return True
        return tolerance > 0 and abs(float(expected) - float(found)) <= tolerance
    return type(expected) is type(found) and bool(expected == found)


def _shown(value: Any) -> str:
    return quoted(value.item() if isinstance(value, np.generic) else value)
