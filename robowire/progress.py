"""Progress of long work: a bar on a terminal, a line now and then in a log. Runs on Python 3.8.

A log gets a line after ten seconds, and further ones at growing intervals, a fifth of the time so far: about
thirty in an hour. tqdm draws the bar; where it is not installed, a terminal gets the lines too.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, TextIO, TypeVar, Union

__all__ = ["LEAST_S", "Pace", "Progress", "duration_in_words", "track"]

T = TypeVar("T")
Stream = Union[TextIO, io.TextIOBase]

# Work that is over sooner is not mentioned: nobody waited for it.
LEAST_S = 2.0

_INTERVAL_S = 10.0
_SHARE_OF_ELAPSED = 0.2
_LONGEST_INTERVAL_S = 600.0

# A bar whose seconds do not move looks like a program that hangs.
_REFRESH_S = 1.0


def duration_in_words(seconds: float) -> str:
    """Return a duration for a person: ``7.8 s``, ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


class Pace:
    """When to write a line about work that goes on: the first one soon, the others at growing intervals.

    Args:
        first_s: Seconds until the first line.
    """

    def __init__(self, first_s: float) -> None:
        self.next_s = first_s

    def due(self, elapsed_s: float) -> bool:
        """Return whether to write a line after this time; it counts as written then."""
        if elapsed_s < self.next_s:
            return False
        interval = max(_INTERVAL_S, elapsed_s * _SHARE_OF_ELAPSED)
        self.next_s = elapsed_s + min(interval, _LONGEST_INTERVAL_S)
        return True


class Progress:
    """Work whose progress is shown. A context manager; any thread may update it.

    Args:
        what: The work, such as ``"recording Lift"``.
        total: How many units there are; ``None`` for work that can't be counted.
        unit: One of them, in the singular: ``"episode"``.
        done: Units that were done before: they took no time now.
        least_s: Seconds before the work is mentioned at all.
        log: Logger for the lines, at INFO; by default they go to ``stream``.
        bar: Whether to draw a bar on a terminal.
        stream: Where bar and lines go; ``sys.stderr`` by default.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "",
        done: int = 0,
        least_s: float = LEAST_S,
        log: logging.Logger | None = None,
        bar: bool = True,
        stream: Stream | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._before = done
        self._least_s, self._log, self._clock = least_s, log, clock
        self._stream = sys.stderr if stream is None else stream
        self._note = ""
        self._lock = threading.RLock()  # guards the state, and lines of the two threads
        self._bar_allowed, self._wants_bar = bar, False
        self._bar: Any = None
        self._closing = ExitStack()
        self._ended = threading.Event()
        self._started = clock()
        # Work that can't be counted is named as soon as it takes time; counts are worth a line later.
        self._pace = Pace(least_s if total is None else _INTERVAL_S)
        self._mentioned = False
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._started = self._clock()
        self._wants_bar = self._bar_allowed and _is_terminal(self._stream)
        if self._least_s <= 0:
            self._open_bar()
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._ticker.join()
        elapsed = self._clock() - self._started
        if self._bar is not None:
            self._bar.close()
            self._closing.close()
        shown_as_bar = self._bar is not None and self._total is not None
        if (elapsed >= self._least_s or self._mentioned) and (self._log is not None or not shown_as_bar):
            self._line(self._last_line(elapsed, failed=error is not None))

    def update(self, units: int = 1) -> None:
        """Count units as done."""
        with self._lock:
            self._done += units
            if self._bar is not None:
                self._bar.update(units)

    def skip(self, units: int) -> None:
        """Count units that were done before: they say nothing about the time that is left."""
        with self._lock:
            self._done += units
            self._before += units
            if self._bar is not None:
                self._bar.initial += units
                self._bar.last_print_n += units
                self._bar.n += units
                self._bar.refresh()

    def set_total(self, total: int) -> None:
        """Say how many units there are, once that is known."""
        with self._lock:
            self._total = total
            if self._bar is not None:
                self._bar.total = total
                self._bar.refresh()

    def note(self, text: str) -> None:
        """Show a text after the counts, in place of the one before."""
        with self._lock:
            self._note = text
            if self._bar is not None:
                self._bar.set_postfix_str(text, refresh=False)

    def rename(self, what: str) -> None:
        """Change the name of the work."""
        with self._lock:
            self._what = what
            if self._bar is not None:
                self._bar.set_description_str(what, refresh=False)

    def write(self, text: str, stream: Stream | None = None) -> None:
        """Write a line that stays above the bar, to stdout by default."""
        if self._bar is not None:
            self._bar.write(text, file=stream)
            return
        with self._lock:
            stream = sys.stdout if stream is None else stream
            stream.write(f"{text}\n")
            stream.flush()

    def show_if_due(self) -> None:
        """Refresh the bar, or write a line if it is time for one; a thread calls this."""
        with self._lock:
            elapsed = self._clock() - self._started
            if elapsed >= self._least_s:
                self._open_bar()
            if self._bar is not None:
                self._bar.refresh()
            elif self._pace.due(elapsed):
                self._line(self._current_line(elapsed))

    def _open_bar(self) -> None:
        if not self._wants_bar:
            return
        self._wants_bar = False
        try:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm
        except ModuleNotFoundError:
            return
        countless = self._total is None
        if self._stream is sys.stderr:  # a server's own handlers write in the background
            self._closing.enter_context(logging_redirect_tqdm())
        bar = tqdm(
            desc=self._what,
            total=self._total,
            initial=self._before,
            unit=self._unit or "it",
            file=self._stream,
            dynamic_ncols=True,
            # What is left takes about as long as the mean, not as the last few.
            smoothing=0,
            leave=not countless,
            bar_format="{desc}: {elapsed} {postfix}" if countless and not self._unit else None,
        )
        bar.start_t -= self._clock() - self._started
        bar.n = self._done
        bar.set_postfix_str(self._note)
        self._bar = bar

    def _tick(self) -> None:
        """Show that time passes, also while one unit takes long."""
        while not self._ended.wait(self._until_next()):
            self.show_if_due()

    def _until_next(self) -> float:
        if self._bar is not None:
            return _REFRESH_S
        next_s = self._least_s if self._wants_bar else self._pace.next_s
        return max(next_s - (self._clock() - self._started), 0.01)

    def _line(self, text: str) -> None:
        self._mentioned = True
        if self._log is not None:
            self._log.info("%s", text)
            return
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _current_line(self, elapsed: float) -> str:
        parts = [*self._counts(), duration_in_words(elapsed)]
        new = self._done - self._before
        if self._total is not None and new > 0 and self._done < self._total:
            left = elapsed / new * (self._total - self._done)
            parts.append(f"about {duration_in_words(left)} left")
        if self._note:
            parts.append(self._note)
        return f"{self._what}: {', '.join(parts)}"

    def _last_line(self, elapsed: float, *, failed: bool) -> str:
        counts = "".join(self._counts())
        took = f"after {duration_in_words(elapsed)}"
        if failed:
            state = f"stopped {took}" + (f" with {counts}" if counts else "")
        else:
            state = f"{counts} {took}" if counts else f"done {took}"
        return f"{self._what}: {state}" + (f", {self._note}" if self._note else "")

    def _counts(self) -> list[str]:
        if self._total is None:
            return [f"{self._done} {self._units(self._done)}"] if self._done else []
        return [f"{self._done} of {self._total} {self._units(self._total)}".rstrip()]

    def _units(self, number: int) -> str:
        return self._unit if number == 1 or not self._unit else f"{self._unit}s"


def track(
    items: Iterable[T],
    what: str,
    *,
    unit: str,
    total: int | None = None,
    least_s: float = LEAST_S,
    log: logging.Logger | None = None,
    bar: bool = True,
    stream: Stream | None = None,
) -> Iterator[T]:
    """Yield the items, and count each as done when the next one is asked for.

    Args:
        items: What is worked on; ``len()`` of it is the total by default.
        what: The work.
        unit: One item, in the singular.
        total: How many there are.
        least_s: Seconds before the work is mentioned at all.
        log: As for :class:`Progress`.
        bar: As for :class:`Progress`.
        stream: As for :class:`Progress`.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(what, total, unit=unit, least_s=least_s, log=log, bar=bar, stream=stream) as progress:
        for item in items:
            yield item
            progress.update()


def _is_terminal(stream: Stream) -> bool:
    """Return whether a bar can be drawn; some terminals of containers have no width."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False
