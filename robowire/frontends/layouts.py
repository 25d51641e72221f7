"""Layouts of states and actions in words, such as ``"dpos(3) daxisangle(3) gripper(1)"``, and conversions.

A layout is words with lengths. Two layouts fit where they are equal, and convert where they have as many
words and each pair is equal, two notations of one rotation, or the two directions in which a gripper's
opening is counted. Anything else does not fit: nothing is guessed from a length.

Rotations are written ``axisangle(3)`` (the axis times the angle, radians), ``euler_xyz(3)`` (radians, about
the fixed axes x, y, z in this order), ``quat_xyzw(4)``, ``quat_wxyz(4)`` and ``rot6d(6)`` (the first two
columns of the matrix), each behind any prefix: ``daxisangle(3)``, ``ee_quat_xyzw(4)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = [
    "ROTATIONS",
    "Converter",
    "GripperScale",
    "Word",
    "layout_converter",
    "parse_layout",
    "rotation_of",
    "with_rotation",
]

# Converts the last axis of an array.
Converter = Callable[[np.ndarray], np.ndarray]

# Lengths of the notations of a rotation.
ROTATIONS = {"axisangle": 3, "euler_xyz": 3, "quat_xyzw": 4, "quat_wxyz": 4, "rot6d": 6}

_WORD = re.compile(r"([A-Za-z_]\w*)\((\d{1,4})\)")
# Below this angle, in radians, the axis is lost in rounding, and the first order is exact in float64.
_SMALL = 1e-8


@dataclass(frozen=True)
class Word:
    """One word of a layout: its name and its number of entries."""

    name: str
    length: int

    def __str__(self) -> str:
        return f"{self.name}({self.length})"


@dataclass(frozen=True)
class GripperScale:
    """What a client's gripper counts: its numbers for an open and for a closed one.

    Attributes:
        opened: Number that means open.
        closed: Number that means closed.
    """

    opened: float = 1.0
    closed: float = 0.0

    @classmethod
    def parse(cls, text: str) -> GripperScale:
        """Return the scale in words such as ``"-1 open, 1 closed"``.

        Raises:
            ValueError: It is not written so, or both numbers are equal.
        """
        number = r"([+-]?\d+(?:\.\d+)?)"
        found = re.fullmatch(rf"\s*{number}\s+open\s*,?\s*{number}\s+closed?\s*", text)
        if found is None or float(found[1]) == float(found[2]):
            raise ValueError(f"{text!r} is no gripper scale: write it as '-1 open, 1 closed'")
        return cls(float(found[1]), float(found[2]))

    def __str__(self) -> str:
        return f"{self.opened:g} open, {self.closed:g} closed"

    def from_opening(self, opening: np.ndarray) -> np.ndarray:
        """Return the client's numbers for openings, 1 open and 0 closed."""
        scaled: np.ndarray = self.closed + (self.opened - self.closed) * opening
        return scaled


def parse_layout(text: str) -> tuple[Word, ...] | None:
    """Return the words of a layout; ``None`` where it is not written in words with lengths.

    Names of arms, such as ``right:``, and what separates them are left out.
    """
    words = []
    for part in re.sub(r"\w+:|;", " ", text).split():
        found = _WORD.fullmatch(part)
        if found is None:
            return None
        words.append(Word(found[1], int(found[2])))
    return tuple(words) or None


def rotation_of(word: Word) -> str | None:
    """Return the notation of a word that is a rotation, such as ``"axisangle"``; else ``None``."""
    return next(
        (name for name, length in ROTATIONS.items() if word.name.endswith(name) and word.length == length),
        None,
    )


def with_rotation(word: Word, notation: str) -> Word:
    """Return the word of the same rotation in another notation."""
    own = rotation_of(word)
    prefix = word.name if own is None else word.name[: -len(own)]
    return Word(prefix + notation, ROTATIONS[notation])


def layout_converter(given: tuple[Word, ...], wanted: tuple[Word, ...]) -> Converter | None:
    """Return what converts arrays of one layout into another, on the last axis.

    Returns:
        ``None`` where the layouts do not fit. Where they are equal the converter returns its argument.
    """
    if given == wanted:
        return lambda array: array
    if len(given) != len(wanted):
        return None
    steps: list[tuple[slice, Converter | None]] = []
    start = 0
    for have, want in zip(given, wanted):
        convert = _word_converter(have, want)
        if have != want and convert is None:
            return None
        steps.append((slice(start, start + have.length), convert))
        start += have.length

    def convert_all(array: np.ndarray) -> np.ndarray:
        parts = [
            array[..., part] if convert is None else convert(array[..., part]) for part, convert in steps
        ]
        return np.concatenate(parts, axis=-1)

    return convert_all


def _word_converter(have: Word, want: Word) -> Converter | None:
    if have == want:
        return None
    openings = {"gripper_open", "gripper_close"}
    if {have.name, want.name} == openings and have.length == want.length:
        return lambda array: 1 - array
    given, wanted = rotation_of(have), rotation_of(want)
    if given is None or wanted is None or with_rotation(have, wanted) != want:
        return None
    return lambda array: _from_matrix(_to_matrix(array.astype(np.float64), given), wanted).astype(array.dtype)


# -- rotations, float64 (..., n) and matrices (..., 3, 3) ----------------------------------------------------


def _to_matrix(values: np.ndarray, notation: str) -> np.ndarray:
    if notation == "euler_xyz":
        return _euler_to_matrix(values)
    if notation == "rot6d":
        return _columns_to_matrix(values)
    if notation == "axisangle":
        values = _axisangle_to_quat(values)
    elif notation == "quat_wxyz":
        values = np.roll(values, -1, axis=-1)
    return _quat_to_matrix(values)


def _from_matrix(matrix: np.ndarray, notation: str) -> np.ndarray:
    if notation == "euler_xyz":
        return _matrix_to_euler(matrix)
    if notation == "rot6d":
        return np.concatenate([matrix[..., 0], matrix[..., 1]], axis=-1)
    quat = _matrix_to_quat(matrix)
    if notation == "quat_wxyz":
        return np.roll(quat, 1, axis=-1)
    return _quat_to_axisangle(quat) if notation == "axisangle" else quat


def _axisangle_to_quat(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    safe = np.where(angle < _SMALL, 1.0, angle)
    scale = np.where(angle < _SMALL, 0.5, np.sin(angle / 2) / safe)
    return np.concatenate([vector * scale, np.cos(angle / 2)], axis=-1)


def _quat_to_axisangle(quat: np.ndarray) -> np.ndarray:
    quat = np.where(quat[..., 3:] < 0, -quat, quat)  # the shorter way round
    sine = np.linalg.norm(quat[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quat[..., 3:])
    scale: np.ndarray = np.where(sine < _SMALL, 2.0, angle / np.where(sine < _SMALL, 1.0, sine))
    vector: np.ndarray = quat[..., :3] * scale
    return vector


def _quat_to_matrix(quat: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(quat, axis=-1, keepdims=True)
    # A quaternion of zeros is what a simulator shows before its first step: no rotation.
    unit = np.where(norm < _SMALL, [0.0, 0.0, 0.0, 1.0], quat / np.where(norm < _SMALL, 1.0, norm))
    x, y, z, w = np.moveaxis(unit, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _matrix_to_quat(matrix: np.ndarray) -> np.ndarray:
    """Return unit quaternions x, y, z, w with w >= 0."""
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Each is four times the square of one component, and at least one of them is not small.
    squares = np.stack(
        [
            1 + m[..., 0, 0] - m[..., 1, 1] - m[..., 2, 2],
            1 - m[..., 0, 0] + m[..., 1, 1] - m[..., 2, 2],
            1 - m[..., 0, 0] - m[..., 1, 1] + m[..., 2, 2],
            1 + trace,
        ],
        axis=-1,
    )
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    wx, wy, wz = (m[..., i, j] - m[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    products = [
        [squares[..., 0], xy, xz, wx],
        [xy, squares[..., 1], yz, wy],
        [xz, yz, squares[..., 2], wz],
        [wx, wy, wz, squares[..., 3]],
    ]
    table = np.stack([np.stack(row, axis=-1) for row in products], axis=-2)  # (..., 4, 4)
    largest = np.argmax(squares, axis=-1)[..., np.newaxis, np.newaxis]
    quat = np.take_along_axis(table, largest, axis=-2)[..., 0, :]
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    shorter: np.ndarray = np.where(quat[..., 3:] < 0, -quat, quat)
    return shorter


def _euler_to_matrix(angles: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(angles[..., 0])
    axes = [
        np.stack([np.where(index == axis, angles[..., axis], zero) for index in range(3)], axis=-1)
        for axis in range(3)
    ]
    about_x, about_y, about_z = (_quat_to_matrix(_axisangle_to_quat(axis)) for axis in axes)
    matrix: np.ndarray = about_z @ about_y @ about_x
    return matrix


def _matrix_to_euler(m: np.ndarray) -> np.ndarray:
    cosine = np.hypot(m[..., 0, 0], m[..., 1, 0])
    locked = cosine < 1e-6  # x and z turn about one axis: all of it is written as x
    x = np.where(locked, np.arctan2(-m[..., 1, 2], m[..., 1, 1]), np.arctan2(m[..., 2, 1], m[..., 2, 2]))
    y = np.arctan2(-m[..., 2, 0], cosine)
    z = np.where(locked, 0.0, np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    return np.stack([x, y, z], axis=-1)


def _columns_to_matrix(values: np.ndarray) -> np.ndarray:
    first, second = values[..., :3], values[..., 3:]

    def unit(vector: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(vector, axis=-1, keepdims=True)
        scaled: np.ndarray = vector / np.where(norm < _SMALL, 1.0, norm)
        return scaled

    x = unit(first)
    y = unit(second - np.sum(x * second, axis=-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], axis=-1)
