"""Store of snapshots, named by the digest of their bytes, in memory or in a folder, up to a limit.

All sessions share one store. It remembers which sessions made a snapshot for as long as they run, so that no
other session deletes what they may still need: equal states are one snapshot. The content of a snapshot is
read only to describe it in a list.

A snapshot whose id was given out can be restored: its file is written under another name, read back, synced
to the disk and renamed, also over a damaged file of that name. A file that is not a snapshot is one row of
the list, with the reason.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robowire.errors import (
    BackendError,
    ConfigurationError,
    InvalidParams,
    Overloaded,
    RemoteProtocolError,
    SnapshotNotFound,
)
from robowire.progress import track
from robowire.wire.pickle.reader import loads
from robowire.wire.text_safety import printable, quoted

__all__ = ["SnapshotStore"]

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".snapshot"
_PART = re.compile(r"[0-9a-f]{64}\..*\.part")

# A snapshot is written within seconds: a file under its temporary name that is older was left by a server
# that was killed. Younger ones may be another server's, in a folder that several share.
_OLD_PART_S = 600.0


@dataclass(frozen=True)
class _File:
    """What the folder says of one file.

    Attributes:
        size: Bytes.
        stamp: Changes when the file does.
        problem: Why it is not a snapshot, as far as that can be seen without reading it; empty if it may be.
    """

    size: int
    stamp: int = 0
    problem: str = ""


class SnapshotStore:
    """Snapshots of all sessions; any thread may call it.

    Args:
        max_bytes: Limit of all snapshots together. One that does not fit is refused, instead of deleting an
            older one whose id was given out.
        folder: Folder to keep them in, which several servers may share; ``None`` keeps them in memory.

    Attributes:
        max_bytes: As given.

    Raises:
        ConfigurationError: The folder cannot be made or written.
    """

    def __init__(self, *, max_bytes: int, folder: Path | None = None) -> None:
        self.max_bytes = max_bytes
        self._folder = folder
        self._lock = threading.Lock()
        self._memory: dict[str, bytes] = {}
        self._makers: dict[str, set[object]] = {}  # of each snapshot, the makers that still run
        self._described: dict[str, tuple[_File, dict[str, Any]]] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
                _remove_old_parts(folder)
            except OSError as exc:
                raise ConfigurationError(
                    f"snapshot_dir {str(folder)!r} cannot be used: {exc.strerror or exc}"
                ) from exc

    def put(self, payload: bytes, *, maker: object) -> str:
        """Keep a snapshot and return its id; equal snapshots have one id and are kept once.

        Args:
            payload: Its bytes.
            maker: The session that made it, until :meth:`release`.

        Raises:
            Overloaded: It does not fit.
            BackendError: It cannot be written.
        """
        snapshot_id = hashlib.sha256(payload).hexdigest()
        with self._lock:
            files = self._files()
            kept = files.pop(snapshot_id, None)
            if kept is None or not self._is_sound(snapshot_id):
                files = {name: file for name, file in files.items() if not file.problem}
                taken = sum(file.size for file in files.values())
                if taken + len(payload) > self.max_bytes:
                    raise Overloaded(
                        f"a snapshot of {len(payload)} bytes does not fit: {len(files)} take {taken} of "
                        f"{self.max_bytes} bytes; delete_snapshot or a higher max_snapshot_mb frees some"
                    )
                if self._folder is None:
                    self._memory[snapshot_id] = payload
                else:
                    _write(self._folder, snapshot_id, payload)
            self._makers.setdefault(snapshot_id, set()).add(maker)
        return snapshot_id

    def get(self, snapshot_id: str) -> bytes:
        """Return a snapshot.

        Raises:
            SnapshotNotFound: There is none of this id, or its file was damaged.
            BackendError: Its file cannot be read.
        """
        if _ID.fullmatch(snapshot_id):  # before it becomes a path
            if self._folder is None:
                kept = self._memory.get(snapshot_id)  # another thread may delete it
                if kept is not None:
                    return kept
            else:
                return self._read(self._folder, snapshot_id)
        raise self._not_found(snapshot_id)

    def delete(self, snapshot_id: str, *, asker: object) -> None:
        """Delete a snapshot, unless other sessions that made the same one still run.

        Raises:
            SnapshotNotFound: There is none of this id.
            InvalidParams: Other sessions made it, which still run, and the asker did not.
            BackendError: Its file cannot be deleted.
        """
        with self._lock:
            if not _ID.fullmatch(snapshot_id) or snapshot_id not in self._files():
                raise self._not_found(snapshot_id)
            makers = self._makers.get(snapshot_id, set())
            if makers and asker not in makers:
                raise InvalidParams(
                    f"snapshot {snapshot_id} was made by a session that still runs: it can be deleted by "
                    "that one, or when it has ended"
                )
            makers.discard(asker)
            if makers:
                return
            self._makers.pop(snapshot_id, None)
            if self._folder is None:
                del self._memory[snapshot_id]
            else:
                try:
                    _path(self._folder, snapshot_id).unlink(missing_ok=True)
                except OSError as exc:
                    raise BackendError(
                        f"snapshot {snapshot_id} cannot be deleted: {exc.strerror or exc}"
                    ) from exc
            self._described.pop(snapshot_id, None)

    def release(self, maker: object) -> None:
        """Forget which snapshots a session made. They stay, and any session may delete them from now on."""
        with self._lock:
            for snapshot_id in [name for name, makers in self._makers.items() if maker in makers]:
                self._makers[snapshot_id].discard(maker)
                if not self._makers[snapshot_id]:
                    del self._makers[snapshot_id]

    def usage(self) -> tuple[int, int]:
        """Return how many snapshots are kept, and their bytes."""
        with self._lock:
            files = self._files()
        return len(files), sum(file.size for file in files.values())

    def describe(self) -> list[dict[str, Any]]:
        """Return a row for each snapshot: its id, bytes, simulator, task and step.

        A file that cannot be restored has a row too, whose ``problem`` says why.
        """
        with self._lock:
            files = self._files()
            self._described = {name: row for name, row in self._described.items() if name in files}
        return [
            {"snapshot_id": printable(name, 100), "bytes": file.size, **self._description(name, file)}
            for name, file in track(
                sorted(files.items()), "reading snapshots", unit="snapshot", log=logger, bar=False
            )
        ]

    def _description(self, name: str, file: _File) -> dict[str, Any]:
        known = self._described.get(name)
        if known is not None and known[0] == file:
            return known[1]
        row: dict[str, Any] = {"simulator": "", "task": "", "steps": -1}
        problem = file.problem
        if not problem:
            try:
                value = loads(self.get(name))
                fingerprint, steps = value["fingerprint"], int(value["steps"])
                row = {key: printable(fingerprint.get(key, ""), 200) for key in ("simulator", "task")}
                row["steps"] = steps
            except (SnapshotNotFound, BackendError) as exc:
                problem = printable(exc)
            except (RemoteProtocolError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
                problem = "its content is not a snapshot of this program"
        if problem:
            row["problem"] = problem
        self._described[name] = file, row
        return row

    def _files(self) -> dict[str, _File]:
        """Return what there is, by id; files of a wrong name, kind or size have a ``problem``."""
        if self._folder is None:
            return {snapshot_id: _File(len(payload)) for snapshot_id, payload in self._memory.items()}
        files = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    name, suffix = os.path.splitext(entry.name)
                    if suffix == _SUFFIX:
                        with suppress(FileNotFoundError):  # another server deleted it
                            files[name] = self._look_at(name, entry)
        except OSError as exc:  # the folder was removed, or its disk
            raise BackendError(f"the server's snapshot_dir cannot be read: {exc.strerror or exc}") from exc
        return files

    def _look_at(self, name: str, entry: os.DirEntry[str]) -> _File:
        try:
            found = entry.stat()
        except FileNotFoundError:
            if not entry.is_symlink():
                raise
            return _File(0, problem="it is a link to nothing")
        except OSError as exc:
            return _File(0, problem=f"it cannot be read: {exc.strerror or exc}")
        if not stat.S_ISREG(found.st_mode):
            return _File(0, problem="it is not a file")
        problem = ""
        if not _ID.fullmatch(name):
            problem = "its name is not the digest of a snapshot"
        elif found.st_size > self.max_bytes:
            problem = f"it is larger than the limit of {self.max_bytes} bytes for all snapshots"
        return _File(found.st_size, found.st_mtime_ns, problem)

    def _is_sound(self, snapshot_id: str) -> bool:
        """Return whether a snapshot that is there can be restored."""
        try:
            self.get(snapshot_id)
        except (SnapshotNotFound, BackendError) as exc:
            logger.warning("%s; it is written again", exc)
            return False
        return True

    def _read(self, folder: Path, snapshot_id: str) -> bytes:
        try:
            # Not blocking: a pipe of that name has no end.
            fd = os.open(_path(folder, snapshot_id), os.O_RDONLY | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                found = os.fstat(fd)
                damaged = not stat.S_ISREG(found.st_mode) or found.st_size > self.max_bytes
                payload = b"" if damaged else file.read(found.st_size)
        except FileNotFoundError:
            raise self._not_found(snapshot_id) from None
        except OSError as exc:
            raise BackendError(f"snapshot {snapshot_id} cannot be read: {exc.strerror or exc}") from exc
        if hashlib.sha256(payload).hexdigest() != snapshot_id:
            raise SnapshotNotFound(f"snapshot {snapshot_id} was damaged on disk: delete it, and take another")
        return payload

    def _not_found(self, snapshot_id: str) -> SnapshotNotFound:
        return SnapshotNotFound(
            f"there is no snapshot {quoted(snapshot_id, 75)}: list_snapshots says which there are"
        )


def _path(folder: Path, snapshot_id: str) -> Path:
    return folder / f"{snapshot_id}{_SUFFIX}"


def _write(folder: Path, snapshot_id: str, payload: bytes) -> None:
    """Write the whole file or none: another server may read the folder, and this one may be killed.

    Raises:
        BackendError: It cannot be written, or what was written cannot be read back.
    """
    part = folder / f"{snapshot_id}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(part, "w+b") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if file.read() != payload:
                raise OSError("what was written cannot be read back")
        os.replace(part, _path(folder, snapshot_id))
        _sync_folder(folder)
    except OSError as exc:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise BackendError(f"the snapshot cannot be written: {exc.strerror or exc}") from exc


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the file system can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(fd)
    finally:
        os.close(fd)


def _remove_old_parts(folder: Path) -> None:
    """Remove what servers left behind that were killed while they wrote."""
    before = time.time() - _OLD_PART_S
    for path in folder.iterdir():
        if _PART.fullmatch(path.name):
            with suppress(OSError):  # another server removed it, or owns it
                if path.stat().st_mtime < before:
                    path.unlink()
                    logger.info("removed %s, which a server that was killed left behind", path.name)
