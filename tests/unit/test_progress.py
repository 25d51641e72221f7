"""Progress of long work: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from robowire.progress import Pace, Progress, duration_in_words, track

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(log: io.StringIO) -> list[str]:
    return log.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (7.84, "7.8 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words


def test_lines_come_at_growing_intervals() -> None:
    pace = Pace(10)
    written = [second for second in range(3601) if pace.due(second)]
    assert written[:7] == [10, 20, 30, 40, 50, 60, 72]
    assert 20 <= len(written) <= 30


def test_a_log_gets_counts_time_left_and_a_last_line() -> None:
    clock, log = Clock(), io.StringIO()
    with Progress("recording Lift", 4, unit="episode", stream=log, clock=clock) as progress:
        progress.update()
        progress.note("failed 1")
        clock.now += 5
        progress.show_if_due()
        assert lines_of(log) == []
        clock.now += 5
        progress.show_if_due()
        assert lines_of(log) == ["recording Lift: 1 of 4 episodes, 10 s, about 30 s left, failed 1"]
        progress.update(3)
        clock.now += 30
    assert lines_of(log)[1:] == ["recording Lift: 4 of 4 episodes after 40 s, failed 1"]


def test_what_was_done_before_says_nothing_about_the_time_left() -> None:
    clock, log = Clock(), io.StringIO()
    with Progress("training", 100, unit="step", done=80, stream=log, clock=clock) as progress:
        progress.update(10)
        clock.now += 10
        progress.show_if_due()
    assert lines_of(log)[0] == "training: 90 of 100 steps, 10 s, about 10 s left"


def test_work_that_is_soon_over_is_not_mentioned() -> None:
    clock, log = Clock(), io.StringIO()
    with Progress("replaying", 5, unit="request", stream=log, clock=clock) as progress:
        progress.update(5)
        clock.now += 1.9
    assert log.getvalue() == ""


def test_work_that_cannot_be_counted_is_named_after_two_seconds() -> None:
    clock, log = Clock(), io.StringIO()
    with Progress("loading policy act", stream=log, clock=clock) as progress:
        clock.now += 2
        progress.show_if_due()
        clock.now += 5.8
    assert lines_of(log) == ["loading policy act: 2.0 s", "loading policy act: done after 7.8 s"]


def test_work_that_fails_says_how_far_it_came() -> None:
    clock, log = Clock(), io.StringIO()

    def merge() -> None:
        with Progress("merging", 9, unit="episode", stream=log, clock=clock) as progress:
            progress.update(2)
            clock.now += 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge()
    assert lines_of(log) == ["merging: stopped after 3.0 s with 2 of 9 episodes"]


def test_a_server_logs_its_lines(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    logger = logging.getLogger("robowire.test")
    caplog.set_level("INFO")
    with Progress("loading policy act", log=logger, stream=io.StringIO(), clock=clock):
        clock.now += 3
    assert caplog.messages == ["loading policy act: done after 3.0 s"]


def test_items_are_counted_when_the_next_one_is_asked_for() -> None:
    log = io.StringIO()
    assert list(track([1, 2, 3], "reading", unit="file", least_s=0, stream=log)) == [1, 2, 3]
    assert lines_of(log) == ["reading: 3 of 3 files after 0.0 s"]


PROGRAM = """
import logging, sys, time
from robowire.progress import Progress
logging.basicConfig(format="%(message)s")
with Progress("recording Lift", 3, unit="episode", least_s=0) as progress:
    progress.update()
    logging.warning("a warning")
    progress.note("failed 0")
    progress.update(2)
with Progress("loading", least_s=0):
    pass
"""


@pytest.fixture(params=[(40, 100), (0, 0)], ids=["terminal", "terminal_without_a_size"])
def shown(request: pytest.FixtureRequest) -> tuple[int, str]:
    """What the program writes to a terminal of that many columns."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    rows, columns = request.param
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as program:
        os.close(theirs)
        text = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # what Linux says once nobody has the other end
                break
            text += data
        assert program.wait(20) == 0
    os.close(ours)
    return columns, text.decode()


def test_a_terminal_with_a_size_gets_a_bar(shown: tuple[int, str]) -> None:
    columns, text = shown
    bars = [line for line in text.replace("\r", "\n").splitlines() if "|" in line]
    assert "a warning" in text.replace("\r", "\n").splitlines()
    if columns:
        assert bars[-1].startswith("recording Lift: 100%|")
        assert "3/3" in bars[-1]
        assert "failed 0" in bars[-1]
        assert max(map(len, bars)) <= columns
        assert "loading: done after 0.0 s" in text
    else:
        assert bars == []
        assert "recording Lift: 3 of 3 episodes after 0." in text
