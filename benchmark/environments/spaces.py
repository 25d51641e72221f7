"""Gymnasium's spaces as this project speaks them: named arrays out, one row of numbers in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from robowire.errors import BackendError, InvalidParams

__all__ = ["ActionNumbers", "ObservationNames", "leaves", "rgb"]

# The name of what has none: an observation or an action that is one array.
_OBSERVATION, _ACTION = "observation", "action"


# A table of small numbers may be of bytes and have two axes too; no camera has fewer pixels.
_LEAST_GREY_SIDE = 8


def leaves(space: spaces.Space[Any], name: str, *, text: bool = False) -> dict[str, spaces.Space[Any]]:
    """Return the spaces that a space is made of, by name; nested ones as ``outer.inner``.

    Args:
        space: ``Box``, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or ``Dict`` and ``Tuple`` of them.
        name: Name of the space itself where it is one of the former.
        text: Whether ``Text`` is a part too.

    Raises:
        InvalidParams: It holds a space that is no array of numbers, or two of one name: ``{"a": {"b": ...},
            "a.b": ...}``.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        found: dict[str, spaces.Space[Any]] = {}
        for key, part in parts:
            inner = leaves(part, str(key), text=text)
            if isinstance(part, (spaces.Dict, spaces.Tuple)):
                inner = {f"{key}.{name}": leaf for name, leaf in inner.items()}
            for name, leaf in inner.items():
                if name in found:
                    raise InvalidParams(
                        f"two parts of the space are called {name!r}: nested names are joined by a dot, so "
                        "call one of them otherwise"
                    )
                found[name] = leaf
        return found
    if text and isinstance(space, spaces.Text):
        return {name: space}
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise InvalidParams(
            f"{name!r} is a {type(space).__name__} space, expected Box, Discrete, MultiDiscrete, "
            "MultiBinary, or Dict and Tuple of them"
        )
    return {name: space}


class ObservationNames:
    """Turns observations of a space into named arrays.

    Args:
        space: Observation space of the environment.
        bounded: Whether values are within the bounds of the space; ``False`` for those known to break them.

    Attributes:
        numbers: Names and lengths of what a policy takes as its state, in order.
        images: Names of what it takes as images: uint8 (height, width, 1 or 3).
    """

    def __init__(self, space: spaces.Space[Any], *, bounded: bool = True) -> None:
        self._bounded = bounded
        found = leaves(space, _OBSERVATION, text=True)
        self.texts = tuple(name for name, leaf in found.items() if isinstance(leaf, spaces.Text))
        self._leaves = {name: leaf for name, leaf in found.items() if name not in self.texts}
        self.images = tuple(name for name, leaf in self._leaves.items() if _is_image(leaf))
        self.numbers = {
            name: int(np.prod(leaf.shape, dtype=int)) if leaf.shape else 1
            for name, leaf in self._leaves.items()
            if name not in self.images
        }

    def arrays(self, observation: Any) -> dict[str, np.ndarray]:
        """Return each part of an observation as an array of its own; a ``Discrete`` one is int64 (1,).

        Raises:
            BackendError: A part is not what its space says; names the part.
        """
        return {
            name: _array(name, leaf, _find(observation, name), bounded=self._bounded)
            for name, leaf in self._leaves.items()
        }

    def instruction(self, observation: Any) -> str:
        """Return the texts of an observation, one after the other; empty where there are none."""
        return " ".join(str(_find(observation, name)) for name in self.texts)

    def state(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Return the numbers one after the other, float32; ``None`` where there are none."""
        parts = [arrays[name].ravel().astype(np.float32) for name in self.numbers]
        return np.concatenate(parts) if parts else None


class ActionNumbers:
    """Turns a row of numbers into an action of a space.

    Args:
        space: Action space of the environment.
        box_hold: What stands still for the numbers of every ``Box``, of :data:`robowire.specs.HOLDS`; or for
            each number of the row. A space does not say.

    Attributes:
        dim: Length of the row.
        layout: What each number is, in words: ``"box(4) in -1..1"``.
        hold: What each number is while there is no new action; a number that chooses one of several is
            ``"choice"``.
    """

    def __init__(self, space: spaces.Space[Any], *, box_hold: str | tuple[str, ...] = "unknown") -> None:
        self._space = space
        self._leaves = leaves(space, _ACTION)
        self.dim = sum(_length(leaf) for leaf in self._leaves.values())
        hold: list[str] = []
        for leaf in self._leaves.values():
            still = box_hold if isinstance(box_hold, str) else "unknown"
            hold += [still if isinstance(leaf, spaces.Box) else "choice"] * _length(leaf)
        self.hold = tuple(hold) if isinstance(box_hold, str) else box_hold
        whole = not isinstance(space, (spaces.Dict, spaces.Tuple))
        self.layout = ", ".join(
            _layout(leaf) if whole else f"{name}: {_layout(leaf)}" for name, leaf in self._leaves.items()
        )

    def action(self, numbers: np.ndarray) -> Any:
        """Return the action that (dim,) numbers mean. What is beyond the bounds of a ``Box`` is cut off.

        Raises:
            InvalidParams: A number that chooses one of several is not one of them.
        """
        values, start = {}, 0
        for name, leaf in self._leaves.items():
            values[name] = _value(name, leaf, numbers[start : start + _length(leaf)])
            start += _length(leaf)
        return _nest(self._space, _ACTION, values)


def rgb(image: np.ndarray) -> np.ndarray:
    """Return uint8 (height, width, 3) of an image in any layout that counts as one; maybe a view."""
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.shape[2] not in (1, 3, 4):
        image = image.transpose(1, 2, 0)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return image[..., :3]  # without transparency


def _is_image(space: spaces.Space[Any]) -> bool:
    """Return whether a part is an image: grey, or of 1, 3 or 4 channels, which are first or last."""
    shape = space.shape or ()
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    if len(shape) == 2:
        return min(shape) >= _LEAST_GREY_SIDE and bool((space.high == 255).all())
    return len(shape) == 3 and (shape[2] in (1, 3, 4) or shape[0] in (1, 3, 4))


def _array(name: str, space: spaces.Space[Any], value: Any, *, bounded: bool) -> np.ndarray:
    """Return a part of an observation as the array that its space says, copied."""
    shape = space.shape or ()
    try:
        found = np.asarray(value)
    except ValueError as exc:
        raise BackendError(f"{name!r} of the observation is not an array of numbers: {exc}") from exc
    if found.dtype.kind not in "biuf" or (
        found.shape != shape and not (found.size == 1 and shape in ((), (1,)))
    ):
        raise BackendError(
            f"{name!r} of the observation has shape {found.shape} and dtype {found.dtype}, its space has "
            f"{shape} and {space.dtype}"
        )
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    else:
        low, high = (bound.reshape(shape or (1,)) for bound in _choices(space))
    wrong = ~_within(found.reshape(low.shape), low, high, space.dtype) if bounded else np.zeros(0, bool)
    if wrong.any():
        first = found.reshape(low.shape)[wrong][0]
        raise BackendError(
            f"{name!r} of the observation holds {first:g} ({found.dtype}), outside of its space: "
            f"{low[wrong][0]:g} to {high[wrong][0]:g} ({space.dtype})"
        )
    return np.array(found, dtype=space.dtype).reshape(shape or (1,))


def _within(values: np.ndarray, low: np.ndarray, high: np.ndarray, dtype: Any) -> np.ndarray:
    """Return which values are within the bounds, bool, of the same shape."""
    if values.dtype.kind != "f":
        inside: np.ndarray = (values >= low) & (values <= high)
        return inside
    # Bounds in float32 round a value of float64 that is on them.
    slack = 1e-6 * np.maximum(1, np.abs(values))
    inside = (values >= low - slack) & (values <= high + slack)
    return inside & np.equal(values, np.rint(values)) if np.issubdtype(dtype, np.integer) else inside


def _find(observation: Any, name: str) -> Any:
    if not isinstance(observation, (dict, tuple)):
        return observation
    if isinstance(observation, tuple):
        key, _, rest = name.partition(".")
        return _find(observation[int(key)], rest)
    # A name of the observation's own may hold a dot, and begin with another one.
    for key, value in observation.items():
        if name == str(key):
            return value
    for key, value in observation.items():
        if isinstance(value, (dict, tuple)) and name.startswith(f"{key}."):
            rest = name[len(str(key)) + 1 :]
            if _has(value, rest):
                return _find(value, rest)
    raise InvalidParams(f"the environment's observation has no {name!r}, which its space has")


def _has(observation: Any, name: str) -> bool:
    try:
        _find(observation, name)
    except (InvalidParams, IndexError, ValueError):
        return False
    return True


def _length(space: spaces.Space[Any]) -> int:
    return int(np.prod(space.shape, dtype=int)) if space.shape else 1


def _choices(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest whole number of each place."""
    if isinstance(space, spaces.Discrete):
        start, count = np.array([space.start]), np.array([space.n])
    elif isinstance(space, spaces.MultiDiscrete):
        start, count = np.ravel(space.start), np.ravel(space.nvec)
    else:
        start, count = np.zeros(_length(space), int), np.full(_length(space), 2)
    return start, start + count - 1


def _layout(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box):
        low, high = np.ravel(space.low), np.ravel(space.high)
        kind = "box"
    else:
        low, high = _choices(space)
        kind = "choice"
    ranges = [f"{least:g}..{most:g}" for least, most in zip(low, high, strict=True)]
    # A hand of 20 joints with bounds of its own each would be a paragraph.
    told = ranges[0] if len(set(ranges)) == 1 else " ".join(ranges)
    return f"{kind}({len(ranges)}) in {told}" + (", beyond is cut off" if kind == "box" else "")


def _value(name: str, space: spaces.Space[Any], numbers: np.ndarray) -> Any:
    if isinstance(space, spaces.Box):
        cut = np.clip(numbers.reshape(space.shape), space.low, space.high)
        if np.issubdtype(space.dtype, np.integer):
            cut = np.rint(cut)
        return cut.astype(space.dtype)
    low, high = _choices(space)
    if not (np.equal(numbers, np.rint(numbers)) & (numbers >= low) & (numbers <= high)).all():
        expected = " ".join(f"{least}..{most}" for least, most in zip(low, high, strict=True))
        raise InvalidParams(f"{name} is {numbers.tolist()}, expected whole numbers in {expected}")
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(numbers[0])
    return numbers.reshape(space.shape).astype(space.dtype)


def _nest(space: spaces.Space[Any], name: str, values: Mapping[str, Any]) -> Any:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        built = {}
        for key, part in parts:
            nested = isinstance(part, (spaces.Dict, spaces.Tuple))
            own = {
                inner[len(str(key)) + 1 :]: value
                for inner, value in values.items()
                if inner.startswith(f"{key}.")
            }
            built[key] = _nest(part, str(key), own if nested else values)
        return built if isinstance(space, spaces.Dict) else tuple(built.values())
    return values[name]
