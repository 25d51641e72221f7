"""Frames to an mp4 file, through a pipe to the ffmpeg program: no library is imported for it."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from robowire.errors import VideoFailed

__all__ = ["Mp4Writer"]

# Encoding the rest of a short video takes far less; a program that hangs must not hold up an evaluation.
_FINISH_S = 60.0


class Mp4Writer:
    """Write one video. A context manager: the file appears when the block ends well, else not at all.

    Args:
        path: Path of the file; its folder exists.
        ffmpeg: Program, a path or a name on PATH.
        fps: Frames per second.
    """

    def __init__(self, path: Path, *, ffmpeg: str, fps: float) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._ffmpeg = ffmpeg
        self._fps = fps
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _close
        self._program: subprocess.Popen[bytes] | None = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Mp4Writer:
        return self

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 (height, width, 3), RGB, of the first one's size.

        Raises:
            VideoFailed: ffmpeg cannot be started or refuses the frame, or its size changed.
        """
        if self._program is None:
            self._program = self._start(frame)
        if frame.dtype != np.uint8 or frame.shape != self._shape:
            raise VideoFailed(
                f"a frame is {frame.dtype} {frame.shape}, expected uint8 {self._shape} as the video's first"
            )
        assert self._program.stdin is not None
        try:
            self._program.stdin.write(np.ascontiguousarray(frame).data)
        except OSError as exc:
            raise VideoFailed(f"ffmpeg stopped reading: {self._complaint() or exc}") from exc

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close()

    def _start(self, frame: np.ndarray) -> subprocess.Popen[bytes]:
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise VideoFailed(f"a frame has shape {frame.shape}, expected (height, width, 3)")
        self._shape = frame.shape
        height, width = frame.shape[:2]
        command = [self._ffmpeg, "-y", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._fps:g}"]
        command += ["-i", "-"]
        # Browsers and slides play yuv420p only, which needs even sides: a black row or column is added.
        # One thread: the cores belong to the simulators.
        command += ["-an", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
        command += ["-threads", "1", "-movflags", "+faststart", str(self._partial)]
        try:
            # A session of its own: Ctrl-C is for us, and we end it in order.
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=self._complaints, start_new_session=True
            )
        except OSError as exc:
            raise VideoFailed(f"cannot start {self._ffmpeg!r}: {exc.strerror or exc}") from exc

    def _finish(self) -> None:
        program = self._program
        if program is None:
            raise VideoFailed("the video has no frame")
        assert program.stdin is not None
        try:
            program.stdin.close()
            status = program.wait(_FINISH_S)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise VideoFailed(f"ffmpeg did not finish {self._path.name}: {self._complaint() or exc}") from exc
        if status != 0:
            raise VideoFailed(f"ffmpeg ended with status {status}: {self._complaint()}")
        self._partial.replace(self._path)

    def _close(self) -> None:
        program = self._program
        if program is not None and program.poll() is None:
            program.kill()
            program.wait()
        if program is not None and program.stdin is not None:
            with suppress(OSError):  # what was buffered has no reader: the video is given up anyway
                program.stdin.close()
        self._complaints.close()
        self._partial.unlink(missing_ok=True)

    def _complaint(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read(1000).decode(errors="replace").strip()
