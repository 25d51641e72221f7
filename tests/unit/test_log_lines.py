"""Log lines as JSON: one object a line, whatever a message holds."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from robowire.cli.log_lines import JsonFormatter


def line(message: str, *arguments: Any, exc_info: Any = None) -> dict[str, Any]:
    record = logging.LogRecord("robowire.x", logging.WARNING, "x.py", 1, message, arguments, exc_info)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_record_becomes_an_object_with_its_parts() -> None:
    found = line("%s closed (%d requests)", "#17", 3)
    assert found.pop("time")[-1] == "Z"
    assert found == {
        "level": "warning",
        "logger": "robowire.x",
        "thread": "MainThread",
        "message": "#17 closed (3 requests)",
    }


def test_line_breaks_and_quotes_stay_within_the_message() -> None:
    assert line('a "b"\n2026-01-01 INFO forged')["message"] == 'a "b"\n2026-01-01 INFO forged'


def test_an_exception_is_part_of_the_object() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = line("failed", exc_info=sys.exc_info())
    assert found["exception"].endswith("ValueError: broken")
