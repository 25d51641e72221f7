"""What people see of one session: requests, idle time, latencies, and images while somebody looks."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robowire.images import encode_image, has_pillow

__all__ = ["SessionActivity", "image_to_wire", "named_images"]

# Latencies of the last steps: enough for a p95 that several samples stand behind.
_WINDOW = 128
# Images are kept for so long after somebody asked for them: a dashboard asks every two seconds.
_WANTED_S = 10.0
# More often nobody sees; each time costs a copy of the images.
_PAUSE_S = 0.5
# Pixels of the longer side that are sent to a dashboard.
_MAX_SIDE = 480


class SessionActivity:
    """Counts of one session. One thread at a time changes it; any thread may read it.

    Args:
        clock: Monotonic clock, in seconds.

    Attributes:
        wanted: Whether somebody asked for images lately; false costs the session nothing.
        steps: Inferences or simulator steps so far.
        task: Instruction or task, for a person.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest = clock()
        self._durations_ms: deque[float] = deque(maxlen=_WINDOW)
        self.steps = 0
        self.task = ""
        self.wanted = False
        self._wanted_until = self._next = -math.inf
        self._shown: dict[str, Any] = {}

    def touch(self) -> None:
        """Note that the client sent something."""
        self._latest = self._clock()

    def step(self, duration_ms: float, count: int = 1) -> None:
        """Count steps that were answered together."""
        self.steps += count
        self._latest = self._clock()
        self._durations_ms.append(duration_ms)

    def summary(self) -> dict[str, Any]:
        """Return ``task``, ``steps``, ``idle_s``, ``p50_ms`` and ``p95_ms``, which are ``None`` at first."""
        durations = sorted(self._durations_ms.copy())
        quantiles = {
            name: round(durations[max(math.ceil(share * len(durations)) - 1, 0)], 3) if durations else None
            for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95))
        }
        idle_s = max(self._clock() - self._latest, 0.0)
        return {"task": self.task, "steps": self.steps, "idle_s": round(idle_s, 1), **quantiles}

    def want(self) -> dict[str, Any]:
        """Return what was kept last, and keep images for some seconds more."""
        self._wanted_until, self.wanted = self._clock() + _WANTED_S, True
        return self._shown

    def keep(self, make: Callable[[], dict[str, Any]]) -> None:
        """Keep what ``make`` returns, values and copies of images, unless it is too early.

        Called where :attr:`wanted` is true.
        """
        now = self._clock()
        if now > self._wanted_until:
            self.wanted, self._shown = False, {}
        elif now >= self._next:
            self._next = now + _PAUSE_S
            self._shown = make()


def image_to_wire(image: np.ndarray) -> Any:
    """Return an image for a dashboard, small and as JPEG where Pillow is installed.

    Args:
        image: uint8 (height, width, 3), RGB.

    Returns:
        An encoded image, see :mod:`robowire.images`, or a fresh uint8 array (height, width, 3).
    """
    stride = max(math.ceil(max(image.shape[:2]) / _MAX_SIDE), 1)
    small = np.ascontiguousarray(image[::stride, ::stride])
    return encode_image(small, "jpeg", quality=85) if has_pillow() else small.copy()


def named_images(images: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return several images by camera as :func:`image_to_wire` does."""
    return {name: image_to_wire(image) for name, image in images.items()}
