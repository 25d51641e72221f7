"""Log lines of the programs: text for people, or one JSON object a line. Runs on Python 3.8."""

from __future__ import annotations

import json
import logging
import sys
import time

from robowire.cli.parser import LogOptions

__all__ = ["JsonFormatter", "configure_logging"]


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: time (UTC, RFC 3339), level, logger, thread, message, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end. A line break within a message is escaped."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(options: LogOptions) -> None:
    """Make this process log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if options.format == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=options.level.upper(), handlers=[handler])
