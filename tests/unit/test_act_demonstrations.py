"""Demonstrations as people have them train and load, or are refused in one sentence."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from policies.act.demonstrations import Demonstrations, free_memory
from policies.act.train import TrainOptions, main, train
from robowire.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
STEPS, HEIGHT, WIDTH = 6, 24, 32
CPU = torch.device("cpu")
IMAGES = "observations/images"


def jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def plain_images(red: int = 200) -> np.ndarray:
    images = np.zeros((STEPS, HEIGHT, WIDTH, 3), np.uint8)
    images[..., 0] = red
    return images


def write(folder: Path, *, number: int = 0, sim: bool | None = True, **arrays: Any) -> Path:
    """Write an episode; arrays are added to it or replace its own, ``None`` removes one."""
    ramp = np.arange(STEPS, dtype=float)[:, None]
    own = {"observations/qpos": np.repeat(ramp, 14, 1), "action": np.repeat(ramp, 14, 1)}
    cameras = {f"{IMAGES}/top": plain_images(), f"{IMAGES}/wrist": plain_images(90)}
    path = folder / f"episode_{number}.hdf5"
    with h5py.File(path, "w") as file:
        if sim is not None:
            file.attrs["sim"] = sim
        for name, value in {**own, **cameras, **arrays}.items():
            if value is not None:
                file[name] = value
    return path


def command(folder: Path, *flags: str) -> list[str]:
    sizes = (
        "--steps 1 --batch_size 2 --validation_share 0 --chunk_size 3 --hidden_dim 16 --nheads 2 --threads 1"
    )
    return [
        "--data_dir",
        str(folder),
        "--output_dir",
        str(folder / "out"),
        *sizes.split(),
        "--threads",
        "1",
        *flags,
    ]


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "out" / "config.json").read_text())
    return config


def refused(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return the sentence with which the program refuses the folder of an episode."""
    assert main(command(path.parent, *flags)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("error: ").rstrip("\n").replace(str(path), "FILE")


def test_the_action_of_a_mobile_base_is_part_of_the_action(tmp_path: Path) -> None:
    base = np.arange(2.0 * STEPS).reshape(STEPS, 2)
    write(tmp_path, base_action=base)
    assert main(command(tmp_path)) == 0
    config = config_of(tmp_path)
    assert (config["action_dim"], config["ctrl_space"], config["ctrl_type"]) == (16, None, None)
    data = Demonstrations([tmp_path / "episode_0.hdf5"], None)
    stats = data.statistics
    actions = data.batch(np.array([3]), 1, None, CPU).actions.numpy() * stats.action_std + stats.action_mean
    np.testing.assert_allclose(actions[0, 0, -2:], base[3], atol=1e-4)


def test_an_action_of_a_base_of_another_length_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, base_action=np.zeros((3, 2)))
    assert refused(path, capsys) == (
        "base_action of FILE: found (3, 2), expected (6, n), a row for each action"
    )


@pytest.mark.parametrize("form", ["padded", "variable"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_compressed_images_are_decoded(tmp_path: Path, form: str, in_memory: bool) -> None:
    files = [jpeg(image) for image in plain_images()]
    if form == "padded":
        longest = max(map(len, files)) + 5
        stored: Any = np.stack([np.pad(file, (0, longest - len(file))) for file in files])
    path = write(tmp_path, **{f"{IMAGES}/top": stored if form == "padded" else None})
    if form == "variable":
        with h5py.File(path, "a") as file:
            top = file.create_dataset(f"{IMAGES}/top", (STEPS,), dtype=h5py.vlen_dtype(np.uint8))
            for index, data in enumerate(files):
                top[index] = data
    limit = None if in_memory else 0
    for colors, red in (("rgb", 0), ("bgr", 2)):
        data = Demonstrations([path], ("top",), image_colors=colors, max_image_bytes=limit)
        assert data.in_memory is in_memory
        image = data.images(np.array([4]))[0, 0]
        assert (image.shape, image.dtype) == ((3, HEIGHT, WIDTH), np.uint8)
        means = image.mean((1, 2))
        assert means[red] == pytest.approx(200, abs=4)
        assert np.delete(means, red).max() < 6
        data.close()


@pytest.mark.parametrize(
    ("arrays", "flags", "message"),
    [
        (
            {f"{IMAGES}/top_depth": np.zeros((STEPS, HEIGHT, WIDTH), np.uint16)},
            [],
            "camera 'top_depth' of FILE: found (6, 24, 32) uint16, expected (frames, height, width, 3) uint8 "
            "or compressed images; --camera_names chooses cameras",
        ),
        (
            {f"{IMAGES}/top": plain_images().transpose(0, 3, 1, 2)},
            [],
            "camera 'top' of FILE: found (6, 3, 24, 32) uint8, expected (frames, height, width, 3) uint8 or "
            "compressed images; --camera_names chooses cameras",
        ),
        (
            {f"{IMAGES}/wrist": np.zeros((STEPS, WIDTH, HEIGHT, 3), np.uint8)},
            [],
            "camera 'wrist' of FILE: found images of 32x24, expected 24x32 as those before: one size for all "
            "cameras and episodes",
        ),
        (
            {},
            ["--camera_names", "top", "left_wrist"],
            "FILE is not an episode in the ACT layout: it has no camera 'left_wrist', found top, wrist",
        ),
        (
            {f"{IMAGES}/top": np.zeros((STEPS, 40), np.uint8)},
            [],
            "camera 'top' of FILE: found bytes that are not a compressed image, expected (frames, height, "
            "width, 3) uint8 or compressed images",
        ),
        (
            {"action": None, "data/demo_0/actions": np.zeros((STEPS, 7))},
            [],
            "FILE is not an episode in the ACT layout: it has no action, found data, observations",
        ),
        ({"action": np.zeros(STEPS)}, [], "action of FILE: found (6,) float64, expected numbers (frames, n)"),
    ],
    ids=["depth", "channels first", "two sizes", "missing camera", "no image", "robomimic", "one number"],
)
def test_another_layout_is_refused_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arrays: dict[str, Any],
    flags: list[str],
    message: str,
) -> None:
    assert refused(write(tmp_path, **arrays), capsys, *flags) == message


def test_hidden_files_are_not_episodes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "._episode_0.hdf5").write_bytes(b"\0\5\26\7" + b"\0" * 4092)
    assert main(command(tmp_path)) == 0


def test_an_embodiment_that_is_not_an_object_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("[1, 2]", "{", "[" * 100_000):
        path = write(tmp_path)
        with h5py.File(path, "a") as file:
            del file["observations/images/wrist"]
            file.attrs.create("embodiment", text[:60_000])
        assert refused(path, capsys).startswith("FILE is not an episode in the ACT layout: ")


# -- what an action means, and which it is -----------------------------------------------------------------


def test_the_originals_layout_declares_absolute_joints(tmp_path: Path) -> None:
    write(tmp_path)
    assert main(command(tmp_path)) == 0
    config = config_of(tmp_path)
    assert (config["ctrl_space"], config["ctrl_type"]) == ("joint", "absolute")
    assert config["action_hold"] == ["last"] * config["action_dim"]


def pairs(path: Path, sim: bool | None) -> list[tuple[int, int]]:
    data = Demonstrations([path], None, sim=sim)
    stats = data.statistics
    batch = data.batch(np.arange(len(data.ends)), 1, None, CPU)
    qpos = batch.qpos.numpy()[:, 0] * stats.qpos_std[0] + stats.qpos_mean[0]
    actions = batch.actions.numpy()[:, 0, 0] * stats.action_std[0] + stats.action_mean[0]
    return [(round(float(q)), round(float(a))) for q, a in zip(qpos, actions, strict=True)]


def test_a_file_that_does_not_say_where_it_was_recorded_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(write(tmp_path, sim=None), capsys) == (
        "FILE does not say whether it was recorded in simulation, as it has no attribute 'sim': give --sim "
        "true to pair each observation with the action of its step, or --sim false to pair it with the "
        "action before, as the original ACT does for a real robot"
    )


@pytest.mark.parametrize("sim", [True, False])
def test_a_flag_says_where_files_without_the_attribute_were_recorded(tmp_path: Path, sim: bool) -> None:
    unsaid = pairs(write(tmp_path, sim=None), sim)
    assert unsaid == pairs(write(tmp_path, sim=sim), not sim)  # the attribute counts before the flag
    assert unsaid[1] == ((1, 1) if sim else (2, 1))
    write(tmp_path, sim=None)
    assert main(command(tmp_path, "--sim", str(sim).lower())) == 0


# -- memory ------------------------------------------------------------------------------------------------


def test_images_from_disk_train_as_those_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        images = rng.integers(0, 256, (STEPS, HEIGHT, WIDTH, 3), np.uint8)
        write(tmp_path, number=number, sim=number > 0, **{f"{IMAGES}/top": images})
    weights = []
    for memory in ("1", "0"):
        assert main(command(tmp_path, "--steps", "3", "--max_memory_gb", memory)) == 0
        weights.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    errors = capsys.readouterr().err
    assert "17 frames of 2 camera(s), 24x32: 0.1 MB of images, read into memory\n" in errors
    assert "0.1 MB of images, read from disk as they are needed: 0.0 MB of memory may be used\n" in errors


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path, number=number) for number in range(4)]
    monkeypatch.setattr("policies.act.demonstrations.MAX_OPEN_FILES", 2)
    data = Demonstrations(paths, None, max_image_bytes=0)
    images = data.images(np.arange(4 * STEPS))
    assert images.shape == (4 * STEPS, 2, 3, HEIGHT, WIDTH)
    assert len(data._files) == 2
    data.close()
    assert data._files == {}


def test_a_limit_on_the_process_counts_as_what_is_free() -> None:
    code = "from policies.act.demonstrations import free_memory; print(free_memory())"
    limit = 8 << 30

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < int(run.stdout) < limit
    free = free_memory()
    assert free is not None
    assert free > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_colors": "grb"}, "--image_colors is 'grb', expected rgb or bgr"),
        ({"max_memory_gb": -1.0}, "--max_memory_gb is -1.0, expected at least 0"),
    ],
)
def test_impossible_options_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TrainOptions("data", "out", **flags)
    assert str(raised.value) == message


def test_the_number_of_steps_to_execute_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    write(tmp_path)
    assert main(command(tmp_path, "--n_action_steps", "2")) == 0
    assert config_of(tmp_path)["n_action_steps"] == 2


def test_a_report_repeats_the_flags(tmp_path: Path) -> None:
    write(tmp_path, sim=None)
    report = train(
        TrainOptions(
            *(str(tmp_path), str(tmp_path / "out")),
            **{"sim": True, "steps": 1, "batch_size": 2, "validation_share": 0.0, "chunk_size": 3},
            **{"hidden_dim": 16, "nheads": 2},
        )
    )
    assert "--sim true" in " ".join(report["command"])
