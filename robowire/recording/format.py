"""The file of a recorded session: bytes in, records out. No threads or sockets. Runs on Python 3.8.

    52 57 52 45 43 01 0d 0a                                  "RWREC", version 1, and a line ending
    length: uint32 | crc32: uint32 | kind: uint8 | payload   big-endian; one frame for each record

The payload is a pickle of plain data, as on the native wire. It is read by the reader of that wire, which
executes nothing and knows data only, so a recording from elsewhere is as safe as a request. Not JSON and npz:
arrays keep their bytes and their order in memory, and a file that was cut off is read up to the cut, where a
zip archive has lost its directory.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Mapping, NamedTuple, Sequence

import numpy as np

from robowire.errors import ConfigurationError, MissingDependency, RobowireError
from robowire.images import decode_image, encode_image
from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode

__all__ = [
    "BATCH",
    "CALL",
    "GAP",
    "HEADER",
    "INFER",
    "LOAD",
    "MAGIC",
    "RESET",
    "STEP",
    "SUFFIX",
    "Recording",
    "copied",
    "encode_record",
    "kind_of",
    "open_recordings",
    "packed",
    "unpacked",
]

MAGIC = b"RWREC\x01\r\n"
SUFFIX = ".rwrec"

# Kinds of records, so that an index needs no payload.
HEADER, CALL, INFER, RESET, STEP, LOAD, GAP, BATCH = range(8)

_KINDS = {"infer": INFER, "reset": RESET, "step": STEP, "step_chunk": STEP, "load_task": LOAD}
_FRAME = struct.Struct("!IIB")

# A record is a request and its reply; the native wire takes at most 1 GiB in one, and usually 64 MiB.
_MAX_RECORD = 256 * 1024 * 1024

# What replaces an array of images; see _packed_image.
_IMAGE = "__image__"
_SMALLEST_IMAGE = 8  # pixels a side
_MAX_DEPTH = 32


def kind_of(method: str, request: Mapping[str, Any]) -> int:
    """Return the kind of the record of a request."""
    kind = _KINDS.get(method, CALL)
    return BATCH if kind == INFER and request.get("batched") else kind


def copied(value: Any) -> tuple[Any, int]:
    """Return a copy that shares nothing which may change, and the bytes of its arrays."""
    total = 0

    def copy(value: Any) -> Any:
        nonlocal total
        if isinstance(value, np.ndarray):
            total += value.nbytes
            return value.copy("K")
        if isinstance(value, (bytes, bytearray, memoryview)):
            total += len(value)
            return bytes(value)
        if isinstance(value, Mapping):
            return {key: copy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(copy, value)) if type(value) in (list, tuple) else list(map(copy, value))
        if isinstance(value, MetaObs):
            return MetaObs(**{key: copy(item) for key, item in vars(value).items()})
        if isinstance(value, MetaAction):
            return MetaAction(**{key: copy(item) for key, item in vars(value).items()})
        return value

    result = copy(value)
    return result, total


def packed(value: Any, encoding: str, quality: int = 90) -> Any:
    """Return a value with every array of images compressed.

    Args:
        value: Plain data.
        encoding: ``"png"``, ``"jpeg"``, or ``"raw"`` to leave images as they are.
        quality: Of JPEG.
    """
    if encoding == "raw":
        return value
    if isinstance(value, np.ndarray):
        layout = _layout(value)
        return value if layout is None else _packed_image(value, layout, encoding, quality)
    if isinstance(value, Mapping):
        return {key: packed(item, encoding, quality) for key, item in value.items()}
    if isinstance(value, list):
        return [packed(item, encoding, quality) for item in value]
    if isinstance(value, tuple):
        return tuple(packed(item, encoding, quality) for item in value)
    if isinstance(value, MetaObs):
        fields = {key: packed(item, encoding, quality) for key, item in vars(value).items()}
        return MetaObs(**fields)
    return value


def unpacked(value: Any, depth: int = 0) -> Any:
    """Return what :func:`packed` was given, with images decoded.

    Raises:
        RemoteProtocolError: An image is damaged, or not as large as it says.
        MissingDependency: Pillow is not installed.
    """
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, dict):
        if _IMAGE in value:
            return _unpacked_image(value)
        return {key: unpacked(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [unpacked(item, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(unpacked(item, depth + 1) for item in value)
    if isinstance(value, MetaObs):
        return MetaObs(**{key: unpacked(item, depth + 1) for key, item in vars(value).items()})
    return value


def encode_record(kind: int, value: Mapping[str, Any]) -> list[Any]:
    """Return the buffers of one record.

    Raises:
        LocalProtocolError: It holds what is no plain data.
    """
    payload = encode(value)
    length, crc = 0, 0
    for part in payload:
        length += len(part)
        crc = zlib.crc32(part, crc)
    return [_FRAME.pack(length, crc, kind), *payload]


def _layout(array: np.ndarray) -> str | None:
    """Return where the colours of an array of images are, ``"last"`` or ``"first"``; else ``None``."""
    if array.dtype != np.uint8 or not 3 <= array.ndim <= 5:
        return None
    if array.shape[-1] == 3 and min(array.shape[-3:-1]) >= _SMALLEST_IMAGE:
        return "last"
    if array.shape[-3] == 3 and min(array.shape[-2:]) >= _SMALLEST_IMAGE:
        return "first"
    return None


def _packed_image(array: np.ndarray, layout: str, encoding: str, quality: int) -> Any:
    """Return all cameras as one image, one below the other."""
    hwc = array if layout == "last" else np.moveaxis(array, -3, -1)
    width = hwc.shape[-2]
    image = np.ascontiguousarray(hwc).reshape(-1, width, 3)
    if max(image.shape) > 65_000:  # JPEG's limit
        return array
    encoded = encode_image(image, encoding, quality=quality)
    return {_IMAGE: encoded, "shape": list(array.shape), "colors": layout}


def _unpacked_image(value: Mapping[str, Any]) -> np.ndarray:
    shape, layout, encoded = value.get("shape"), value.get("colors"), value[_IMAGE]
    if (
        not isinstance(encoded, Mapping)
        or set(encoded) != {"encoding", "shape", "data"}
        or not isinstance(shape, list)
        or not 3 <= len(shape) <= 5
        or not all(type(size) is int and 0 < size < 1 << 20 for size in shape)
        or layout not in ("first", "last")
    ):
        raise ConfigurationError("an image of the recording is not described as one")
    sizes = shape if layout == "last" else [*shape[:-3], *shape[-2:], shape[-3]]
    image = decode_image(encoded)
    if image.size != math.prod(sizes) or sizes[-1] != 3:
        raise ConfigurationError(f"an image of the recording is {image.shape}, expected {tuple(shape)}")
    hwc = image.reshape(sizes)
    return hwc if layout == "last" else np.ascontiguousarray(np.moveaxis(hwc, -1, -3))


class _Place(NamedTuple):
    offset: int
    length: int
    crc: int
    kind: int


class Recording:
    """One recorded session, opened for reading. Records are read when they are asked for.

    Args:
        path: File.

    Raises:
        ConfigurationError: It is no recording, or its first record is damaged; says what.

    Attributes:
        path: As given.
        header: ``format``, ``kind`` of the server, ``wire``, ``client``, ``started`` (seconds since 1970),
            ``version``, ``images`` (how they were compressed) and ``info`` of the server.
        torn: What is wrong with the end of the file; empty where it was closed properly.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.torn = ""
        self._places: list[_Place] = []
        try:
            with open(self.path, "rb") as file:
                self._index(file)
        except FileNotFoundError:
            raise ConfigurationError(f"there is no recording {str(path)!r}") from None
        except OSError as exc:
            raise ConfigurationError(f"cannot read {str(path)!r}: {exc.strerror or exc}") from exc
        if not self._places or self._places[0].kind != HEADER:
            raise ConfigurationError(f"{self.path} is a recording without its first record: {self.torn}")
        header = self._read(self._places.pop(0))
        if not isinstance(header.get("kind"), str) or not isinstance(header.get("info"), dict):
            raise ConfigurationError(f"{self.path}: the first record does not describe a server")
        self.header: Mapping[str, Any] = header

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a record: ``number``, ``time``, ``method``, ``request``, ``ms``, ``reply`` or ``error``.

        Raises:
            ConfigurationError: It is damaged.
        """
        return self._read(self._places[index])

    def kinds(self) -> Sequence[int]:
        """Return the kind of each record."""
        return [place.kind for place in self._places]

    def _index(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(MAGIC)) != MAGIC:
            raise ConfigurationError(f"{self.path} is no recording of robowire's: it begins otherwise")
        offset = len(MAGIC)
        while offset < size:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                self.torn = f"it ends after {len(head)} bytes of a record's head"
                return
            length, crc, kind = _FRAME.unpack(head)
            offset += _FRAME.size
            if length > _MAX_RECORD or kind > BATCH:
                self.torn = f"what stands at byte {offset - _FRAME.size} is no record"
                return
            if offset + length > size:
                self.torn = f"it ends after {size - offset} of {length} bytes of a record"
                return
            self._places.append(_Place(offset, length, crc, kind))
            offset += length
            file.seek(offset)

    def _read(self, place: _Place) -> dict[str, Any]:
        what = f"{self.path}: the record at byte {place.offset}"
        try:
            with open(self.path, "rb") as file:
                file.seek(place.offset)
                payload = bytearray(file.read(place.length))
        except OSError as exc:
            raise ConfigurationError(f"cannot read {str(self.path)!r}: {exc.strerror or exc}") from exc
        if len(payload) != place.length or zlib.crc32(payload) != place.crc:
            raise ConfigurationError(f"{what} is damaged: its checksum differs")
        try:
            value = unpacked(loads(payload))
        except MissingDependency:
            raise
        except RobowireError as exc:
            raise ConfigurationError(f"{what} cannot be read: {exc}") from exc
        if not isinstance(value, dict):
            raise ConfigurationError(f"{what} is a {type(value).__name__}, not a record")
        return value


def open_recordings(path: str | os.PathLike[str], kind: str = "") -> list[Recording]:
    """Return the recording in a file, or those in a folder by name, each with at least one request.

    Args:
        path: File or folder.
        kind: ``"policy"`` or ``"simulator"``; others are refused, or passed over in a folder.

    Raises:
        ConfigurationError: There is none, or one cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        found = Recording(folder)
        if kind and found.header["kind"] != kind:
            raise ConfigurationError(f"{path} is the recording of a {found.header['kind']}, not of a {kind}")
        return [found]
    chosen, failure = [], None
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            recording = Recording(file)
        except ConfigurationError as exc:  # such as the file of a server that was killed as it opened it
            failure = failure or exc
            continue
        if len(recording) and (not kind or recording.header["kind"] == kind):
            chosen.append(recording)
    if not chosen:
        if failure is not None:
            raise failure
        raise ConfigurationError(f"there is no recording of a {kind or 'server'} in {str(path)!r}")
    return chosen
