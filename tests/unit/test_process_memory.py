from __future__ import annotations

import subprocess
import sys

from robowire.serving.process_memory import can_be_measured, memory_of_group, memory_of_tree

# Holds 100 MB, and a child of the same group holds the same 100 MB, which both have from before the fork.
HOLDS = """
import os, sys
held = b"x" * 100_000_000
if os.fork():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
sys.stdin.read()
"""

# Has a child that left its group and holds 100 MB.
HAS_A_CHILD = """
import os, sys
if not os.fork():
    os.setsid()
    held = b"x" * 100_000_000
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


def test_a_child_that_left_the_group_is_still_of_the_tree() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HAS_A_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = memory_of_tree(process.pid), memory_of_group(process.pid)
        process.communicate()
    assert held[1] < 50e6
    assert 100e6 < held[0] < 150e6


def test_a_group_that_is_gone_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    assert memory_of_group(process.pid) == 0
