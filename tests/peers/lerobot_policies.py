"""Writes a folder of one policy with LeRobot itself, random weights, and the actions that LeRobot selects.

    lerobot_policies.py TYPE FOLDER INPUTS.npz ACTIONS.npy

INPUTS.npz gets ``images`` uint8 (STEPS, cameras, 3, H, W) and ``state`` (STEPS, 3) of one episode;
ACTIONS.npy what ``select_action`` and the postprocessor make of them step by step, (STEPS, 2). Before each
inference torch's generator is seeded as policies/lerobot does it for that timestep.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision_operators import define_operators

operators = define_operators()

from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors  # noqa: E402

kind, folder, inputs, actions = sys.argv[1:]
folder = Path(folder)
HEIGHT, WIDTH, STATE, ACTION, STEPS = 64, 64, 3, 2, 6
SETTINGS = {
    "act": {
        **{"chunk_size": 5, "n_action_steps": 1, "dim_model": 32, "n_heads": 4, "dim_feedforward": 48},
        "pretrained_backbone_weights": None,
    },
    "diffusion": {
        **{"horizon": 8, "n_action_steps": 1, "n_obs_steps": 2, "down_dims": (32, 64), "n_groups": 4},
        **{"num_train_timesteps": 5, "spatial_softmax_num_keypoints": 4, "diffusion_step_embed_dim": 16},
        **{"crop_shape": (56, 56), "pretrained_backbone_weights": None},
    },
    "vqbet": {
        **{"n_obs_steps": 3, "action_chunk_size": 2, "gpt_n_layer": 1, "gpt_n_head": 2, "gpt_hidden_dim": 32},
        **{"gpt_output_dim": 32, "vqvae_n_embed": 4, "vqvae_embedding_dim": 16},
        **{"crop_shape": (56, 56), "pretrained_backbone_weights": None, "spatial_softmax_num_keypoints": 4},
        "n_action_pred_token": 2,
    },
    "tdmpc": {"horizon": 2, "n_action_steps": 1, "latent_dim": 8, "mlp_dim": 16, "use_mpc": False},
}
CAMERAS = ("observation.images.front_left", "observation.images.wrist")
if kind in ("vqbet", "tdmpc"):  # they take one, and tdmpc by this name only
    CAMERAS = CAMERAS[:1] if kind == "vqbet" else ("observation.image",)

torch.manual_seed(0)
rng = np.random.default_rng(0)
config = make_policy_config(
    kind,
    device="cpu",
    push_to_hub=False,
    input_features={
        "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
        **{name: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for name in CAMERAS},
    },
    output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    **SETTINGS[kind],
)


def random_statistics(shape):
    middle, width = rng.uniform(0.2, 0.8, shape), rng.uniform(0.1, 0.3, shape)
    spread = {"mean": middle, "std": width, "min": middle - width, "max": middle + width}
    return {name: torch.from_numpy(np.asarray(numbers)).float() for name, numbers in spread.items()}


statistics = {"observation.state": random_statistics(STATE), "action": random_statistics(ACTION)}
statistics.update({name: random_statistics((3, 1, 1)) for name in CAMERAS})
policy = get_policy_class(kind)(config)
policy.eval()
for parameter in policy.parameters():
    if parameter.is_floating_point():
        parameter.data += 0.02 * torch.randn_like(parameter)
pre, post = make_pre_post_processors(config, dataset_stats=statistics)
policy.save_pretrained(folder)
pre.save_pretrained(folder)
post.save_pretrained(folder)

images = rng.integers(0, 256, (STEPS, len(CAMERAS), 3, HEIGHT, WIDTH), dtype=np.uint8)
state = rng.uniform(0.1, 0.9, (STEPS, STATE)).astype(np.float32)
np.savez(inputs, images=images, state=state)
done = []
policy.reset()
for step in range(STEPS):
    batch = {"observation.state": torch.from_numpy(state[step : step + 1]), "task": ["do it"]}
    for index, name in enumerate(CAMERAS):
        batch[name] = torch.from_numpy(images[step : step + 1, index]).float() / 255
    seed = hashlib.sha256(f"0 None [{step}]".encode()).digest()[:8]
    torch.manual_seed(int.from_bytes(seed, "little") >> 1)
    if "action" in policy._queues if hasattr(policy, "_queues") else False:
        policy._queues["action"].clear()  # it is asked at each step, whatever n_action_steps says
    done.append(post(policy.select_action(pre(batch))).numpy()[0])
np.save(actions, np.stack(done))
print(json.dumps({"type": kind}))
