"""Whether arrays are finite, as numpy has it."""

from __future__ import annotations

import numpy as np
import pytest

from robowire.wire.arrays import are_finite

NUMBERS = [0.0, -0.0, 1.0, -1.5, 65504.0, 1.6e38, 1.8e38, -3.4e38, 1e-45, 1.7e308, 5e-324]


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8", "<f2", "<f4x"])
@pytest.mark.parametrize("number", [*NUMBERS, np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("at", [(0, 0), (3, 6), (2, 3)])
def test_every_number_counts(dtype: str, number: float, at: tuple[int, int]) -> None:
    strided = dtype.endswith("x")
    with np.errstate(over="ignore"):
        array = np.ones((8, 14) if strided else (4, 7), dtype.rstrip("x"))
        array = array[::2, ::2] if strided else array
        array[at] = number
    assert are_finite(array) is bool(np.isfinite(array).all())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_bits_are_judged_as_numpy_does(dtype: type) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 40_000, np.uint8)
    for value in bits.view(dtype):
        array = np.array([[value]])
        assert are_finite(array) is bool(np.isfinite(value))


def test_no_numbers_are_finite() -> None:
    assert are_finite(np.zeros((0, 3), np.float32))
