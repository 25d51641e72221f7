"""Anonymous shared memory between two processes, which leaves nothing behind.

Not :mod:`multiprocessing.shared_memory`: its segments have names, and one whose owners are killed stays in
``/dev/shm``. Memory of an inherited file descriptor is freed with the last process that has it, however
that process ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Sequence

from robowire.wire.pickle.writer import Buffer

__all__ = ["SharedMemory"]

# Smallest growth, so that a worker does not map again for each slightly longer reply.
_STEP = 1 << 20


class SharedMemory:
    """A region that one process writes and another reads, in turns that their messages agree on.

    Args:
        fd: File descriptor of the memory, owned by this object.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> SharedMemory:
        """Return a new, empty region; its ``fd`` is given to the other process."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("robowire"))
        with tempfile.TemporaryFile() as file:  # deleted already
            return cls(os.dup(file.fileno()))

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Write the buffers one after the other from the beginning; return the number of bytes."""
        length = sum(len(buffer) for buffer in buffers)
        view, position = self.allocate(length), 0
        for buffer in buffers:
            view[position : position + len(buffer)] = buffer
            position += len(buffer)
        return length

    def allocate(self, length: int) -> memoryview:
        """Return the first ``length`` bytes, to write to; the region grows where it is shorter."""
        if os.fstat(self.fd).st_size < length:
            os.ftruncate(self.fd, -(-length // _STEP) * _STEP)
        return self.view(length)

    def view(self, length: int) -> memoryview:
        """Return the first ``length`` bytes, shared: the other process's next write changes them."""
        if self._map is None or len(self._map) < length:
            # An older map stays for as long as a view of it exists.
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        return memoryview(self._map)[:length]

    def close(self) -> None:
        """Close the descriptor; the memory is freed with the last view of it. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._map = -1, None
