"""The trainer of transfer cube: where the cube is, and a checkpoint that serves."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from policies.act.policy import make_policy
from policies.act.transfer_cube.train import main, red_centres
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs


def frames(places: list[tuple[int, int]]) -> np.ndarray:
    """Return uint8 (n, 32, 48, 3): gray, with a red square of 3 pixels whose corner is at each (x, y)."""
    images = np.full((len(places), 32, 48, 3), 70, np.uint8)
    for image, (x, y) in zip(images, places, strict=True):
        image[y : y + 3, x : x + 3] = (250, 50, 50)
    return images


def test_the_centre_of_red_pixels_is_found_where_there_are_enough() -> None:
    images = frames([(10, 20), (40, 5), (46, 31)]).transpose(0, 3, 1, 2)
    centres, shown = red_centres(images)
    assert centres[:2].tolist() == [[11, 21], [41, 6]]
    assert shown.tolist() == [True, True, False]


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
            file["observations/images/top"] = frames(places)
    out = tmp_path / "out"
    flags = {"--data_dir": data, "--output_dir": out, "--locate_steps": 2, "--steps": 2, "--save_every": 2}
    assert main([str(word) for pair in flags.items() for word in pair]) == 0
    policy = make_policy(PolicyOptions(model_name_or_path=str(out), device="cpu"))
    assert (policy.spec.chunk_size, policy.spec.n_action_steps) == (40, 20)
    image = frames([(3, 4)]).transpose(0, 3, 1, 2)
    seen = [MetaObs(state=np.zeros(14, np.float32), image=image)]
    assert policy.infer(seen).shape == (1, 40, 14)
