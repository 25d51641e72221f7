"""Memory that requests free is there for the next ones; what loading needed is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from robowire.serving.freed_memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not set")

def request():
    body = bytearray(2_800_000)
    image = bytearray(body)

for _ in range(20):
    request()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    request()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


def faults(word: str) -> int:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, timeout=30)
    if ended.stderr == "not set\n":
        pytest.skip("the C library is not glibc")
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def test_a_request_after_others_touches_no_new_memory() -> None:
    assert faults("keep") < 50 < faults("default")


LOADING = """
import gc, psutil
from robowire.serving.freed_memory import keep_freed_memory, settle_memory

keep_freed_memory()
resident = psutil.Process().memory_info
read = [bytes(1000) for _ in range(100_000)]
read = read[::1000]
before = resident().rss
settle_memory()
print(before - resident().rss, gc.get_freeze_count())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_loading_needed_is_given_back_once() -> None:
    ended = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    given_back, frozen = map(int, ended.stdout.split())
    assert given_back > 50_000_000
    assert frozen > 1000
