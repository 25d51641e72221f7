"""Table of a fleet's services, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["table"]

_COLUMNS = ("service", "address", "state", "sessions", "memory", "restarts", "gpu", "cores")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each service below a header; the reason for its state, if any, ends the line.

    Args:
        rows: Rows of ``list_services``.
    """
    if not rows:
        return "no services"
    cells = [
        (
            row["service"],
            row["address"] or "-",
            row["state"],
            f"{row['sessions']}/{row['max_sessions']}" if row["max_sessions"] else "-",
            f"{row['memory_mb']} MB" if row["memory_mb"] else "-",
            str(row["restarts"]),
            row["gpu"] or "-",
            row["cores"] or "all",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells)]
    notes = ["", *(f"  {row['reason']}" if row["reason"] else "" for row in rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + note
        for line, note in zip([_COLUMNS, *cells], notes)
    )
