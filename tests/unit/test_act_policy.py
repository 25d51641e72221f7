from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import policies.act
from policies.act.checkpoint import Checkpoint, Statistics, load_checkpoint, save_checkpoint
from policies.act.model import Act, ActSizes
from policies.act.policy import ActPolicy, make_policy, select_device, split_batch
from robowire.errors import ConfigurationError
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.specs import Embodiment, PolicySpec

SIZES = ActSizes(
    state_dim=3,
    action_dim=2,
    chunk_size=5,
    hidden_dim=16,
    nheads=2,
    enc_layers=1,
    dec_layers=1,
    dim_feedforward=24,
    backbone="small",
)


def statistics(qpos_mean: float = 0, qpos_std: float = 1, action_mean: float = 0) -> Statistics:
    state, action = np.ones(3, dtype=np.float32), np.ones(2, dtype=np.float32)
    return Statistics(qpos_mean * state, qpos_std * state, action_mean * action, action)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("act")
    torch.manual_seed(0)
    body = Embodiment(camera_names=("front",), ctrl_space="ee", ctrl_type="delta", control_hz=20)
    entries = {"one": statistics(), "two": statistics(action_mean=10)}
    save_checkpoint(path, Checkpoint(Act(SIZES), body, entries))
    return path


def make(folder: Path, **options: Any) -> ActPolicy:
    return make_policy(PolicyOptions(str(folder), device="cpu", **options))


def observation(height: int = 64, width: int = 64, seed: int = 0) -> MetaObs:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return MetaObs(state=rng.standard_normal(3).astype(np.float32), image=image)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        make_policy(PolicyOptions(str(folder), **{"device": "cpu", **options}))
    return str(raised.value).replace(str(folder), "DIR")


def test_the_spec_is_the_checkpoints(folder: Path) -> None:
    assert make(folder).spec == PolicySpec(
        policy="act",
        camera_names=("front",),
        state_dim=3,
        action_dim=2,
        ctrl_space="ee",
        ctrl_type="delta",
        control_hz=20,
        chunk_size=5,
        dataset_id="one",
        checkpoint=load_checkpoint(folder).digest,
    )


def test_a_dataset_id_chooses_the_statistics(folder: Path) -> None:
    one, two = (make(folder, dataset_id=name).infer([observation()]) for name in ("one", "two"))
    np.testing.assert_allclose(two, one + 10, rtol=1e-6)


def test_the_state_is_normalised() -> None:
    model, device = Act(SIZES), torch.device("cpu")
    raw, shifted = observation(), observation()
    assert shifted.state is not None
    shifted.state = shifted.state * 4 + 2
    expected = ActPolicy(model, statistics(), PolicySpec(), device).infer([raw])
    actions = ActPolicy(model, statistics(qpos_mean=2, qpos_std=4), PolicySpec(), device).infer([shifted])
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_on_a_gpu_images_of_one_size_run_together() -> None:
    mixed = [observation(64, 64), observation(48, 80), observation(64, 64)]
    assert split_batch(mixed, torch.device("cuda")) == [[0, 2], [1]]


def test_on_a_cpu_observations_run_one_by_one() -> None:
    assert split_batch([observation(), observation()], torch.device("cpu")) == [[0], [1]]


def test_on_a_cpu_an_answer_is_the_same_to_the_last_bit_whatever_it_was_batched_with(folder: Path) -> None:
    policy = make(folder)
    asked = [observation(seed=seed) for seed in range(7)]
    alone = np.concatenate([policy.infer([one]) for one in asked])
    np.testing.assert_array_equal(policy.infer(asked), alone)


def test_a_read_only_strided_image_is_taken(folder: Path) -> None:
    expected = observation()
    assert expected.image is not None
    strided = np.ascontiguousarray(expected.image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    strided.flags.writeable = False
    policy = make(folder)
    given = MetaObs(state=expected.state, image=strided)
    np.testing.assert_array_equal(policy.infer([given]), policy.infer([expected]))


def test_the_order_of_an_image_in_memory_does_not_change_the_last_bit() -> None:
    policy, rng = make_policy(PolicyOptions(device="cpu")), np.random.default_rng(0)  # the shipped policy
    image, state = rng.integers(0, 256, (2, 3, 96, 96), np.uint8), np.zeros(8, np.float32)
    expected = policy.infer([MetaObs(state=state, image=image)])
    rows_of_pixels = image.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    for other in (np.asfortranarray(image), rows_of_pixels):
        assert not other.flags.c_contiguous
        np.testing.assert_array_equal(policy.infer([MetaObs(state=state, image=other)]), expected)


def test_an_unknown_dataset_id_is_refused(folder: Path) -> None:
    message = "DIR has no statistics called 'tow'. Did you mean 'two'? Known: one, two"
    assert refusal(folder, dataset_id="tow") == message


def test_an_unknown_option_is_refused(folder: Path) -> None:
    message = "policy 'act' has no option 'nhead'. Did you mean 'nheads'? Known: nheads, ema"
    assert refusal(folder, extra={"nhead": 8}) == message


def test_an_impossible_number_of_heads_is_refused(folder: Path) -> None:
    assert refusal(folder, extra={"nheads": 0}) == "nheads is 0, expected a positive integer"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        select_device(name)
    assert str(raised.value) == f"device is {name!r}, expected cpu, cuda, cuda:N or auto"


def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigurationError) as raised:
        select_device("cuda:99")
    assert str(raised.value) in (
        "no CUDA device is available: use --device cpu",
        f"there is no cuda:99: this machine has {count} CUDA device(s)",
    )


def test_auto_is_a_device_that_is_there() -> None:
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_loading_the_default_imports_no_compiler() -> None:
    program = """
import sys
from policies.act.policy import make_policy
from robowire.interfaces import PolicyOptions
make_policy(PolicyOptions(device="cpu"))
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")  # they would double the time of a start


def test_a_prefix_is_answered_as_it_is_and_changes_what_follows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = Embodiment(camera_names=("front",), ctrl_space="ee", ctrl_type="delta", control_hz=20)
    model = Act(replace(SIZES, rtc_max_delay_steps=3))
    save_checkpoint(tmp_path, Checkpoint(model, body, {"one": statistics(action_mean=10)}))
    policy = make(tmp_path)
    assert (policy.spec.rtc, policy.spec.rtc_max_delay_steps) == ("trained", 3)
    seen = observation()
    prefix = np.array([[12, 8], [13, 9], [0, 0]], np.float32)
    plain, given, raw, none = policy.infer(
        [
            seen,
            replace(seen, prefix=prefix, delay=2),
            replace(seen, prefix_raw=prefix - 10, delay=2),
            replace(seen, prefix=prefix, delay=0),
        ]
    )
    np.testing.assert_allclose(given[:2], prefix[:2], rtol=1e-6)
    assert not np.allclose(given[2:], plain[2:], atol=1e-4)
    np.testing.assert_allclose(raw, given, rtol=1e-6)
    np.testing.assert_array_equal(none, plain)
    assert split_batch([seen, replace(seen, prefix=prefix, delay=2)], torch.device("cuda")) == [[0], [1]]


def test_the_policy_of_the_conveyor_continues_a_prefix() -> None:
    policy = make(Path(policies.act.__file__).with_name("conveyor"))
    spec = policy.spec
    assert (spec.rtc, spec.rtc_max_delay_steps, spec.chunk_size, spec.n_action_steps) == ("trained", 8, 16, 8)
    seen = MetaObs(state=np.zeros(8, np.float32), image=np.zeros((2, 3, 96, 96), np.uint8))
    prefix = np.full((8, 7), 0.25, np.float32)
    (actions,) = policy.infer([replace(seen, prefix=prefix, delay=8)])
    np.testing.assert_allclose(actions[:8], prefix, atol=1e-6)
    assert np.isfinite(actions).all()
