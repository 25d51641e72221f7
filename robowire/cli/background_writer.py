"""Text that a thread writes to a file descriptor, so that an unread pipe never blocks a server."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from queue import SimpleQueue

__all__ = ["BackgroundLogHandler", "BackgroundStream", "BackgroundWriter"]

# Log lines of some minutes of a busy server; each is a few hundred bytes.
_CAPACITY = 10_000

# How long the end of the program waits for what is still to be written.
_FLUSH_S = 0.5
_POLL_S = 0.005


class BackgroundWriter:
    """Writes in a thread of its own, and drops what does not fit while the reader does not read.

    Not ``sys.stderr``: a thread that is blocked in it holds its lock, which the interpreter wants at its end.

    Args:
        descriptor: File descriptor to write to: 1, 2 or another.
        capacity: Texts that wait at most; the next one is dropped and counted.
    """

    def __init__(self, descriptor: int, *, capacity: int = _CAPACITY) -> None:
        self._descriptor = descriptor
        self._capacity = capacity
        # Its put is reentrant: a signal handler may call write.
        self._texts: SimpleQueue[str] = SimpleQueue()
        self._dropped = 0
        self._writing = False
        threading.Thread(target=self._run, name=f"writer-{descriptor}", daemon=True).start()

    def write(self, text: str) -> None:
        """Write a text soon, or drop it. Returns at once; a signal handler may call it."""
        if self._texts.qsize() >= self._capacity:
            self._dropped += 1
        else:
            self._texts.put(text)

    def flush(self, timeout_s: float = _FLUSH_S) -> bool:
        """Return whether everything is written, in ``timeout_s`` at most."""
        deadline = time.monotonic() + timeout_s
        while self._writing or not self._texts.empty():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            self._writing = True
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                text = f"({dropped} lines were dropped here: the output was not read)\n{text}"
            data = memoryview(text.encode("utf-8", "backslashreplace"))
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:  # the reader has gone, and with it the only place for an error message
                pass
            self._writing = False


class BackgroundStream(io.TextIOBase):
    """A background writer as a text stream, whose calls return at once.

    Args:
        descriptor: File descriptor to write to.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writer = BackgroundWriter(descriptor)

    def write(self, text: str) -> int:
        """Write a text soon."""
        self._writer.write(text)
        return len(text)

    def flush(self) -> None:
        """Return at once: the text follows when it can."""

    def isatty(self) -> bool:
        """Return whether a terminal shows the text."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor


class BackgroundLogHandler(logging.Handler):
    """Formats a record where it is logged, and lets a writer write it.

    Args:
        writer: Writes the lines.
    """

    def __init__(self, writer: BackgroundWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the line to the writer."""
        try:
            self._writer.write(f"{self.format(record)}\n")
        except Exception:  # what logging's own handlers do: a record that can't be formatted ends no thread
            self.handleError(record)

    def flush(self) -> None:
        """Wait for the writer, but not for long."""
        self._writer.flush()
