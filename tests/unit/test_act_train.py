from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from policies.act.demonstrations import Batch, Demonstrations
from policies.act.policy import make_policy
from policies.act.train import TrainOptions, _l1, main, train
from robowire.errors import ConfigurationError
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

EMBODIMENT = {
    "control_hz": 20,
    "ctrl_space": "ee",
    "ctrl_type": "delta",
    "state_layout": "joint_pos(2) gripper(1)",
    "action_layout": "dpos(1) gripper(1)",
    "simulator": "toy",
    "task": "Reach",
}
CPU = torch.device("cpu")


def write_episode(path: Path, number: int, *, steps: int = 12, sim: bool = True, **embodiment: Any) -> None:
    rng = np.random.default_rng(number)
    with h5py.File(path / f"episode_{number:03d}.hdf5", "w") as file:
        file.attrs["sim"] = sim
        file.attrs["embodiment"] = json.dumps({**EMBODIMENT, "seed": number, **embodiment})
        file["observations/qpos"] = np.arange(3 * steps, dtype=np.float32).reshape(steps, 3) + 100 * number
        file["action"] = np.arange(2 * steps, dtype=np.float32).reshape(steps, 2) + 100 * number
        for camera in ("wrist", "front"):
            file[f"observations/images/{camera}"] = rng.integers(0, 256, (steps, 32, 48, 3), dtype=np.uint8)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "lift_demonstrations"
    folder.mkdir()
    for number in range(3):
        write_episode(folder, number)
    return folder


@pytest.fixture
def options(data_dir: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        data_dir=str(data_dir),
        output_dir=str(tmp_path / "checkpoint"),
        chunk_size=4,
        hidden_dim=16,
        nheads=2,
        enc_layers=1,
        dim_feedforward=16,
        steps=4,
        batch_size=2,
        warmup_steps=2,
        max_shift=2,
        validation_share=0.3,
        save_every=2,
    )


def read(data_dir: Path) -> Demonstrations:
    return Demonstrations(sorted(data_dir.glob("*.hdf5")), None)


def raw_actions(data: Demonstrations, frames: list[int], chunk_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions of a batch, not normalised, and their padding."""
    batch = data.batch(np.array(frames), chunk_size, None, CPU)
    stats = data.statistics
    return batch.actions.numpy() * stats.action_std + stats.action_mean, batch.is_pad.numpy()


def test_a_training_leaves_a_checkpoint_the_policy_loads(options: TrainOptions) -> None:
    train(options)
    policy = make_policy(PolicyOptions(options.output_dir, device="cpu"))
    spec = policy.spec
    assert (spec.camera_names, spec.image_height, spec.image_width) == (("front", "wrist"), 32, 48)
    assert (spec.state_dim, spec.action_dim, spec.chunk_size) == (3, 2, 4)
    assert (spec.control_hz, spec.ctrl_space, spec.ctrl_type) == (20, "ee", "delta")
    assert (spec.state_layout, spec.action_layout) == ("joint_pos(2) gripper(1)", "dpos(1) gripper(1)")
    assert spec.dataset_id == "lift_demonstrations"
    image = np.zeros((2, 3, 32, 48), dtype=np.uint8)
    assert policy.infer([MetaObs(state=np.zeros(3, dtype=np.float32), image=image)]).shape == (1, 4, 2)


def test_a_training_reports_how_it_was_made(options: TrainOptions) -> None:
    train(options)
    report = json.loads((Path(options.output_dir) / "train.json").read_text())
    assert report["command"][:3] == ["python", "-m", "policies.act.train"]
    assert report["demonstrations"] == {"simulator": "toy", "task": "Reach", "seeds": [0, 1, 2]}
    assert (report["episodes"], report["validation_episodes"], report["frames"]) == (3, 1, 36)
    assert [entry["step"] for entry in report["history"]] == [2, 4]
    assert all(math.isfinite(entry["loss"] + entry["validation_l1"]) for entry in report["history"])


def weights(folder: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def assert_same_weights(one: str, other: str) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights(options: TrainOptions, tmp_path: Path) -> None:
    train(options)
    train(replace(options, output_dir=str(tmp_path / "again")))
    assert_same_weights(options.output_dir, str(tmp_path / "again"))


def test_another_seed_gives_other_weights(options: TrainOptions, tmp_path: Path) -> None:
    train(options)
    train(replace(options, output_dir=str(tmp_path / "other"), seed=1))
    name = "action_head.weight"
    assert not torch.equal(weights(options.output_dir)[name], weights(str(tmp_path / "other"))[name])


class Interrupted(Exception):
    pass


def test_a_resumed_training_equals_an_unbroken_one(options: TrainOptions, tmp_path: Path) -> None:
    unbroken = replace(options, output_dir=str(tmp_path / "unbroken"))
    train(unbroken)

    def stop(step: int) -> None:
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(options, on_save=stop)
    report = train(replace(options, resume=True))
    assert_same_weights(options.output_dir, unbroken.output_dir)
    assert [entry["step"] for entry in report["history"]] == [2, 4]


def test_a_training_resumes_only_with_the_same_options(options: TrainOptions) -> None:
    train(options)
    with pytest.raises(ConfigurationError, match=r"^--lr is 0\.1, but the training to resume had 0\.0003$"):
        train(replace(options, resume=True, lr=0.1))


def test_nothing_to_resume_is_an_error(options: TrainOptions) -> None:
    with pytest.raises(ConfigurationError) as raised:
        train(replace(options, resume=True))
    assert str(raised.value) == f"nothing to resume: there is no training_state.pt in {options.output_dir}"


def test_a_training_learns(options: TrainOptions) -> None:
    history = train(replace(options, steps=60, save_every=20, lr=3e-3))["history"]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_a_chunk_holds_the_actions_that_follow_and_ends_with_the_episode(data_dir: Path) -> None:
    actions, is_pad = raw_actions(read(data_dir), [0, 10], 3)
    np.testing.assert_allclose(actions[0], [[0, 1], [2, 3], [4, 5]], atol=1e-4)
    np.testing.assert_allclose(actions[1, :2], [[20, 21], [22, 23]], atol=1e-4)
    np.testing.assert_array_equal(is_pad, [[False, False, False], [False, False, True]])


def test_padding_is_zero_where_the_network_sees_it(data_dir: Path) -> None:
    batch = read(data_dir).batch(np.array([11]), 3, None, CPU)
    assert (batch.actions[0, 1:] == 0).all()


def test_a_real_robots_observation_goes_with_the_action_before_it(tmp_path: Path) -> None:
    write_episode(tmp_path, 0, sim=False)
    data = read(tmp_path)
    batch = data.batch(np.array([0]), 1, None, CPU)
    np.testing.assert_allclose(raw_actions(data, [0], 1)[0], [[[0, 1]]], atol=1e-4)
    qpos = batch.qpos.numpy() * data.statistics.qpos_std + data.statistics.qpos_mean
    np.testing.assert_allclose(qpos, [[3, 4, 5]], atol=1e-4)


def test_images_are_stacked_in_the_order_of_the_cameras(data_dir: Path) -> None:
    paths = sorted(data_dir.glob("*.hdf5"))
    forth, back = (Demonstrations(paths, names) for names in (("front", "wrist"), ("wrist", "front")))
    frames = np.array([5])
    images = forth.batch(frames, 1, None, CPU).images
    assert torch.equal(images, back.batch(frames, 1, None, CPU).images.flip(1))
    assert not torch.equal(images, images.flip(1))


def test_a_shift_moves_a_picture_and_repeats_its_edge(data_dir: Path) -> None:
    data, frames = read(data_dir), np.array([5])
    still = data.batch(frames, 1, None, CPU).images[0]
    moved = data.batch(frames, 1, np.array([[[2, 0], [0, -3]]]), CPU).images[0]
    assert torch.equal(moved[0, :, :-2], still[0, :, 2:])
    assert torch.equal(moved[0, :, -1], still[0, :, -1])
    assert torch.equal(moved[1, :, :, 3:], still[1, :, :, :-3])
    assert torch.equal(moved[1, :, :, 0], still[1, :, :, 0])


def test_a_shift_leaves_the_recording_alone(data_dir: Path) -> None:
    data, frames = read(data_dir), np.array([5])
    still = data.batch(frames, 1, None, CPU).images
    data.batch(frames, 1, np.full((1, 2, 2), 3), CPU)
    assert torch.equal(data.batch(frames, 1, None, CPU).images, still)


def test_episodes_of_another_body_are_refused(data_dir: Path) -> None:
    write_episode(data_dir, 3, control_hz=10)
    with pytest.raises(ConfigurationError) as raised:
        read(data_dir)
    first, last = data_dir / "episode_000.hdf5", data_dir / "episode_003.hdf5"
    message = f"control_hz is 10 in {last}, but 20 in {first}: train on the episodes of one body"
    assert str(raised.value) == message


def remove_wrist(file: h5py.File) -> None:
    del file["observations/images/wrist"]


def cut_actions(file: h5py.File) -> None:
    actions = file["action"][:-1]
    del file["action"]
    file["action"] = actions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_wrist, "{file} is not an episode in the ACT layout: "),
        (cut_actions, "an episode in {dir} has more observations than actions, or fewer"),
    ],
)
def test_a_broken_episode_is_refused(
    data_dir: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    path = data_dir / "episode_001.hdf5"
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(ConfigurationError) as raised:
        read(data_dir)
    assert str(raised.value).startswith(message.format(file=path, dir=data_dir))


def test_the_command_line_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert status == 2
    message = f"error: no *.hdf5 files in {tmp_path}: record demonstrations into it first\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps is 0, expected at least 1"),
        ({"validation_share": 1.0}, "--validation_share is 1.0, expected at least 0 and less than 1"),
    ],
)
def test_impossible_options_are_refused(options: TrainOptions, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        replace(options, **change)
    assert str(raised.value) == message


def test_a_training_with_prefixes_begins_from_a_checkpoint_without(
    options: TrainOptions, tmp_path: Path
) -> None:
    options = replace(options, threads=1)
    train(options)
    rtc = replace(
        options,
        output_dir=str(tmp_path / "rtc"),
        rtc_max_delay_steps=2,
        init_from=options.output_dir,
        steps=1,
        lr=1e-9,
    )
    train(rtc)
    before, after = weights(options.output_dir), weights(rtc.output_dir)
    assert after["prefix_pos_embed.weight"].shape == (2, 16)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
    assert make_policy(PolicyOptions(rtc.output_dir, device="cpu")).spec.rtc == "trained"
    with pytest.raises(ConfigurationError, match="train a network of the same sizes"):
        train(replace(rtc, hidden_dim=32))


def test_given_actions_are_not_learned() -> None:
    actions = torch.zeros(2, 4, 1)
    batch = Batch(torch.zeros(2, 1), torch.zeros(2, 1), actions, torch.zeros(2, 4, dtype=torch.bool))
    predicted = torch.tensor([[9.0, 9, 1, 1], [2, 2, 2, 2]])[..., None]
    assert _l1(predicted, batch, torch.tensor([2, 0])).item() == pytest.approx((1 * 2 + 2 * 4) / 6)
