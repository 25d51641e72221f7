"""Writes a folder of one policy with LeRobot itself, random weights, and the actions that LeRobot selects.

    lerobot_policies.py TYPE FOLDER INPUTS.npz ACTIONS.npy

INPUTS.npz gets ``images`` uint8 (STEPS, cameras, 3, H, W) and ``state`` (STEPS, 3) of one episode;
ACTIONS.npy what ``select_action`` and the postprocessor make of them step by step, (STEPS, 2). Before each
inference torch's generator is seeded as policies/lerobot does it for that timestep.

Of SmolVLA INPUTS.npz also gets what lerobot's real-time chunking answers to the observation of step 2:
``rtc_delays`` (N,), ``rtc_rows`` (N,), how many actions were left, ``rtc_left`` (N, CHUNK, 2) these actions
after the postprocessor, and ``rtc_left_raw`` before it; ``rtc_chunks`` (N, CHUNK, 2).
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
    "act_ensemble": {
        **{"chunk_size": 5, "n_action_steps": 1, "dim_model": 32, "n_heads": 4, "dim_feedforward": 48},
        **{"pretrained_backbone_weights": None, "temporal_ensemble_coeff": 0.3},
    },
    "smolvla": {
        **{"chunk_size": 8, "n_action_steps": 1, "num_steps": 4, "num_vlm_layers": 2, "empty_cameras": 1},
        **{"max_state_dim": 6, "max_action_dim": 4, "resize_imgs_with_padding": (64, 64)},
        **{"expert_width_multiplier": 0.5, "vlm_model_name": str(folder) + "_vlm"},
    },
    "xvla": {
        **{"chunk_size": 4, "n_action_steps": 1, "hidden_size": 32, "depth": 1, "num_heads": 2},
        **{"num_domains": 2, "len_soft_prompts": 2, "dim_time": 8, "max_len_seq": 256},
        **{"action_mode": "auto", "max_state_dim": 4, "max_action_dim": 4, "num_denoising_steps": 3},
        **{"tokenizer_name": str(folder) + "_vlm", "tokenizer_max_length": 8},
        "florence_config": {
            "vision_config": {
                **{"model_type": "davit", "depths": [1, 1, 1, 1], "dim_embed": [8, 8, 8, 8]},
                **{"num_heads": [1, 1, 1, 1], "num_groups": [1, 1, 1, 1], "window_size": 4},
                **{"projection_dim": 16, "drop_path_rate": 0.0},
            },
            "text_config": {
                **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40},
                **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
                **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64},
            },
            **{"vocab_size": 40, "projection_dim": 16},
        },
    },
    "tdmpc": {"horizon": 2, "n_action_steps": 1, "latent_dim": 8, "mlp_dim": 16, "use_mpc": False},
}
CAMERAS = ("observation.images.front_left", "observation.images.wrist")
if kind in ("vqbet", "tdmpc"):  # they take one, and tdmpc by this name only
    CAMERAS = CAMERAS[:1] if kind == "vqbet" else ("observation.image",)


def write_vlm(target):
    """Write a vision-language model of two small layers: its configuration, tokenizer and processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    special = ["<pad>", "<unk>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>"]
    words = [*special, "do", "it", "now", "\n", "<end_of_utterance>"]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        **{"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"},
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    SmolVLMConfig(
        vision_config={
            **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "image_size": 64, "patch_size": 16},
        },
        text_config={
            **{"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40},
            **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        },
        **{"image_token_id": 3, "scale_factor": 2, "pad_token_id": 0},
    ).save_pretrained(target)
    processor = SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=4)
    processor.save_pretrained(target)


if kind in ("smolvla", "xvla"):
    write_vlm(str(folder) + "_vlm")

torch.manual_seed(0)
rng = np.random.default_rng(0)
name = kind.partition("_")[0]
config = make_policy_config(
    name,
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
policy = get_policy_class(name)(config)
policy.eval()
for parameter_name, parameter in policy.named_parameters():
    if parameter_name.endswith("image_projection"):  # lerobot leaves Florence's as the memory was
        parameter.data.zero_()
    if parameter.is_floating_point():
        parameter.data += 0.02 * torch.randn_like(parameter)
pre, post = make_pre_post_processors(config, dataset_stats=statistics)
policy.save_pretrained(folder)
pre.save_pretrained(folder)
post.save_pretrained(folder)

images = rng.integers(0, 256, (STEPS, len(CAMERAS), 3, HEIGHT, WIDTH), dtype=np.uint8)
state = rng.uniform(0.1, 0.9, (STEPS, STATE)).astype(np.float32)
done = []
policy.reset()


def observed(step):
    """Return a step's preprocessed batch, with torch's generator seeded for it."""
    batch = {"observation.state": torch.from_numpy(state[step : step + 1]), "task": ["do it"]}
    for index, name in enumerate(CAMERAS):
        batch[name] = torch.from_numpy(images[step : step + 1, index]).float() / 255
    seed = hashlib.sha256(f"0 None [{step}]".encode()).digest()[:8]
    torch.manual_seed(int.from_bytes(seed, "little") >> 1)
    return pre(batch)


for step in range(STEPS):
    if "action" in policy._queues if hasattr(policy, "_queues") else False:
        policy._queues["action"].clear()  # it is asked at each step, whatever n_action_steps says
    done.append(post(policy.select_action(observed(step))).numpy()[0])
rtc = {}
if kind == "smolvla":
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    policy.config.rtc_config = RTCConfig(enabled=True, execution_horizon=5)
    policy.init_rtc_processor()
    before = policy.predict_action_chunk(observed(0))
    cases = [(0, 6), (1, 6), (3, 6), (5, 6), (2, 3), (1, 2)]
    rtc = {name: [] for name in ("rtc_delays", "rtc_rows", "rtc_left", "rtc_left_raw", "rtc_chunks")}
    for delay, rows in cases:
        left = before[:, 8 - rows :]
        chunk = policy.predict_action_chunk(
            observed(2), inference_delay=delay, prev_chunk_left_over=left.clone()
        )
        full = np.full((8, ACTION), np.nan, np.float32)
        given, raw = full.copy(), full.copy()
        raw[:rows], given[:rows] = left[0].numpy(), post(left[0]).numpy()
        found = (delay, rows, given, raw, post(chunk[0]).numpy())
        for values, value in zip(rtc.values(), found, strict=True):
            values.append(value)
np.savez(inputs, images=images, state=state, **rtc)
np.save(actions, np.stack(done))
print(json.dumps({"type": kind}))
