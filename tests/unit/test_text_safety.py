from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from robowire.meta import MetaAction
from robowire.wire.text_safety import MAX_PEER_TEXT, printable, quoted


def test_plain_text_is_left_as_it_is() -> None:
    assert printable("Lift, größer: 立方体 'x'") == "Lift, größer: 立方体 'x'"


def test_control_characters_are_escaped() -> None:
    assert printable("a\nINFO forged\r\x1b[2J\x00\u2028\ud800") == (
        "a\\nINFO forged\\r\\x1b[2J\\x00\\u2028\\ud800"
    )


def test_an_exception_becomes_its_message() -> None:
    assert printable(ValueError("a\nb")) == "a\\nb"


@pytest.mark.parametrize("text", ["x" * 501, "\x00" * 300, "x" * 3_000_000])
def test_a_long_text_is_cut(text: str) -> None:
    assert len(printable(text)) == MAX_PEER_TEXT
    assert printable(text).endswith("...")


def test_a_text_of_the_limit_is_whole() -> None:
    assert printable("x" * 500) == "x" * 500


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("front\n", "'front\\n'"),
        (1.5, "1.5"),
        (True, "True"),
        (["Panda", 1], "['Panda', 1]"),
        ({"a": (1,)}, "{'a': (1,)}"),
        (b"\x00a", "b'\\x00a'"),
        (10**400, "an int of 1329 bits"),
        ([10**10_000], "[an int of 33220 bits]"),
        (np.zeros((2, 3), np.uint8), "a uint8 array of shape (2, 3)"),
        (MetaAction(action=np.zeros(3)), "a MetaAction"),
        (range(3), "a range"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        ({n: n for n in range(9)}, "{0: 0, 1: 1, 2: 2, 3: 3, ...}"),
    ],
)
def test_a_value_is_quoted_as_python_writes_it(value: Any, expected: str) -> None:
    assert quoted(value) == expected


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 3_000_000,
        b"x" * 3_000_000,
        ["x" * 3_000_000] * 1000,
        list(range(300_000)),
        nested(2000),
        {str(n): n for n in range(100_000)},
        10**100_000,
        np.array(["x" * 1_000_000] * 2),
    ],
    ids=["text", "bytes", "texts", "numbers", "nested", "dict", "int", "array"],
)
def test_quoting_costs_little_whatever_the_value(value: Any) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        assert len(quoted(value)) <= 150
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 0.5
