"""The latest log lines of this process, for a dashboard."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

__all__ = ["LogBuffer"]


class LogBuffer(logging.Handler):
    """Keep the latest lines of each level.

    Args:
        size: Lines to keep of each level: a flood of one level does not push the others out.
    """

    def __init__(self, size: int = 200) -> None:
        super().__init__()
        self._size = size
        self._lines: dict[int, deque[dict[str, Any]]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record as text; :meth:`handle` holds the lock."""
        try:
            lines = self._lines.setdefault(record.levelno, deque(maxlen=self._size))
            lines.append(
                {
                    "time": record.created,
                    "level": record.levelname.lower(),
                    "message": record.getMessage()[:2000],
                }
            )
        except Exception:  # as every handler of logging does
            self.handleError(record)

    def lines(self, count: int, level: str = "debug") -> list[dict[str, Any]]:
        """Return the latest lines of a level and those above, oldest first.

        Args:
            count: At most so many.
            level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.

        Returns:
            Dicts of ``time``, seconds since 1970, ``level`` and ``message``.
        """
        lowest = logging.getLevelName(level.upper())
        assert self.lock is not None
        with self.lock:
            found = [line for number, lines in self._lines.items() if number >= lowest for line in lines]
        return sorted(found, key=lambda line: float(line["time"]))[-count:] if count else []
