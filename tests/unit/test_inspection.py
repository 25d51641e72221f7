"""What a person is shown of bytes and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robowire.meta import MetaAction
from robowire.wire.inspection import describe, hex_dump


def test_a_hex_dump_has_offsets_and_readable_characters() -> None:
    assert hex_dump(bytes(range(16)) + b"RESET\x00") == (
        "000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................\n"
        "000010  52 45 53 45 54 00                                RESET."
    )


def test_a_hex_dump_is_bounded() -> None:
    assert hex_dump(bytes(100), limit=3) == (
        "000000  00 00 00                                         ...\n... 97 more bytes"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (np.zeros((64, 14), np.float32), "array float32 (64, 14)"),
        (b"12345", "bytes of 5"),
        ("x" * 500, "'" + "x" * 199 + "... (502 characters)"),
        (
            {"status": "ok", "actions": np.zeros(3)},
            "dict of 2\n  'status': 'ok'\n  'actions': array float64 (3,)",
        ),
        (
            [MetaAction(action=np.zeros(7))],
            "list of 1\n  [0] MetaAction\n    ctrl_space: 'ee'\n    ctrl_type: 'delta'\n"
            "    action: array float64 (7,)\n    gripper_continuous: False",
        ),
        (
            np.array([{"a": 1}, None], dtype=object),
            "array object (2,)\n  [0] dict of 1\n    'a': 1\n  [1] None",
        ),
        ((1, 2), "tuple of 2\n  [0] 1\n  [1] 2"),
    ],
)
def test_a_value_is_described_by_its_structure(value: Any, text: str) -> None:
    assert describe(value) == text


def test_a_long_list_is_told_by_its_first_items() -> None:
    assert describe(list(range(64))).splitlines()[-2:] == ["  [7] 7", "  ... 56 more"]


def test_a_deep_value_is_cut_off() -> None:
    value: Any = 0
    for _ in range(60):
        value = [value]
    lines = describe(value).splitlines()
    assert len(lines) == 8
    assert lines[-1].strip() == "..."
