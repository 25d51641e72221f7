"""Anonymous shared memory between two processes, which leaves nothing behind.

Not :mod:`multiprocessing.shared_memory`: its segments have names, and one whose owners are killed stays in
``/dev/shm``. Memory of an inherited file descriptor is freed with the last process that has it, however
that process ends.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import Sequence

from robowire.wire.pickle.writer import Buffer

__all__ = ["SharedMemory"]

# Smallest growth, so that a worker does not map again for each slightly longer reply.
_STEP = 1 << 20

# Forbids writing by new maps and by the descriptor, not by maps that exist; Linux 5.1. The fcntl module names
# it since Python 3.13.
_F_SEAL_FUTURE_WRITE = 0x0010


class SharedMemory:
    """A region that one process writes and another reads, in turns that their messages agree on.

    Args:
        fd: File descriptor of the memory, owned by this object.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, *, size: int = 0) -> SharedMemory:
        """Return a new region; its ``fd`` is given to the other process.

        Args:
            size: Bytes that it has for ever, where this platform can seal memory: it may then be shown to a
                third process (:meth:`seal_against_writing`). Pages are provided as they are written. 0 for a
                region that is empty and grows.
        """
        if size and sys.platform == "linux" and hasattr(os, "memfd_create"):
            import fcntl  # not on Windows

            memory = cls(os.memfd_create("robowire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            try:
                os.ftruncate(memory.fd, size)
                fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            except OSError:
                memory.close()
                raise
            return memory
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("robowire"))
        with tempfile.TemporaryFile() as file:  # deleted already
            return cls(os.dup(file.fileno()))

    @property
    def size(self) -> int:
        """Bytes that it has now."""
        return os.fstat(self.fd).st_size

    def can_hold(self, length: int) -> bool:
        """Return whether :meth:`allocate` can return so many bytes."""
        return length <= self.size or not self._is_sealed()

    def _is_sealed(self) -> bool:
        if sys.platform != "linux":
            return False
        import fcntl

        try:
            return bool(fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW)
        except OSError:  # a temporary file has no seals
            return False

    def seal_against_writing(self) -> None:
        """Let nobody write but the processes that have mapped it already, this one among them.

        May be called twice.

        Raises:
            OSError: The kernel cannot.
        """
        if sys.platform != "linux":
            raise OSError("this platform has no sealed memory")
        import fcntl

        self.view(0)  # while a map that may be written to can be made
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)

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
        if self.size < length:
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
