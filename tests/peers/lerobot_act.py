"""Writes an ACT folder with LeRobot itself, random weights and statistics, and what LeRobot predicts from it.

    lerobot_act.py FOLDER INPUTS.npz ACTIONS.npy ERA SETTINGS

SETTINGS is a JSON object of fields of ACTConfig. INPUTS.npz gets ``images`` uint8 (2, cameras, 3, H, W) and
``state`` (2, 3); ACTIONS.npy what ``predict_action_chunk`` and the postprocessor make of them. ERA is "new",
or "old" for statistics in the file of weights, as LeRobot wrote it before it had processors. With
``temporal_ensemble_coeff`` there are eight inputs, and ACTIONS.npy gets what ``select_action`` makes of them,
one after the other: (8, 2).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision_operators import define_operators

operators = define_operators()

from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature  # noqa: E402
from lerobot.policies.act.configuration_act import ACTConfig  # noqa: E402
from lerobot.policies.act.modeling_act import ACTPolicy  # noqa: E402
from lerobot.policies.act.processor_act import make_act_pre_post_processors  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

folder, inputs, actions, era, settings = sys.argv[1:]
folder, settings = Path(folder), json.loads(settings)
CAMERAS = ("observation.images.front_left", "observation.images.wrist")
HEIGHT, WIDTH, STATE, ACTION = 64, 96, 3, 2

torch.manual_seed(0)
rng = np.random.default_rng(0)
modes = settings.pop("normalization_mapping", {})
config = ACTConfig(
    device="cpu",
    pretrained_backbone_weights=None,
    push_to_hub=False,
    input_features={
        "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
        **{name: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for name in CAMERAS},
    },
    output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    **{
        **{"chunk_size": 5, "n_action_steps": 3, "dim_model": 32, "n_heads": 4, "dim_feedforward": 48},
        **{"n_encoder_layers": 2, "n_vae_encoder_layers": 1, **settings},
    },
)
config.normalization_mapping.update({key: NormalizationMode(mode) for key, mode in modes.items()})


def random_statistics(shape):
    middle, width = rng.uniform(0.2, 0.8, shape), rng.uniform(0.1, 0.3, shape)
    spread = {"mean": middle, "std": width, "min": middle - width, "max": middle + width}
    spread.update(q01=middle - width / 2, q99=middle + width / 2)
    spread.update(q10=middle - width / 3, q90=middle + width / 3)
    return {name: torch.from_numpy(np.asarray(numbers)).float() for name, numbers in spread.items()}


statistics = {"observation.state": random_statistics(STATE), "action": random_statistics(ACTION)}
statistics.update({name: random_statistics((3, 1, 1)) for name in CAMERAS})
# A number that never changed in the demonstrations.
for name in ("min", "max"):
    statistics["observation.state"][name][0] = 0.25

policy = ACTPolicy(config)
for parameter in policy.parameters():  # no bias is 0, no two layers are alike
    parameter.data += 0.02 * torch.randn_like(parameter)
for name, buffer in policy.named_buffers():
    if "backbone" in name:
        buffer.data += 0.1 * torch.rand_like(buffer)
pre, post = make_act_pre_post_processors(config, statistics)

policy.save_pretrained(folder)
if era == "new":
    pre.save_pretrained(folder)
    post.save_pretrained(folder)
else:
    weights = load_file(folder / "model.safetensors")
    places = [("normalize_inputs", name) for name in ("observation.state", *CAMERAS)]
    places += [("normalize_targets", "action"), ("unnormalize_outputs", "action")]
    for prefix, name in places:
        for statistic, numbers in statistics[name].items():
            weights[f"{prefix}.buffer_{name.replace('.', '_')}.{statistic}"] = numbers.clone()
    save_file(weights, folder / "model.safetensors")

STEPS = 2 if config.temporal_ensemble_coeff is None else 8
images = rng.integers(0, 256, (STEPS, len(CAMERAS), 3, HEIGHT, WIDTH), dtype=np.uint8)
state = rng.uniform(0.1, 0.9, (STEPS, STATE)).astype(np.float32)
state[:, 0] = 0.25
np.savez(inputs, images=images, state=state)
batch = {"observation.state": torch.from_numpy(state)}
for index, name in enumerate(CAMERAS):
    batch[name] = torch.from_numpy(images[:, index]).float() / 255
if config.temporal_ensemble_coeff is not None:
    policy.reset()
    taken = [policy.select_action(pre({k: v[t : t + 1] for k, v in batch.items()})) for t in range(STEPS)]
    np.save(actions, np.concatenate([post(action).numpy() for action in taken]))
    print(json.dumps({"shape": [STEPS, ACTION]}))
    sys.exit()
chunk = policy.predict_action_chunk(pre(batch))
np.save(actions, np.stack([post(chunk[:, step]).numpy() for step in range(chunk.shape[1])], axis=1))
print(json.dumps({"shape": list(chunk.shape)}))
