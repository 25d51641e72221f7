from __future__ import annotations

import subprocess
import sys

from robowire.serving.process_memory import can_be_measured, memory_of_group

# Holds 100 MB, and a child of the same group holds the same 100 MB, which both have from before the fork.
HOLDS = """
import os, sys
held = b"x" * 100_000_000
if os.fork():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
sys.stdin.read()
"""


def test_this_machine_tells() -> None:
    assert can_be_measured()


def test_what_parent_and_child_share_counts_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = memory_of_group(process.pid)
        process.communicate()
    assert 100e6 < held < 150e6


def test_a_group_that_is_gone_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    assert memory_of_group(process.pid) == 0
