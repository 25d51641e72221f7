"""Memory that two processes of one host share, as a sealed ``memfd``. Linux only; sends and receives nothing.

Both sides map it. The receiver refuses what is no sealed ``memfd`` of the announced size: its pages cannot go
away under a read, which would raise SIGBUS, and it is neither a file that could block nor one of huge pages.
What the receiver must check, it copies first, since the sender may change it at any time.

A region has no name: it is gone when both processes have closed it or ended, however they ended.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from robowire.errors import InvalidParams, LocalProtocolError
from robowire.wire.payload_memory import is_free

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
    """Memory of another process, which may change at any time: copy before you check.

    Args:
        descriptor: As it was received; owned by this object, and closed when this returns.
        size: Bytes that the sender announced.
        max_size: Most bytes to accept.

    Attributes:
        size: As announced.
        writable: Whether views of it are writable, as those of a payload's own memory are.

    Raises:
        InvalidParams: It is no sealed memory of that size, or cannot be mapped.
    """

    def __init__(self, descriptor: int, size: int, *, max_size: int) -> None:
        self.size = size
        try:
            if not 0 < size <= max_size:
                raise InvalidParams(f"shared memory of {size} bytes, expected 1 to {max_size}")
            _require_sealed(descriptor, size)
            try:
                mapped, self.writable = mmap.mmap(descriptor, size), True
            except OSError:  # sealed against our writing
                mapped, self.writable = mmap.mmap(descriptor, size, prot=mmap.PROT_READ), False
        except OSError as exc:
            raise InvalidParams(f"the shared memory cannot be mapped: {exc.strerror or exc}") from exc
        finally:
            os.close(descriptor)
        self._map = [mapped]  # one: whether views of it are left shows in how often it is referred to

    def view(self) -> Any:
        """Return the memory, for arrays that view it: ``np.ndarray(shape, dtype, view, offset)``."""
        return self._map[0]

    @property
    def is_free(self) -> bool:
        """Whether no array is left that views the memory."""
        return is_free(self._map)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on.

        Raises:
            InvalidParams: The region does not reach so far, or is closed.
        """
        size = len(buffer)
        if offset < 0 or offset + size > self.size or not self._map:
            raise InvalidParams(f"bytes {offset} to {offset + size} of shared memory that has {self.size}")
        if size:  # numpy releases the interpreter's lock meanwhile
            into: np.ndarray = np.ndarray(size, np.uint8, buffer)
            into[...] = np.ndarray(size, np.uint8, self._map[0], offset)

    def close(self) -> None:
        """Give the memory back, once no array views it. May be called twice."""
        if self._map and self.is_free:
            self._map[0].close()
        self._map = []  # closed under an array the memory would be gone; so it goes with the last of them


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
