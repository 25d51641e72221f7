from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.act.checkpoint import Checkpoint, Statistics, load_checkpoint, save_checkpoint
from policies.act.model import Act, ActSizes
from robowire.errors import ConfigurationError
from robowire.specs import Embodiment

SIZES = ActSizes(
    state_dim=3,
    action_dim=2,
    chunk_size=5,
    hidden_dim=16,
    nheads=2,
    enc_layers=1,
    dec_layers=2,
    dim_feedforward=24,
    backbone="small",
)
BODY = Embodiment(camera_names=("front", "wrist"), image_height=64, image_width=48, state_dim=3, action_dim=2)
STATISTICS = {
    "qpos_mean": np.zeros(3, dtype=np.float32),
    "qpos_std": np.ones(3, dtype=np.float32),
    "action_mean": np.full(2, 0.1, dtype=np.float32),
    "action_std": np.full(2, 0.3, dtype=np.float32),
}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A folder in our format, with two dataset ids."""
    statistics = Statistics(**STATISTICS)
    save_checkpoint(tmp_path, Checkpoint(Act(SIZES), BODY, {"second": statistics, "first": statistics}))
    return tmp_path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A folder in the original's format, without a config.json."""
    weights = {f"model.{name}": tensor for name, tensor in Act(SIZES).state_dict().items()}
    torch.save(weights, tmp_path / "policy_best.ckpt")
    (tmp_path / "dataset_stats.pkl").write_bytes(pickle.dumps(STATISTICS))
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(folder: Path, **options: Any) -> str:
    """Return the error, with the folder's own name shortened."""
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(folder, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message.replace(str(folder), "DIR")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model, statistics = Act(SIZES), Statistics(**STATISTICS)
    save_checkpoint(tmp_path, Checkpoint(model, BODY, {"lift": statistics}))
    loaded = load_checkpoint(tmp_path)
    assert loaded.model.sizes == SIZES
    assert loaded.embodiment == BODY
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    for name, array in STATISTICS.items():
        np.testing.assert_array_equal(getattr(loaded.statistics["lift"], name), array)


def test_dataset_ids_keep_the_files_order(ours: Path) -> None:
    assert list(load_checkpoint(ours).statistics) == ["second", "first"]


def test_the_digest_tells_weights_statistics_and_heads_apart_and_nothing_else(ours: Path) -> None:
    digests = [load_checkpoint(ours).digest, load_checkpoint(ours, nheads=4).digest]
    edit(ours / "normalize.json", lambda content: content["first"]["qpos_mean"].__setitem__(0, 1.0))
    digests.append(load_checkpoint(ours).digest)
    torch.manual_seed(1)
    save_checkpoint(ours, replace(load_checkpoint(ours), model=Act(SIZES)))
    digests.append(load_checkpoint(ours).digest)
    assert len(set(digests)) == 4
    edit(ours / "config.json", lambda content: content.update(camera_names=["left", "right"]))
    assert load_checkpoint(ours).digest == digests[-1]


def test_a_checkpoint_of_the_original_has_a_digest_too(original: Path) -> None:
    (digest,) = {load_checkpoint(original, camera_names=(name,)).digest for name in ("top", "front")}
    assert re.fullmatch("[0-9a-f]{16}", digest or "")


def test_saving_leaves_no_partial_file(ours: Path) -> None:
    assert sorted(path.name for path in ours.iterdir()) == [
        "config.json",
        "model.safetensors",
        "normalize.json",
    ]


def test_loading_does_not_touch_the_callers_random_numbers(ours: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_checkpoint(ours)
    assert torch.rand(1) == expected


def test_cameras_and_heads_may_be_named_by_option(original: Path) -> None:
    loaded = load_checkpoint(original, camera_names=("top",), nheads=4)
    assert loaded.embodiment.camera_names == ("top",)
    assert loaded.model.sizes.nheads == 4


def test_cameras_and_heads_may_be_named_in_a_config_beside_the_originals_weights(original: Path) -> None:
    config = {"camera_names": ["top"], "nheads": 4, "num_queries": 5, "kl_weight": 10}
    (original / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(original)
    assert loaded.embodiment.camera_names == ("top",)
    assert loaded.model.sizes.nheads == 4


@pytest.mark.parametrize("prefix", ["", "module.model.", "model._orig_mod.", "_orig_mod.module."])
def test_weights_are_found_behind_what_wraps_a_model(original: Path, prefix: str) -> None:
    torch.manual_seed(3)
    model = Act(SIZES)
    saved = {f"{prefix}{name}": tensor.double() for name, tensor in model.state_dict().items()}
    torch.save(saved, original / "policy_best.ckpt")
    loaded = load_checkpoint(original, camera_names=("top",)).model
    assert torch.equal(loaded.action_head.weight, model.action_head.weight)
    assert loaded.action_head.weight.dtype == torch.float32


def test_the_originals_own_number_of_heads_is_assumed(original: Path) -> None:
    assert load_checkpoint(original, camera_names=("top",)).model.sizes.nheads == 8


def test_the_originals_actions_are_absolute_joint_positions_unless_a_config_says_otherwise(
    original: Path,
) -> None:
    body = load_checkpoint(original, camera_names=("top",)).embodiment
    assert (body.ctrl_space, body.ctrl_type) == ("joint", "absolute")
    assert body.action_hold == ("last",) * (body.action_dim or 0)  # positions: the last again stands still
    (original / "config.json").write_text(
        json.dumps({"ctrl_space": "ee", "ctrl_type": "delta", "control_hz": 20})
    )
    body = load_checkpoint(original, camera_names=("top",)).embodiment
    assert (body.ctrl_space, body.ctrl_type, body.control_hz) == ("ee", "delta", 20)
    assert body.action_hold is None


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    assert refusal(folder) == (
        "the checkpoint DIR does not exist: give the folder that holds model.safetensors or policy_best.ckpt"
    )


def test_a_file_is_no_folder(original: Path) -> None:
    assert refusal(original / "policy_best.ckpt") == (
        "the checkpoint DIR is a file: give the folder that holds model.safetensors or policy_best.ckpt"
    )


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        "no model in DIR: looked for model.safetensors (ours) and policy_best.ckpt (the original ACT's); "
        "copy one there"
    )


def test_a_missing_normalize_json_is_named(ours: Path) -> None:
    (ours / "normalize.json").unlink()
    assert refusal(ours) == (
        "no normalize.json in DIR, which holds the mean and deviation of states and actions: "
        "copy it there from the trained model"
    )


def test_a_missing_config_json_is_named(ours: Path) -> None:
    (ours / "config.json").unlink()
    assert refusal(ours) == (
        "no config.json in DIR, which names the cameras and sizes the model was trained with: "
        "copy it there from the trained model"
    )


def test_a_missing_dataset_stats_pkl_is_named(original: Path) -> None:
    (original / "dataset_stats.pkl").unlink()
    assert refusal(original, camera_names=("top",)) == (
        "no dataset_stats.pkl in DIR, which holds the mean and deviation of states and actions: "
        "copy it there from the trained model"
    )


def test_a_size_that_contradicts_the_weights_is_named(ours: Path) -> None:
    edit(ours / "config.json", lambda config: config.update(chunk_size=6))
    assert refusal(ours) == (
        "DIR/config.json says chunk_size is 6, but model.safetensors holds a model of 5: "
        "one of the two belongs to another training"
    )


def test_the_originals_word_for_the_chunk_is_compared_too(original: Path) -> None:
    (original / "config.json").write_text('{"camera_names": ["top"], "num_queries": 100}')
    assert refusal(original) == (
        "DIR/config.json says chunk_size is 100, but policy_best.ckpt holds a model of 5: "
        "one of the two belongs to another training"
    )


def test_heads_that_do_not_divide_the_width_are_refused(ours: Path) -> None:
    assert refusal(ours, nheads=3) == (
        "DIR holds no model that can be built: hidden_dim is 16, expected a multiple of nheads (3) and of 4"
    )


def test_our_format_must_name_the_heads(ours: Path) -> None:
    edit(ours / "config.json", lambda config: config.pop("nheads"))
    assert refusal(ours) == (
        "DIR/config.json lacks nheads, which the weights do not show: add it, or give --policy_options.nheads"
    )


def test_cameras_nobody_named_are_asked_for(original: Path) -> None:
    assert refusal(original) == (
        "policy_best.ckpt in DIR does not say which cameras it was trained with: name them in that order "
        "with --camera_names, or as camera_names in a config.json beside it"
    )


def test_another_number_of_cameras_than_trained_with_is_refused(ours: Path) -> None:
    assert refusal(ours, camera_names=("front",)) == (
        "camera_names has 1 entries, but DIR/config.json says the model was trained with 2: front, wrist"
    )


def test_a_weight_of_another_shape_is_named(original: Path) -> None:
    weights = Act(SIZES).state_dict()
    weights["action_head.bias"] = torch.zeros(9)
    torch.save(weights, original / "policy_best.ckpt")
    assert refusal(original, camera_names=("top",)) == (
        "DIR/policy_best.ckpt does not fit ACT: action_head.bias is (9,), expected (2,)"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "query_embed.weight",
            "DIR/policy_best.ckpt is not an ACT model: it has no matrix called query_embed.weight",
        ),
        (
            "backbones.0.0.body.layer2.0.conv1.weight",
            "DIR/policy_best.ckpt does not fit ACT: backbones.0.0.body.layer2.0.conv1.weight is missing, "
            "expected (128, 64, 3, 3)",
        ),
        (
            "cls_embed.weight",
            "DIR/policy_best.ckpt does not fit ACT: cls_embed.weight is missing, expected (1, 16)",
        ),
    ],
)
def test_a_missing_weight_is_named(original: Path, name: str, message: str) -> None:
    weights = Act(SIZES).state_dict()
    del weights[name]
    torch.save(weights, original / "policy_best.ckpt")
    assert refusal(original, camera_names=("top",)) == message


@pytest.mark.parametrize("kind", ["tensors", "parameters", "torch.save", "kept axes", "float64 and more"])
def test_statistics_are_read_from_every_form_that_trainings_write(original: Path, kind: str) -> None:
    file, wanted = original / "dataset_stats.pkl", load_checkpoint(original, camera_names=("top",))
    tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in STATISTICS.items()}
    if kind == "parameters":
        tensors = {name: torch.nn.Parameter(value) for name, value in tensors.items()}
    if kind == "kept axes":
        tensors = {name: value[None, None].numpy() for name, value in tensors.items()}
    if kind == "float64 and more":
        tensors = {name: value.double().expand(2, -1)[1] for name, value in tensors.items()}
        tensors |= {"example_qpos": torch.zeros(400, 3), "action_min": np.zeros(2), "epoch": np.float64(3)}
    file.write_bytes(pickle.dumps(tensors))
    if kind == "torch.save":
        torch.save({**tensors, "count": np.int64(50)}, file)
    found = load_checkpoint(original, camera_names=("top",)).statistics[None]
    for name, value in vars(wanted.statistics[None]).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_a_tensor_that_claims_more_numbers_than_it_has_is_refused(original: Path) -> None:
    content = pickle.dumps({"qpos_mean": torch.zeros(3)}, protocol=2)
    assert content.count(b"K\x03\x85") == 1  # its shape, (3,)
    (original / "dataset_stats.pkl").write_bytes(content.replace(b"K\x03\x85", b"K\x07\x85"))
    assert refusal(original, camera_names=("top",)) == (
        "DIR/dataset_stats.pkl is not a pickle of plain arrays: a tensor is larger than its numbers"
    )


@pytest.mark.parametrize("ema", [None, True, False])
def test_the_average_of_the_weights_is_taken_where_a_file_has_one(original: Path, ema: bool | None) -> None:
    weights = Act(SIZES).state_dict()
    average = {f"module.model.{name}": value + 1 for name, value in weights.items()}
    average["n_averaged"] = torch.tensor(7)
    content = {"model_state_dict": weights, "ema_state_dict": average, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save({**content, "loss": np.float64(0.5)}, original / "policy_best.ckpt")
    model = load_checkpoint(original, camera_names=("top",), ema=ema).model
    wanted = weights["action_head.bias"] + (ema is not False)
    torch.testing.assert_close(model.state_dict()["action_head.bias"], wanted)


def test_an_average_that_nobody_kept_is_not_made_up(original: Path) -> None:
    assert refusal(original, camera_names=("top",), ema=True).startswith(
        "DIR/policy_best.ckpt has no average of its weights, looked for ema_state_dict, "
    )


def test_layers_that_normalise_first_are_known_by_their_weights(original: Path) -> None:
    model = Act(replace(SIZES, pre_norm=True))
    torch.save(model.state_dict(), original / "policy_best.ckpt")
    (original / "config.json").write_text('{"nheads": 2, "activation": "gelu"}')
    sizes = load_checkpoint(original, camera_names=("top",)).model.sizes
    assert (sizes.pre_norm, sizes.activation) == (True, "gelu")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def test_statistics_that_would_run_code_are_refused(original: Path) -> None:
    (original / "dataset_stats.pkl").write_bytes(pickle.dumps({**STATISTICS, "qpos_mean": Evil()}))
    message = refusal(original, camera_names=("top",))
    assert message.startswith("DIR/dataset_stats.pkl is not a pickle of plain arrays: ")
    assert "exec" in message


def test_weights_that_would_run_code_are_refused(original: Path) -> None:
    torch.save({"model.query_embed.weight": Evil()}, original / "policy_best.ckpt")
    message = refusal(original, camera_names=("top",))
    assert message.startswith("DIR/policy_best.ckpt cannot be read as weights and nothing else: ")


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"not a checkpoint", b"\x00" * 64])
@pytest.mark.parametrize("name", ["policy_best.ckpt", "model.safetensors"])
def test_a_broken_file_of_weights_is_an_error_of_one_line(
    ours: Path, original: Path, name: str, content: bytes
) -> None:
    if name == "policy_best.ckpt":
        (ours / "model.safetensors").unlink()
    (original / name).write_bytes(content)
    assert refusal(original, camera_names=("front", "wrist")).startswith(f"DIR/{name} ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda stats: stats.pop("action_std"),
            "entry 'second' of DIR/normalize.json lacks action_std, expected 2 numbers",
        ),
        (
            lambda stats: stats.update(action_std=[1]),
            "action_std in entry 'second' of DIR/normalize.json has shape (1,), the model has (2,)",
        ),
        (
            lambda stats: stats.update(action_std=[1, 0]),
            "action_std in entry 'second' of DIR/normalize.json holds values that cannot normalise: "
            "[1.0, 0.0]",
        ),
        (
            lambda stats: stats.update(qpos_mean=[1, 2, float("nan")]),
            "qpos_mean in entry 'second' of DIR/normalize.json holds values that cannot normalise: "
            "[1.0, 2.0, nan]",
        ),
    ],
)
def test_statistics_that_cannot_be_used_are_named(
    ours: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(ours / "normalize.json", lambda content: change(content["second"]))
    assert refusal(ours) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "DIR/normalize.json has no entry: it needs one for each dataset id"),
        ("[]", "DIR/normalize.json holds a list, expected an object"),
        ('{"a": 1}', "entry 'a' of DIR/normalize.json holds a int, expected a mapping of names to arrays"),
        (
            "{",
            "DIR/normalize.json is not JSON: "
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
    ],
)
def test_a_normalize_json_of_another_form_is_refused(ours: Path, content: str, message: str) -> None:
    (ours / "normalize.json").write_text(content)
    assert refusal(ours) == message


def test_a_config_with_an_impossible_value_is_refused(ours: Path) -> None:
    edit(ours / "config.json", lambda config: config.update(ctrl_type="sideways"))
    assert re.fullmatch(
        r"DIR/config.json cannot be used: ctrl_type is 'sideways', expected .*", refusal(ours)
    )


def test_a_checkpoint_says_how_many_steps_of_a_chunk_to_execute(ours: Path) -> None:
    edit(ours / "config.json", lambda config: config.update(n_action_steps=2))
    assert load_checkpoint(ours).n_action_steps == 2


def test_more_action_steps_than_a_chunk_has_are_refused(ours: Path) -> None:
    edit(ours / "config.json", lambda config: config.update(n_action_steps=6))
    assert refusal(ours) == "DIR/config.json says n_action_steps 6, expected 1 to 5, the chunk_size"


@pytest.mark.parametrize("file", ["normalize.json", "config.json"])
def test_a_deeply_nested_file_is_refused_in_one_sentence(ours: Path, file: str) -> None:
    (ours / file).write_text('{"second": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(ours)
    assert str(raised.value) == f"{ours / file} is nested too deeply, expected an object of plain values"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([10**400, 0, 0], "is not an array of numbers: "),
        ([1e300, 0, 0], "holds values that cannot normalise: [inf, 0.0, 0.0]"),
    ],
)
def test_a_number_that_no_float_holds_is_refused_in_one_sentence(
    ours: Path, values: list[float], message: str
) -> None:
    edit(ours / "normalize.json", lambda content: content["second"].update(qpos_mean=values))
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(ours)
    where = f"qpos_mean in entry 'second' of {ours / 'normalize.json'}"
    assert str(raised.value).startswith(f"{where} {message}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_height", 10**12, "says image_height 1000000000000, expected 1 to 16384 pixels"),
        ("image_width", 64.5, "says image_width 64.5, expected 1 to 16384 pixels"),
        ("image_width", "64", "says image_width '64', expected 1 to 16384 pixels"),
        (
            "control_hz",
            10**400,
            "says control_hz 1" + "0" * 39 + "..., expected more than 0 and at most 100000",
        ),
        ("control_hz", "20", "says control_hz '20', expected more than 0 and at most 100000"),
    ],
)
def test_a_size_or_rate_that_nothing_has_is_refused_in_one_sentence(
    ours: Path, name: str, value: Any, message: str
) -> None:
    edit(ours / "config.json", lambda content: content.update({name: value}))
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(ours)
    assert str(raised.value) == f"{ours / 'config.json'} {message}"


@pytest.mark.parametrize("nheads", ["2", 0.5, 10**400, [2]])
def test_a_number_of_heads_that_is_none_is_refused(ours: Path, nheads: Any) -> None:
    edit(ours / "config.json", lambda content: content.update(nheads=nheads))
    with pytest.raises(ConfigurationError):
        load_checkpoint(ours)
