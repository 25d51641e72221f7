"""The scripted expert lifts the cube, and what it shows is written down as ACT's training reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.interfaces import TaskOptions
from robowire.meta import MetaAction
from robowire.registry import load

ROOT = Path(__file__).resolve().parents[2]


def run_recorder(*flags: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "benchmark.robosuite.record", *flags)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    flags = ("--num_episodes", "3", "--seed", "1000001", "--image_size", "16", "--workers", "2")
    done = run_recorder("--output_dir", str(folder), *flags)
    assert done.returncode == 0, done.stderr
    return folder


def test_demonstrations_succeed_with_noise_too_and_leave_no_half_file(demonstrations: Path) -> None:
    names = sorted(path.name for path in demonstrations.iterdir())
    assert names == [f"episode_{seed}.hdf5" for seed in (1000001, 1000002, 1000003)]


def test_a_demonstration_has_the_layout_of_act_and_says_what_body_made_it(demonstrations: Path) -> None:
    with h5py.File(demonstrations / "episode_1000001.hdf5") as file:
        steps = len(file["action"])
        assert file["action"].shape == (steps, 7)
        assert file["action"].dtype == np.float32
        assert file["observations/qpos"].shape == (steps, 8)
        assert file["observations/qpos"].dtype == np.float32
        for camera in ("agentview", "robot0_eye_in_hand"):
            assert file[f"observations/images/{camera}"].shape == (steps, 16, 16, 3)
        assert set(np.unique(file["action"][:, 6])) == {0.0, 1.0}
        body = json.loads(file.attrs["embodiment"])
    assert body["seed"] == 1000001
    assert (body["ctrl_space"], body["ctrl_type"], body["control_hz"]) == ("ee", "delta", 20.0)
    assert body["action_layout"] == "dpos(3) daxisangle(3) gripper(1)"


def test_a_demonstration_without_noise_can_be_replayed(tmp_path: Path) -> None:
    flags = ("--num_episodes", "1", "--seed", "1000000", "--image_size", "16", "--workers", "1")
    assert run_recorder("--output_dir", str(tmp_path), *flags).returncode == 0
    with h5py.File(tmp_path / "episode_1000000.hdf5") as file:
        actions = file["action"][:]
    simulator = load("simulator", "robosuite", SIMULATORS)()
    spec = simulator.load_task("Lift", TaskOptions(camera_names=()))
    simulator.reset(seed=1000000)
    results = [
        simulator.step(simulator.from_meta_action(MetaAction(spec.ctrl_space, spec.ctrl_type, action)))
        for action in actions
    ]
    simulator.close()
    assert results[-1].info["success"]


def test_a_seed_that_evaluation_uses_is_refused(tmp_path: Path) -> None:
    done = run_recorder("--output_dir", str(tmp_path), "--seed", "7")
    assert done.returncode == 2
    assert done.stderr == "error: --seed is 7, expected at least 1000000: others evaluate\n"
