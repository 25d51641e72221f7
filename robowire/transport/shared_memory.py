"""Memory that two processes of one host share, as a sealed ``memfd``. Linux only; sends and receives nothing.

The sender maps its region and writes. The receiver copies out of the descriptor by ``preadv`` and maps
nothing: whatever the sender does meanwhile, no read beyond an end can raise SIGBUS in it, and what was copied
can't change under a check. It still refuses what is no sealed ``memfd`` of the announced size, since reading
a pipe, a socket or a file of FUSE could block.

A region has no name: it is gone when both processes have closed it or ended, however they ended.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING

from robowire.errors import InvalidParams, LocalProtocolError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ReceivedRegion", "SharedRegion", "shared_memory_works"]

# Of huge pages: a read of one that is not reserved can fail. A memfd of ours has pages of 4 to 64 KiB.
_LARGEST_BLOCK = 64 * 1024


def shared_memory_works() -> bool:
    """Return whether this platform has sealed memory."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


class SharedRegion:
    """Memory of this process that another one may read.

    Args:
        size: Bytes, above 0. The kernel provides pages as they are written.

    Attributes:
        size: As given.
        memory: The bytes, to be written.
        descriptor: What is passed to the other process; -1 once it is closed.

    Raises:
        OSError: The kernel has no memory or descriptor for it.
    """

    def __init__(self, size: int) -> None:
        import fcntl  # not on Windows

        if not shared_memory_works():
            raise LocalProtocolError("this platform has no sealed memory: send without it")
        self.size = size
        self.descriptor = os.memfd_create("robowire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._map = mmap.mmap(self.descriptor, size)
        except BaseException:
            self.close_descriptor()
            raise
        self.memory = memoryview(self._map)

    def __enter__(self) -> SharedRegion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close_descriptor(self) -> None:
        """Close the descriptor; the memory stays. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        self.close_descriptor()
        self.memory.release()
        self._map.close()


class ReceivedRegion:
    """Memory of another process, which may change at any time: it is only ever copied.

    Args:
        descriptor: As it was received; owned by this object from now on, and closed if it is refused.
        size: Bytes that the sender announced.
        max_size: Most bytes to accept.

    Attributes:
        size: As announced.

    Raises:
        InvalidParams: It is no sealed memory of that size.
    """

    def __init__(self, descriptor: int, size: int, *, max_size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        try:
            if not 0 < size <= max_size:
                raise InvalidParams(f"shared memory of {size} bytes, expected 1 to {max_size}")
            _require_sealed(descriptor, size)
        except BaseException:
            self.close()
            raise

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on.

        Raises:
            InvalidParams: The region does not reach so far, or can't be read.
        """
        if offset < 0 or offset + len(buffer) > self.size:
            raise InvalidParams(
                f"bytes {offset} to {offset + len(buffer)} of shared memory that has {self.size}"
            )
        while buffer:
            try:
                copied = os.preadv(self._descriptor, [buffer], offset)
            except OSError as exc:
                raise InvalidParams(f"the shared memory cannot be read: {exc.strerror or exc}") from exc
            if copied == 0:  # sealed against it; a kernel that does not hold to it must not make us loop
                raise InvalidParams("the shared memory ended")
            buffer, offset = buffer[copied:], offset + copied

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _require_sealed(descriptor: int, size: int) -> None:
    """Accept a descriptor of a ``memfd`` that has this size and can't get another.

    Raises:
        InvalidParams: It is something else.
    """
    import fcntl  # not on Windows

    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        found = os.fstat(descriptor)
        readable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    except OSError as exc:  # a file of another kind has no seals
        raise InvalidParams("the descriptor is not of sealed memory (memfd)") from exc
    if not stat.S_ISREG(found.st_mode) or not readable or found.st_blksize > _LARGEST_BLOCK:
        raise InvalidParams("the descriptor is not of readable memory in pages of the usual size")
    if not seals & fcntl.F_SEAL_SHRINK:
        raise InvalidParams("the shared memory is not sealed against shrinking (F_SEAL_SHRINK)")
    if found.st_size != size:
        raise InvalidParams(f"the shared memory has {found.st_size} bytes, announced were {size}")
