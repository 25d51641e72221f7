from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from robowire.worker.shared_memory import SharedMemory


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory.create()
    yield memory
    memory.close()


def test_one_end_reads_what_the_other_writes(memory: SharedMemory) -> None:
    other = SharedMemory(os.dup(memory.fd))
    length = memory.write([b"abc", bytearray(b"de"), memoryview(b"f")])
    assert bytes(other.view(length)) == b"abcdef"
    other.close()


def test_it_grows_with_what_is_written(memory: SharedMemory) -> None:
    other = SharedMemory(os.dup(memory.fd))
    assert bytes(other.view(memory.write([b"short"]))) == b"short"
    long = os.urandom(3 << 20)
    assert bytes(other.view(memory.write([long]))) == long
    other.close()


def test_a_view_outlives_the_end_it_came_from(memory: SharedMemory) -> None:
    view = memory.view(memory.write([b"still here"]))
    memory.close()
    assert bytes(view) == b"still here"


def test_it_has_no_name_in_the_file_system() -> None:
    before = set(os.listdir("/dev/shm"))
    memory = SharedMemory.create()
    memory.write([b"x" * 100])
    assert set(os.listdir("/dev/shm")) == before
    memory.close()
