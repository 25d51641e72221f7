"""Where the server keeps snapshots: by the digest of their bytes, in memory or in a folder, up to a limit.

It is one store for all sessions. Who made a snapshot is remembered for as long as that session runs, so that
nobody else deletes what it may still need: equal states are one snapshot, whoever was in them. What is in a
snapshot is not looked at, but for what a list of them says.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
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
from robowire.wire.pickle.reader import loads

__all__ = ["SnapshotStore"]

_ID = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".snapshot"


class SnapshotStore:
    """Snapshots of every session; any thread may call it.

    Args:
        max_bytes: Of all snapshots together. The next one is refused rather than an older one forgotten: a
            handle that was given out is kept.
        folder: Where to keep them, shared with other servers if need be; ``None`` keeps them in memory.

    Raises:
        ConfigurationError: The folder cannot be made or written.
    """

    def __init__(self, *, max_bytes: int, folder: Path | None = None) -> None:
        self._max_bytes = max_bytes
        self._folder = folder
        self._lock = threading.Lock()
        self._memory: dict[str, bytes] = {}
        self._makers: dict[str, set[object]] = {}  # of each snapshot the makers that still run
        self._described: dict[str, dict[str, Any]] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as exc:
                raise ConfigurationError(
                    f"snapshot_dir {str(folder)!r} cannot be used: {exc.strerror or exc}"
                ) from exc

    def put(self, payload: bytes, *, maker: object) -> str:
        """Keep a snapshot and return its id: equal ones have one id and take room once.

        Args:
            payload: Its bytes.
            maker: Who made it, until :meth:`release`.

        Raises:
            Overloaded: There is no room for it.
            BackendError: It cannot be written.
        """
        snapshot_id = hashlib.sha256(payload).hexdigest()
        with self._lock:
            sizes = self._sizes()
            taken = sum(sizes.values())
            if snapshot_id not in sizes and taken + len(payload) > self._max_bytes:
                raise Overloaded(
                    f"a snapshot of {len(payload)} bytes does not fit: {len(sizes)} take {taken} of "
                    f"{self._max_bytes} bytes; delete_snapshot makes room, as does max_snapshot_mb"
                )
            if snapshot_id not in sizes:
                if self._folder is None:
                    self._memory[snapshot_id] = payload
                else:
                    self._write(self._folder, snapshot_id, payload)
            self._makers.setdefault(snapshot_id, set()).add(maker)
        return snapshot_id

    def get(self, snapshot_id: str) -> bytes:
        """Return a snapshot.

        Raises:
            SnapshotNotFound: There is none of this id, or its file is not what was written.
        """
        if _ID.fullmatch(snapshot_id):  # before it becomes a path
            if self._folder is None:
                kept = self._memory.get(snapshot_id)  # another thread may delete it
                if kept is not None:
                    return kept
            else:
                try:
                    payload = self._file(self._folder, snapshot_id).read_bytes()
                except FileNotFoundError:
                    raise self._not_found(snapshot_id) from None
                except OSError as exc:
                    raise BackendError(
                        f"snapshot {snapshot_id} cannot be read: {exc.strerror or exc}"
                    ) from exc
                if hashlib.sha256(payload).hexdigest() != snapshot_id:
                    raise SnapshotNotFound(
                        f"snapshot {snapshot_id} was damaged on disk: delete it, and take another"
                    )
                return payload
        raise self._not_found(snapshot_id)

    def delete(self, snapshot_id: str, *, asker: object) -> None:
        """Forget a snapshot, unless others who made the same one still run.

        Raises:
            SnapshotNotFound: There is none of this id.
            InvalidParams: Others made it, who still run, and the asker did not.
            BackendError: Its file cannot be deleted.
        """
        with self._lock:
            if snapshot_id not in self._sizes():
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
                    self._file(self._folder, snapshot_id).unlink(missing_ok=True)
                except OSError as exc:
                    raise BackendError(
                        f"snapshot {snapshot_id} cannot be deleted: {exc.strerror or exc}"
                    ) from exc
            self._described.pop(snapshot_id, None)

    def release(self, maker: object) -> None:
        """Forget who made its snapshots, which stay: from now on anybody may delete them."""
        with self._lock:
            for snapshot_id in [name for name, makers in self._makers.items() if maker in makers]:
                self._makers[snapshot_id].discard(maker)
                if not self._makers[snapshot_id]:
                    del self._makers[snapshot_id]

    def describe(self) -> list[dict[str, Any]]:
        """Return, for each snapshot, its id and bytes, and of which simulator, task and step it is."""
        with self._lock:
            sizes = self._sizes()
        return [
            {"snapshot_id": snapshot_id, "bytes": size, **self._description(snapshot_id)}
            for snapshot_id, size in sorted(sizes.items())
        ]

    def _description(self, snapshot_id: str) -> dict[str, Any]:
        known = self._described.get(snapshot_id)
        if known is None:
            try:
                value = loads(self.get(snapshot_id))
                fingerprint, steps = value["fingerprint"], int(value["steps"])
                known = {name: str(fingerprint.get(name, "")) for name in ("simulator", "task")}
                known["steps"] = steps
            except (
                SnapshotNotFound,
                RemoteProtocolError,
                LookupError,
                TypeError,
                ValueError,
                AttributeError,
            ):
                known = {"simulator": "", "task": "", "steps": -1}  # of another program, or damaged
            self._described[snapshot_id] = known
        return known

    def _sizes(self) -> Mapping[str, int]:
        if self._folder is None:
            return {snapshot_id: len(payload) for snapshot_id, payload in self._memory.items()}
        sizes = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    snapshot_id, suffix = os.path.splitext(entry.name)
                    if suffix == _SUFFIX and _ID.fullmatch(snapshot_id):
                        with suppress(FileNotFoundError):  # another server deleted it
                            sizes[snapshot_id] = entry.stat().st_size
        except OSError as exc:  # somebody removed the folder, or took it away
            raise BackendError(f"the server's snapshot_dir cannot be read: {exc.strerror or exc}") from exc
        return sizes

    def _write(self, folder: Path, snapshot_id: str, payload: bytes) -> None:
        """Write the whole file or none: another server may read the folder, and this one may be killed."""
        part = folder / f"{snapshot_id}.{os.getpid()}.part"
        try:
            part.write_bytes(payload)
            os.replace(part, self._file(folder, snapshot_id))
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise BackendError(f"the snapshot cannot be written: {exc.strerror or exc}") from exc

    def _file(self, folder: Path, snapshot_id: str) -> Path:
        return folder / f"{snapshot_id}{_SUFFIX}"

    def _not_found(self, snapshot_id: str) -> SnapshotNotFound:
        return SnapshotNotFound(
            f"there is no snapshot {snapshot_id!r}"[:100] + ": list_snapshots says which there are"
        )
