"""The program that trains the policy of ``transfer_cube``, on episodes of noise with a red square."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from policies.act.backbone import PointFinder
from policies.act.checkpoint import load_checkpoint
from policies.act.transfer_cube.train import locate, main

HEIGHT, WIDTH, FRAMES = 24, 32, 14


def images_and_pixels(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (count, 2, height, width, 3) uint8, and the square's column and row in each (count, 2, 2)."""
    images = rng.integers(0, 60, (count, 2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    corners = rng.integers(0, (WIDTH - 3, HEIGHT - 3), (count, 2, 2))
    for frame, camera in np.ndindex(count, 2):
        column, row = corners[frame, camera]
        images[frame, camera, row : row + 3, column : column + 3] = (255, 0, 0)
    return images, (corners + 1.5).astype(np.float32)


def write(path: Path, seed: int, *, with_images: bool) -> None:
    rng = np.random.default_rng(seed)
    images, pixels = images_and_pixels(rng, FRAMES)
    body = {"camera_names": ["top", "angle"], "ctrl_space": "joint", "ctrl_type": "absolute", "seed": seed}
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file.attrs["embodiment"] = json.dumps(body)
        for name in ("action", "observations/qpos"):
            file[name] = rng.normal(size=(FRAMES, 14)).astype(np.float32)
        file["observations/pixels"] = pixels.reshape(FRAMES, 4)
        if with_images:
            file["observations/images/top"], file["observations/images/angle"] = images[:, 0], images[:, 1]


def test_a_checkpoint_comes_of_episodes_with_and_without_images(tmp_path: Path) -> None:
    for name, with_images in (("seen", True), ("joints", False)):
        (tmp_path / name).mkdir()
        for seed in range(2):
            write(tmp_path / name / f"{seed}.hdf5", seed, with_images=with_images)
    flags = ["--data_dir", str(tmp_path / "seen"), "--more_dirs", str(tmp_path / "joints")]
    flags += ["--output_dir", str(tmp_path / "out"), "--locate_steps", "2", "--steps", "3"]
    assert main(flags) == 0
    report = json.loads((tmp_path / "out" / "train.json").read_text())
    assert (report["frames"], report["frames_without_images"]) == (2 * FRAMES, 2 * FRAMES)
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.embodiment.camera_names == ("top", "angle")
    assert (checkpoint.model.sizes.backbone, checkpoint.n_action_steps) == ("point", 10)
    assert list(checkpoint.statistics) == ["seen"]


def test_episodes_that_cannot_teach_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(flags) == 2
    assert capsys.readouterr().err == (
        f"error: no *.hdf5 episodes in {tmp_path}: record some with benchmark.aloha.record\n"
    )
    write(tmp_path / "0.hdf5", 0, with_images=True)
    with h5py.File(tmp_path / "0.hdf5", "a") as file:
        del file["observations/pixels"]
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path / '0.hdf5'} does not say where its images show the cube: record transfer_cube"
    )


def test_the_backbone_learns_to_find_the_red_square() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images, pixels = images_and_pixels(rng, 200)
    images = images.transpose(0, 1, 4, 2, 3).copy()
    places = torch.from_numpy(pixels * 2 / np.array((WIDTH, HEIGHT), np.float32) - 1)
    assert locate(PointFinder(), images, places, steps=120, rng=rng) < 0.4
