"""Gymnasium's spaces as this project speaks them: named arrays out, one row of numbers in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from robowire.errors import InvalidParams

__all__ = ["ActionNumbers", "ObservationNames", "leaves"]

# The name of what has none: an observation or an action that is one array.
_OBSERVATION, _ACTION = "observation", "action"


def leaves(space: spaces.Space[Any], name: str) -> dict[str, spaces.Space[Any]]:
    """Return the spaces that a space is made of, by name; nested ones as ``outer.inner``.

    Args:
        space: ``Box``, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or ``Dict`` and ``Tuple`` of them.
        name: What the space itself is called where it is one of the former.

    Raises:
        InvalidParams: It holds a space that is no array of numbers.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        found: dict[str, spaces.Space[Any]] = {}
        for key, part in parts:
            if isinstance(part, (spaces.Dict, spaces.Tuple)):
                found |= {f"{key}.{inner}": leaf for inner, leaf in leaves(part, str(key)).items()}
            else:
                found |= leaves(part, str(key))
        return found
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise InvalidParams(
            f"{name!r} is a {type(space).__name__} space, expected Box, Discrete, MultiDiscrete, "
            "MultiBinary, or Dict and Tuple of them"
        )
    return {name: space}


class ObservationNames:
    """Turns observations of a space into named arrays.

    Attributes:
        numbers: Names and lengths of what a policy takes as its state, in order.
        pictures: Names of what it takes as pictures: uint8 (height, width, 1 or 3).
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._leaves = leaves(space, _OBSERVATION)
        self.pictures = tuple(name for name, leaf in self._leaves.items() if _is_picture(leaf))
        self.numbers = {
            name: int(np.prod(leaf.shape, dtype=int)) if leaf.shape else 1
            for name, leaf in self._leaves.items()
            if name not in self.pictures
        }

    def arrays(self, observation: Any) -> dict[str, np.ndarray]:
        """Return each part of an observation as an array of its own; a ``Discrete`` one is int64 (1,)."""
        return {
            name: np.array(_find(observation, name), dtype=leaf.dtype).reshape(leaf.shape or (1,))
            for name, leaf in self._leaves.items()
        }

    def state(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Return the numbers one after the other, float32; ``None`` where there are none."""
        parts = [arrays[name].ravel().astype(np.float32) for name in self.numbers]
        return np.concatenate(parts) if parts else None


class ActionNumbers:
    """Turns a row of numbers into an action of a space.

    Attributes:
        dim: Length of the row.
        layout: What each number is, in words: ``"box(4) in -1..1"``.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space
        self._leaves = leaves(space, _ACTION)
        self.dim = sum(_length(leaf) for leaf in self._leaves.values())
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


def _is_picture(space: spaces.Space[Any]) -> bool:
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3)


def _find(observation: Any, name: str) -> Any:
    if not isinstance(observation, (dict, tuple)):
        return observation
    if isinstance(observation, tuple):
        key, _, rest = name.partition(".")
        return _find(observation[int(key)], rest)
    for key, value in observation.items():
        if name == key or name.startswith(f"{key}."):
            return _find(value, name[len(str(key)) + 1 :])
    raise InvalidParams(f"the environment's observation has no {name!r}, which its space has")


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
