"""Frames of videos: images side by side, and a caption."""

from __future__ import annotations

import numpy as np
import pytest

from robowire.rollout.video_layout import Caption, compose_frame

VIEW = np.full((400, 600, 3), 90, np.uint8)


def test_cameras_are_next_to_the_view_at_its_height() -> None:
    cameras = np.stack([np.full((3, 100, 100), 10, np.uint8), np.full((3, 100, 100), 200, np.uint8)])
    frame = compose_frame(VIEW, cameras, Caption(3, 0, 10, 0.0))
    assert (frame.dtype, frame.shape) == (np.uint8, (400 + 2 * 25, 600 + 400 + 400, 3))
    assert [int(frame[200, column, 0]) for column in (300, 800, 1200)] == [90, 10, 200]


def test_a_policy_without_cameras_leaves_the_view_alone() -> None:
    assert np.array_equal(compose_frame(VIEW, None, Caption(3, 0, 10, 0.0))[:400], VIEW)


def test_small_images_are_enlarged_so_that_the_task_is_seen() -> None:
    assert compose_frame(VIEW[:40, :60], None, Caption(3, 0, 10, 0.0)).shape == (384 + 48, 576, 3)


def test_the_caption_is_drawn_below_the_images() -> None:
    frame = compose_frame(VIEW, None, Caption(3, 0, 10, 0.0))
    assert frame[400:].max() == 255


@pytest.mark.parametrize(
    ("success", "text"),
    [
        (None, "seed 3   step 7/9   return 1.25"),
        (True, "seed 3   step 7/9   return 1.25   success"),
        (False, "seed 3   step 7/9   return 1.25   failure"),
    ],
)
def test_the_caption_says_where_the_episode_is(*, success: bool | None, text: str) -> None:
    assert Caption(3, 7, 9, 1.25, success).text == text


def test_the_caption_shows_the_reward_of_the_last_action() -> None:
    assert Caption(3, 7, 9, 1.25, reward=0.5).text == "seed 3   step 7/9   reward 0.50   return 1.25"
