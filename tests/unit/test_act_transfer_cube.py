"""The trainer of transfer cube: where the cube is, and a checkpoint that serves."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from policies.act.policy import make_policy
from policies.act.transfer_cube.train import main
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs


def frames(places: list[tuple[int, int]]) -> np.ndarray:
    """Return uint8 (n, 32, 48, 3): gray, with a red square of 3 pixels whose corner is at each (x, y)."""
    images = np.full((len(places), 32, 48, 3), 70, np.uint8)
    for image, (x, y) in zip(images, places, strict=True):
        image[y : y + 3, x : x + 3] = (250, 50, 50)
    return images


def test_an_episode_without_the_cubes_pixels_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file["action"] = np.zeros((5, 14), np.float32)
    assert main(["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "episode_0.hdf5 does not say where its images show the cube: " in capsys.readouterr().err


def test_training_writes_a_checkpoint_that_serves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "cubes"
    data.mkdir()
    for number in range(2):
        places = [(int(x), int(y)) for x, y in rng.integers((0, 0), (45, 29), (50, 2))]
        with h5py.File(data / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            file["observations/qpos"] = rng.normal(size=(50, 14)).astype(np.float32)
            file["action"] = rng.normal(size=(50, 14)).astype(np.float32)
            for camera in ("top", "angle"):
                file[f"observations/images/{camera}"] = frames(places)
            centres = np.add(places, 1)
            file["observations/pixels"] = np.hstack([centres, centres]).astype(np.float32)
    out = tmp_path / "out"
    flags = {"--data_dir": data, "--output_dir": out, "--locate_steps": 2, "--steps": 2, "--save_every": 2}
    assert main([str(word) for pair in flags.items() for word in pair]) == 0
    policy = make_policy(PolicyOptions(model_name_or_path=str(out), device="cpu"))
    assert (policy.spec.chunk_size, policy.spec.n_action_steps) == (10, 10)
    image = frames([(3, 4), (3, 4)]).transpose(0, 3, 1, 2)
    seen = [MetaObs(state=np.zeros(14, np.float32), image=image)]
    assert policy.infer(seen).shape == (1, 10, 14)
