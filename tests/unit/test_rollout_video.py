"""The videos are made by the real ffmpeg, and read back by it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from robowire.errors import VideoFailed
from robowire.rollout.video import Mp4Writer

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def frames_of(path: Path, height: int, width: int) -> np.ndarray:
    command = [FFMPEG, "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def colour(*rgb: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), rgb, dtype=np.uint8)


def test_the_file_shows_the_frames_in_their_order_and_colours(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    path = tmp_path / "video.mp4"
    with Mp4Writer(path, ffmpeg=FFMPEG, fps=20) as writer:
        for rgb in colours:
            writer.add(colour(*rgb))
    middle = frames_of(path, 48, 64)[:, 24, 32].astype(int)
    assert np.abs(middle - colours).max() < 12  # yuv420p and compression


def test_odd_sides_get_a_row_and_a_column_more(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with Mp4Writer(path, ffmpeg=FFMPEG, fps=20) as writer:
        writer.add(colour(90, 90, 90, height=47, width=63))
    assert len(frames_of(path, 48, 64)) == 1


def test_a_frame_that_is_not_contiguous_is_taken_as_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    frame = np.concatenate([colour(200, 30, 30), colour(30, 30, 200)])[::-1]
    with Mp4Writer(path, ffmpeg=FFMPEG, fps=20) as writer:
        writer.add(frame)
    top = frames_of(path, 96, 64)[0, 20, 32].astype(int)
    assert np.abs(top - (30, 30, 200)).max() < 12


def record(path: Path, *frames: np.ndarray, ffmpeg: str = FFMPEG) -> None:
    with Mp4Writer(path, ffmpeg=ffmpeg, fps=20) as writer:
        for frame in frames:
            writer.add(frame)


def test_a_video_given_up_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(VideoFailed):
        record(tmp_path / "video.mp4", colour(1, 2, 3), colour(1, 2, 3, height=50))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frame", "found"),
    [(colour(0, 0, 0, height=50), "uint8 (50, 64, 3)"), (colour(0, 0, 0) / 255, "float64 (48, 64, 3)")],
)
def test_a_frame_unlike_the_first_is_refused(tmp_path: Path, frame: np.ndarray, found: str) -> None:
    with pytest.raises(VideoFailed) as raised:
        record(tmp_path / "video.mp4", colour(0, 0, 0), frame)
    assert str(raised.value) == f"a frame is {found}, expected uint8 (48, 64, 3) as the video's first"


def test_a_video_without_frames_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoFailed, match=r"^the video has no frame$"):
        record(tmp_path / "video.mp4")


def test_a_missing_ffmpeg_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoFailed, match=r"^cannot start 'no-ffmpeg': No such file or directory$"):
        record(tmp_path / "video.mp4", colour(0, 0, 0), ffmpeg="no-ffmpeg")


def test_what_ffmpeg_complains_of_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(VideoFailed, match=r"No such file or directory"):
        record(tmp_path / "missing" / "video.mp4", colour(0, 0, 0))


def test_a_program_that_stops_reading_is_no_hang(tmp_path: Path) -> None:
    with pytest.raises(VideoFailed):
        record(tmp_path / "video.mp4", *[colour(0, 0, 0, height=480, width=640)] * 3, ffmpeg="true")
