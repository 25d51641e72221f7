"""Videos of a report: the last image of each, and the videos of failed episodes, as data URLs."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

__all__ = ["data_url", "last_image"]

_TIMEOUT_S = 30.0
_WIDTH = 200


def last_image(video: Path, *, ffmpeg: str) -> bytes | None:
    """Return the last image of a video as JPEG, 200 pixels wide; ``None`` where it can't be read."""
    command = [ffmpeg, "-v", "error", "-sseof", "-0.5", "-i", str(video)]
    # The filter keeps replacing the output, so that the last image stays.
    command += ["-vf", f"scale={_WIDTH}:-2", "-update", "1", "-f", "image2pipe", "-c:v", "mjpeg", "-q:v", "4"]
    try:
        done = subprocess.run([*command, "-"], capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    start = done.stdout.rfind(b"\xff\xd8\xff")  # several images where the pipe can't be replaced
    return done.stdout[start:] if start >= 0 else None


def data_url(data: bytes, media_type: str) -> str:
    """Return a URL that holds the data itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
