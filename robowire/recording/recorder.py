"""Write the sessions of a service to files, one for each, in a thread of its own.

The serving path copies a request and its reply and puts them into a bounded queue; what does not fit is
dropped and counted. Compression, writing and syncing happen in the thread, and a disk that fails or is full
ends the recording, never the service.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from robowire.errors import ConfigurationError, RobowireError
from robowire.images import require_pillow
from robowire.recording.format import (
    GAP,
    HEADER,
    MAGIC,
    SUFFIX,
    copied,
    encode_record,
    kind_of,
    packed,
)
from robowire.version import __version__
from robowire.wire.pickle.reader import loads

__all__ = ["IMAGE_ENCODINGS", "FileRecorder", "SessionFile"]

logger = logging.getLogger(__name__)

IMAGE_ENCODINGS = ("png", "jpeg", "raw")

# Twenty requests of three 640x480 cameras: what a disk that stalls for a second holds up.
_MAX_QUEUED_BYTES = 64 * 1024 * 1024
_MAX_QUEUED = 4096
# What a crash of the machine may lose.
_SYNC_S = 1.0
# Values under these names are secrets, in requests and replies of every wire.
_SECRETS = frozenset({"token", "auth_token", "api_token", "tokens", "session_token"})


@dataclass(eq=False)
class _Entry:
    file: SessionFile
    kind: int
    value: dict[str, Any]
    weight: int = 0


@dataclass(eq=False)
class _Begun:
    """A request whose reply is awaited; ``values`` is ``None`` where it was dropped."""

    number: int
    method: str
    values: Any
    weight: int
    at: float
    started: float = field(default_factory=time.monotonic)


class SessionFile:
    """The recording of one session. One thread at a time calls it, as one answers a session's requests."""

    def __init__(self, recorder: FileRecorder, name: str, header: dict[str, Any]) -> None:
        self._recorder = recorder
        self.name = name
        self.header = header
        self.requests = 0
        self.dropped = 0  # since the last record
        # Of the writer's thread.
        self.finished = False
        self.out: BinaryIO | None = None
        self.dirty = False

    def begin(self, method: str, request: Mapping[str, Any], /) -> _Begun:
        """Return what :meth:`end` takes; the request is copied, since a policy may change its arrays."""
        self.requests += 1
        values, weight = None, 0
        if self._recorder.accepts_more:
            values, weight = copied(request)
        return _Begun(self.requests, method, values, weight, time.time())

    def end(self, begun: _Begun | None, /, reply: Any = None, error: RobowireError | None = None) -> None:
        """Queue a request with its reply, or with the error that answered it."""
        if begun is None or begun.values is None:
            self.dropped += 1
            self._recorder.dropped()
            return
        reply, weight = copied(reply)
        record = {
            "number": begun.number,
            "time": begun.at,
            "ms": (time.monotonic() - begun.started) * 1e3,
            "method": begun.method,
            "request": begun.values,
        }
        if error is None:
            record["reply"] = reply
        else:
            kind = getattr(error, "error_type", type(error).__name__)
            record["error"] = {"error_type": kind, "message": str(error)}
        weight += begun.weight
        if self.dropped:
            gap = {"number": begun.number, "dropped": self.dropped}
            if self._recorder.put(_Entry(self, GAP, gap)):
                self.dropped = 0
        if not self._recorder.put(_Entry(self, kind_of(begun.method, begun.values), record, weight)):
            self.dropped += 1
            self._recorder.dropped()

    def close(self) -> None:
        """End the file, once what is queued is written."""
        self._recorder.put(_Entry(self, -1, {}), always=True)


class FileRecorder:
    """Records the sessions of a service in a folder, which is made.

    Args:
        folder: Where the files go.
        max_bytes: Size of all files of this run together; then recording ends.
        images: ``"png"``, which loses nothing, ``"jpeg"``, or ``"raw"``.

    Raises:
        ConfigurationError: The folder can't be written to.
        MissingDependency: Pillow is not installed, and images are to be compressed.
    """

    def __init__(self, folder: str, *, max_bytes: int, images: str = "png") -> None:
        if images not in IMAGE_ENCODINGS:
            raise ConfigurationError(f"record_images is {images!r}, expected {' or '.join(IMAGE_ENCODINGS)}")
        if max_bytes <= 0:
            raise ConfigurationError("record_max_mb is not positive")
        if images != "raw":
            require_pillow(f"--record with --record_images {images} (raw needs none)")
        self._folder = Path(folder).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".{os.getpid()}.probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as exc:
            raise ConfigurationError(
                f"cannot record into {folder!r}: {exc.strerror or exc}: check --record"
            ) from exc
        self._max_bytes = max_bytes
        self._images = images
        self._written = 0
        self._stopped = ""  # why nothing more is written
        self._changed = threading.Condition()  # guards what follows
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._files = 0
        self._dropped = 0
        self._said_dropped = 0
        self._closing = False
        self._open: set[SessionFile] = set()  # of the writer's thread
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def describe(self) -> str:
        """Return one line for a person."""
        limit = f"{self._max_bytes / 1e6:g} MB"
        return f"recording sessions in {self._folder}: images as {self._images}, at most {limit}"

    def open(self, *, kind: str, wire: str, client: str, info: Mapping[str, Any]) -> SessionFile:
        """Return the recording of a new session.

        Args:
            kind: Of the service: ``"policy"`` or ``"simulator"``.
            wire: Name of the frontend: ``"tcp"``.
            client: Who it is, for a person.
            info: What the service says of itself.
        """
        with self._changed:
            self._files += 1
            number = self._files
        now = datetime.now()
        name = f"{kind}-{now:%Y%m%d-%H%M%S}-{os.getpid()}-{number:05d}{SUFFIX}"
        header = {
            "format": 1,
            "kind": kind,
            "wire": wire,
            "client": client,
            "started": time.time(),
            "version": __version__,
            "images": self._images,
            "info": copied(info)[0],
        }
        return SessionFile(self, name, header)

    @property
    def accepts_more(self) -> bool:
        """Whether a request may be copied: the queue is not full, and recording goes on."""
        return self._queued_bytes < _MAX_QUEUED_BYTES and len(self._queue) < _MAX_QUEUED and not self._stopped

    def put(self, entry: _Entry, *, always: bool = False) -> bool:
        """Queue an entry, and return whether the queue was not full."""
        with self._changed:
            if self._closing or (not always and not self.accepts_more):
                return False
            self._queue.append(entry)
            self._queued_bytes += entry.weight
            self._changed.notify()
            return True

    def dropped(self) -> None:
        """Count a request that is not recorded; the log says it once, and then at each tenfold."""
        if self._stopped:
            return
        with self._changed:
            self._dropped += 1
            say = self._dropped >= max(self._said_dropped * 10, 1)
            if say:
                self._said_dropped = self._dropped
        if say:
            logger.warning(
                "%d requests were not recorded: the disk or the compression of images is slower than the "
                "requests (--record_images raw is quicker)",
                self._dropped,
            )

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, for ``timeout_s`` at most, and close the files. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("the recording was given up with %d requests unwritten", len(self._queue))

    # -- the writer's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        synced = time.monotonic()
        while True:
            with self._changed:
                if not self._queue and not self._closing:
                    self._changed.wait(_SYNC_S)
                entry = self._queue.popleft() if self._queue else None
                ended = entry is None and self._closing
            if entry is not None:
                self._guarded(lambda entry=entry: self._take(entry))
                with self._changed:
                    self._queued_bytes -= entry.weight
            if ended or time.monotonic() - synced > _SYNC_S:
                self._guarded(self._sync)
                synced = time.monotonic()
            if ended:
                for file in list(self._open):
                    self._guarded(lambda file=file: self._finish(file))
                return

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except OSError as exc:
            self._stop(f"it cannot be written: {exc.strerror or exc}")
        except Exception:  # a bug here must not end the thread, and with it the service's memory bound
            logger.exception("a request could not be recorded")

    def _stop(self, reason: str) -> None:
        if not self._stopped:
            self._stopped = reason
            logger.warning("the recording in %s ended: %s; the server goes on", self._folder, reason)

    def _take(self, entry: _Entry) -> None:
        file = entry.file
        if entry.kind < 0:
            self._finish(file)
        elif not self._stopped and not file.finished:  # the request that ended the session comes after it
            if file.out is None:
                file.out = open(self._folder / file.name, "xb")  # noqa: SIM115
                self._open.add(file)
                self._write(file, [MAGIC])
                self._write(file, encode_record(HEADER, file.header))
            self._write(file, encode_record(entry.kind, self._prepared(entry.value)))

    def _prepared(self, value: dict[str, Any]) -> Any:
        """Return a record as it is written: replies decoded, secrets left out, images compressed."""
        reply = value.get("reply")
        if isinstance(reply, bytes):  # what a simulator's process wrote
            value["reply"] = loads(bytearray(reply))
        return packed(_without_secrets(value), self._images)

    def _write(self, file: SessionFile, buffers: list[Any]) -> None:
        size = sum(map(len, buffers))
        if self._written + size > self._max_bytes:
            self._stop(f"it has {self._written / 1e6:.0f} MB, and --record_max_mb allows no more")
            return
        assert file.out is not None
        # One write, so that a crash of this process leaves no half of a record but where the system does.
        file.out.write(b"".join(buffers))
        file.out.flush()
        file.dirty = True
        self._written += size

    def _sync(self) -> None:
        for file in self._open:
            if file.dirty and file.out is not None:
                os.fsync(file.out.fileno())
                file.dirty = False

    def _finish(self, file: SessionFile) -> None:
        self._open.discard(file)
        file.finished = True
        if file.out is not None:
            out, file.out = file.out, None
            try:
                os.fsync(out.fileno())
            finally:
                out.close()


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: "(not recorded)" if key in _SECRETS and item is not None else _without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return value
