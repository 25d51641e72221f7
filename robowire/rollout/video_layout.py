"""Layout of a video's frame: the view for people, the policy's cameras next to it, a caption below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Caption", "compose_frame"]

# Small renders are enlarged to this height in pixels, so that the task can be seen.
_MIN_HEIGHT = 384
# The caption is this share of the height.
_CAPTION_SHARE = 16
_GREEN, _RED, _WHITE = (0, 200, 120), (255, 120, 60), (255, 255, 255)


@dataclass(frozen=True)
class Caption:
    """What a frame's caption says.

    Attributes:
        seed: Seed of the episode.
        step: Actions executed so far.
        steps: Actions of the whole episode.
        total_reward: Sum of the rewards so far.
        success: Result, once the episode ended.
        reward: Reward of the last action; ``None`` before the first.
    """

    seed: int
    step: int
    steps: int
    total_reward: float
    success: bool | None = None
    reward: float | None = None

    @property
    def text(self) -> str:
        """The caption's words."""
        ended = "" if self.success is None else "   success" if self.success else "   failure"
        step = f"step {self.step}/{self.steps}"
        reward = "" if self.reward is None else f"reward {self.reward:.2f}   "
        return f"seed {self.seed}   {step}   {reward}return {self.total_reward:.2f}{ended}"


def compose_frame(view: np.ndarray, cameras: np.ndarray | None, caption: Caption) -> np.ndarray:
    """Return one frame of a video, the images side by side at one height.

    Args:
        view: The simulator's view for people, uint8 (height, width, 3), RGB.
        cameras: The policy's cameras, uint8 (cameras, 3, height, width), RGB; ``None`` for none.
        caption: Caption below the images.

    Returns:
        uint8 (height, width, 3), RGB. Equal sizes of the images give frames of equal size.
    """
    from PIL import Image, ImageDraw, ImageFont  # here: the rest of the loop needs numpy only

    height = max(view.shape[0], _MIN_HEIGHT)
    images = [view, *(() if cameras is None else np.moveaxis(cameras, 1, -1))]
    row = np.concatenate([_at_height(image, height, Image) for image in images], axis=1)
    size = height // _CAPTION_SHARE
    frame = Image.new("RGB", (row.shape[1], height + 2 * size))
    frame.paste(Image.fromarray(row), (0, 0))
    colour = _WHITE if caption.success is None else _GREEN if caption.success else _RED
    ImageDraw.Draw(frame).text(
        (size // 2, height + size // 3), caption.text, fill=colour, font=ImageFont.load_default(size)
    )
    return np.asarray(frame)


def _at_height(image: np.ndarray, height: int, pillow: Any) -> np.ndarray:
    """Return an image at that height, its proportions kept; pixels of small images stay visible."""
    if image.shape[0] == height:
        return image
    width = max(round(image.shape[1] * height / image.shape[0]), 1)
    enlarges = image.shape[0] < height
    method = pillow.Resampling.NEAREST if enlarges else pillow.Resampling.BOX
    return np.asarray(pillow.fromarray(np.ascontiguousarray(image)).resize((width, height), method))
