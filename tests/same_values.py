"""Equality to the last bit, which ``==`` does not tell."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from robowire.meta import MetaAction, MetaObs


def require_same(one: Any, other: Any) -> None:
    """Compare types, bits, memory order and writability."""
    assert type(one) is type(other)
    if isinstance(one, (MetaObs, MetaAction)):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            require_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for item, its in zip(one, other):
            require_same(item, its)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.strides) == (other.dtype, other.shape, other.strides)
        assert (one.flags.fnc, one.flags.writeable, one.flags.aligned) == (
            *(other.flags.fnc, other.flags.writeable),
            other.flags.aligned,
        )
        assert one.tobytes("A") == other.tobytes("A")
    elif isinstance(one, float):
        assert struct.pack("d", one) == struct.pack("d", other)
    else:
        assert one == other
