"""Train this policy: ``python -m policies.act.transfer_cube.train --data_dir DIR --output_dir DIR``.

In two stages, each quick on one core. The cube is 9 pixels of 12,288, and a network that learns all at once
looks at the joints alone for thousands of steps; so the backbone learns first where the red pixels are. Then
it is frozen, each image becomes features once, and the transformer learns from those.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from policies.act.checkpoint import Checkpoint, save_checkpoint
from policies.act.demonstrations import Demonstrations
from policies.act.model import Act, ActSizes, normalise_images

__all__ = ["main"]

_BATCH = 32
_CHUNK, _N_ACTION_STEPS = 40, 20
_EMA = 0.99
_MAX_GRADIENT_NORM = 10.0
# An image with fewer red pixels does not show the cube.
_MIN_RED_PIXELS = 4


class Locator(nn.Module):
    """Where the cube is, from the features of a backbone; thrown away after the first stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, 1, 1)
        self.place = nn.Linear(width, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 2) of features (B, width, h, w)."""
        weights = self.score(features).flatten(2).softmax(-1)
        place: Tensor = self.place((features.flatten(2) * weights).sum(-1))
        return place


def red_centres(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres of red pixels, float32 (n, 2), and which images show enough of them, bool (n,).

    Args:
        images: uint8 (n, 3, height, width).
    """
    height, width = images.shape[-2:]
    red = (images[:, 0] > 120) & (images[:, 1] < 90) & (images[:, 2] < 90)
    count = red.sum((1, 2))
    x = (red * np.arange(width)).sum((1, 2)) / np.maximum(count, 1)
    y = (red * np.arange(height)[:, None]).sum((1, 2)) / np.maximum(count, 1)
    return np.stack([x, y], 1).astype(np.float32), count >= _MIN_RED_PIXELS


def _schedule(number: int, steps: int) -> float:
    """Return the share of the highest learning rate: a rise over 100 steps, then half a cosine."""
    if number < 100:
        return (number + 1) / 100
    return 0.5 * (1 + math.cos(math.pi * (number - 100) / max(1, steps - 100)))


def _optimise(parameters: list[nn.Parameter], loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
    optimizer.step()


def locate(body: nn.Module, images: np.ndarray, *, steps: int, lr: float, rng: np.random.Generator) -> float:
    """Train a backbone to tell where the cube is; returns the mean error of the last steps in pixels."""
    centres, shown = red_centres(images)
    mean, std = centres[shown].mean(0), centres[shown].std(0)
    wanted = torch.from_numpy((centres - mean) / std)
    frames = np.flatnonzero(shown)
    locator = Locator(int(body.num_channels))  # type: ignore[arg-type]
    parameters = [*body.parameters(), *locator.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    errors: list[float] = []
    with tqdm(range(steps), desc="locating", mininterval=1.0) as progress:
        for number in progress:
            for group in optimizer.param_groups:
                group["lr"] = lr * _schedule(number, steps)
            chosen = rng.choice(frames, _BATCH)
            found = locator(body(normalise_images(torch.from_numpy(images[chosen]))))
            difference = (found - wanted[chosen]).abs()
            _optimise(parameters, difference.mean(), optimizer)
            errors.append(float((difference.detach().numpy() * std).mean()))
            progress.set_postfix(pixels=f"{np.mean(errors[-50:]):.2f}", refresh=False)
    return float(np.mean(errors[-50:]))


def main(argv: list[str] | None = None) -> int:
    """Train as the flags say; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m policies.act.transfer_cube.train", description="Train ACT to hand a cube over."
    )
    parser.add_argument(
        "--data_dir", required=True, help="folder of *.hdf5 episodes of benchmark.aloha.record"
    )
    parser.add_argument("--output_dir", required=True, help="folder for the checkpoint; created")
    parser.add_argument("--locate_steps", type=int, default=600, help="steps of the first stage")
    parser.add_argument("--steps", type=int, default=3000, help="steps of the second stage")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--save_every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    options = parser.parse_args(argv)

    started = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    paths = sorted(Path(options.data_dir).glob("*.hdf5"))
    data = Demonstrations(paths, None)
    device = torch.device("cpu")
    everything = np.arange(len(data.episode))
    images = np.concatenate([data.images(part) for part in np.array_split(everything, 64)])[:, 0]
    embodiment = data.embodiment
    sizes = ActSizes(
        state_dim=embodiment.state_dim or 0,
        action_dim=embodiment.action_dim or 0,
        chunk_size=_CHUNK,
        hidden_dim=128,
        nheads=4,
        enc_layers=1,
        dec_layers=1,
        dim_feedforward=256,
        backbone="tiny",
    )
    model = Act(sizes, dropout=0.0)
    holder: Any = model.backbones[0]
    body = holder[0]["body"]
    pixels = locate(body, images, steps=options.locate_steps, lr=options.lr, rng=rng)
    located_minutes = (time.monotonic() - started) / 60

    with torch.inference_mode():
        parts = np.array_split(everything, max(1, len(everything) // 64))
        features = torch.cat([body(normalise_images(torch.from_numpy(images[part]))) for part in parts])
    features = features.clone()  # an inference tensor takes no part in training
    # What the transformer is given in place of images are their features.
    holder[0]["body"] = nn.Identity()
    average = copy.deepcopy(model)
    frozen: Any = average.backbones[0]
    frozen[0]["body"] = body
    shadowed = dict(average.named_parameters())
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=1e-4)
    checkpoint = Checkpoint(
        average.eval(), embodiment, {Path(options.data_dir).name: data.statistics}, _N_ACTION_STEPS
    )
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": ["python", "-m", "policies.act.transfer_cube.train", *(argv or sys.argv[1:])],
        "episodes": len(paths),
        "frames": len(everything),
        "demonstrations": data.provenance(),
        "parameters": sum(parameter.numel() for parameter in average.parameters()),
        "locating_error_pixels": round(pixels, 3),
        "locating_minutes": round(located_minutes, 2),
        "history": [],
    }
    losses: list[float] = []
    with tqdm(range(options.steps), desc="training", mininterval=1.0) as progress:
        for number in progress:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * _schedule(number, options.steps)
            chosen = rng.choice(everything, _BATCH)
            qpos, actions, is_pad = data.targets(chosen, _CHUNK, device)
            error = (model(qpos, features[chosen][:, None]) - actions).abs().mean(-1)
            loss = (error * ~is_pad).sum() / (~is_pad).sum()
            _optimise(parameters, loss, optimizer)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    shadowed[name].lerp_(parameter, 1 - min(_EMA, (1 + number) / (10 + number)))
            losses.append(loss.item())
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
            done = number + 1
            if done % options.save_every == 0 or done == options.steps:
                report["history"].append({"step": done, "loss": float(np.mean(losses))})
                report["minutes"] = round((time.monotonic() - started) / 60, 2)
                losses.clear()
                save_checkpoint(output_dir, checkpoint)
                (output_dir / "train.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
