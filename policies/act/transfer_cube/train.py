"""Train this policy: ``python -m policies.act.transfer_cube.train --data_dir DIR --output_dir DIR``.

In two stages, each quick on one core. The cube is 12 pixels of 12,288, and a network that learns all at once
looks at the joints alone for thousands of steps; so the backbone learns first to say where each image shows
the cube. Then it is frozen, and the transformer learns from the places that the simulator knows, with the
backbone's errors added: so it learns from episodes without images as well, which are recorded ten times as
fast.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from policies.act.backbone import PointFinder
from policies.act.checkpoint import Checkpoint, Statistics, save_checkpoint
from policies.act.demonstrations import MIN_STD, Demonstrations
from policies.act.model import Act, ActSizes, normalise_images
from robowire.errors import ConfigurationError
from robowire.progress import Progress, track

__all__ = ["main"]

_BATCH = 32
_LOOKED_AT = 2000  # frames, for the errors and colours of the second stage
_CHUNK, _N_ACTION_STEPS = 10, 10
_LOCATING_LR = 1e-2
_MAX_GRADIENT_NORM = 1.0
_EMA = 0.999


@dataclass(frozen=True)
class Seen:
    """What the backbone makes of some recorded images.

    Attributes:
        colours: (n, cameras, 3), mean of the normalised images.
        errors: (n, cameras, 2), of the places.
    """

    colours: Tensor
    errors: Tensor


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


def locate(
    finder: PointFinder,
    images: np.ndarray,
    places: Tensor,
    *,
    steps: int,
    rng: np.random.Generator,
) -> float:
    """Train a backbone to tell where the cube is; returns the mean error of the last steps, in pixels.

    Args:
        finder: What is trained.
        images: uint8 (n, cameras, 3, height, width).
        places: Where the cube is in them, (n, cameras, 2), -1 to 1.
        steps: How many.
        rng: Of the choice of images.
    """
    size = torch.tensor(images.shape[:-3:-1]) / 2  # width, height
    parameters = list(finder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_LOCATING_LR, weight_decay=1e-4)
    errors: list[float] = []
    with Progress("locating", steps, unit="step") as progress:
        for number in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _LOCATING_LR * _schedule(number, steps)
            frames = rng.integers(len(images), size=_BATCH)
            cameras = rng.integers(images.shape[1], size=_BATCH)
            found = finder.find(normalise_images(torch.from_numpy(images[frames, cameras])))
            difference = (found - places[frames, cameras]).abs()
            _optimise(parameters, difference.mean(), optimizer)
            errors.append(float((difference.detach() * size).mean()))
            progress.note(f"{np.mean(errors[-50:]):.2f} pixels")
            progress.update()
    return float(np.mean(errors[-50:]))


@torch.inference_mode()
def look(finder: PointFinder, images: np.ndarray, places: Tensor) -> Seen:
    """Return what a trained backbone makes of images whose places are known; shapes as in :func:`locate`."""
    found, colours = [], []
    for part in track(np.array_split(images, max(1, len(images) // 64)), "looking", unit="part"):
        normal = normalise_images(torch.from_numpy(part))
        found.append(finder.find(normal.flatten(0, 1)).view(*part.shape[:2], 2))
        colours.append(normal.mean((3, 4)))
    # Clones, as an inference tensor takes no part in training.
    return Seen(torch.cat(colours).clone(), (torch.cat(found) - places).clone())


def read_pixels(paths: list[Path]) -> Tensor:
    """Return where all frames of recorded episodes show the cube: column and row, (n, cameras, 2).

    Raises:
        ConfigurationError: An episode does not say it.
    """
    pixels = []
    for path in paths:
        with h5py.File(path) as file:
            if "observations/pixels" not in file or file["observations/pixels"].shape[1:] != (4,):
                raise ConfigurationError(
                    f"{path} does not say where its images show the cube: record transfer_cube with "
                    "benchmark.aloha.record, which writes observations/pixels (frames, 4)"
                )
            pixels.append(file["observations/pixels"][:])
    return torch.from_numpy(np.concatenate(pixels).reshape(-1, 2, 2))


def read_rows(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return qpos and action of all frames, and for each frame the index one past its episode's last."""
    qpos, action = [], []
    for path in paths:
        with h5py.File(path) as file:
            qpos.append(file["observations/qpos"][:])
            action.append(file["action"][:])
    lengths = [len(rows) for rows in qpos]
    return np.concatenate(qpos), np.concatenate(action), np.repeat(np.cumsum(lengths), lengths)


def main(argv: list[str] | None = None) -> int:
    """Train as the flags say; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m policies.act.transfer_cube.train", description="Train ACT to hand a cube over."
    )
    parser.add_argument(
        "--data_dir", required=True, help="folder of *.hdf5 episodes of benchmark.aloha.record"
    )
    parser.add_argument("--more_dirs", nargs="*", default=[], help="folders of further ones, without images")
    parser.add_argument("--output_dir", required=True, help="folder for the checkpoint; created")
    parser.add_argument("--locate_steps", type=int, default=600, help="steps of the first stage")
    parser.add_argument("--steps", type=int, default=12000, help="steps of the second stage")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--save_every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    options = parser.parse_args(argv)
    try:
        _train(options, list(sys.argv[1:] if argv is None else argv))
    except ConfigurationError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    return 0


def _episodes(folder: str) -> list[Path]:
    """Return the episodes in a folder, in the order of their names."""
    paths = sorted(Path(folder).glob("*.hdf5"))
    if not paths:
        raise ConfigurationError(f"no *.hdf5 episodes in {folder}: record some with benchmark.aloha.record")
    return paths


def _train(options: argparse.Namespace, flags: list[str]) -> None:
    started = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    paths = _episodes(options.data_dir)
    more = [path for folder in options.more_dirs for path in _episodes(folder)]
    places = read_pixels([*paths, *more])
    data = Demonstrations(paths, ("top", "angle"))
    everything = np.arange(len(data.episode))
    images = np.concatenate([data.images(part) for part in np.array_split(everything, 64)])
    embodiment = data.embodiment
    height, width = images.shape[-2:]
    places = places * 2 / torch.tensor((width, height)) - 1
    sizes = ActSizes(
        state_dim=embodiment.state_dim or 0,
        action_dim=embodiment.action_dim or 0,
        chunk_size=_CHUNK,
        hidden_dim=128,
        nheads=4,
        enc_layers=3,
        dec_layers=1,
        dim_feedforward=512,
        backbone="point",
    )
    model = Act(sizes, dropout=0.0)
    holder: Any = model.backbones[0]
    body: PointFinder = holder[0]["body"]
    locate(body, images, places[: len(images)], steps=options.locate_steps, rng=rng)
    some = rng.permutation(len(images))[:_LOOKED_AT]
    seen = look(body, images[some], places[some])
    located_minutes = (time.monotonic() - started) / 60
    pixels = (seen.errors * (torch.tensor((width, height)) / 2)).abs().mean((0, 2)).tolist()
    del images

    qpos, actions, ends = read_rows([*paths, *more])
    statistics = Statistics(
        qpos_mean=qpos.mean(0, dtype=np.float64).astype(np.float32),
        qpos_std=qpos.std(0, dtype=np.float64).clip(MIN_STD).astype(np.float32),
        action_mean=actions.mean(0, dtype=np.float64).astype(np.float32),
        action_std=actions.std(0, dtype=np.float64).clip(MIN_STD).astype(np.float32),
    )
    states = torch.from_numpy((qpos - statistics.qpos_mean) / statistics.qpos_std)
    wanted = torch.from_numpy((actions - statistics.action_mean) / statistics.action_std)

    # What the transformer is given in place of images are their features.
    holder[0]["body"] = nn.Identity()
    average = copy.deepcopy(model)
    frozen: Any = average.backbones[0]
    frozen[0]["body"] = body
    shadowed = dict(average.named_parameters())
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=1e-4, fused=True)
    checkpoint = Checkpoint(
        average.eval(), embodiment, {Path(options.data_dir).name: statistics}, _N_ACTION_STEPS
    )
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": ["python", "-m", "policies.act.transfer_cube.train", *flags],
        "episodes": len(paths),
        "frames": len(everything),
        "episodes_without_images": len(more),
        "frames_without_images": len(qpos) - len(everything),
        "demonstrations": data.provenance(),
        "parameters": sum(parameter.numel() for parameter in average.parameters()),
        "locating_error_pixels": [round(error, 3) for error in pixels],
        "locating_minutes": round(located_minutes, 2),
        "history": [],
    }
    losses: list[float] = []
    with Progress("training", options.steps, unit="step") as progress:
        for number in range(options.steps):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * _schedule(number, options.steps)
            chosen = rng.integers(len(qpos), size=_BATCH)
            # Each with the backbone's errors, and colours, of some other frame.
            like = rng.integers(len(seen.errors), size=_BATCH)
            features = body.encode(
                (places[chosen] + seen.errors[like]).flatten(0, 1), seen.colours[like].flatten(0, 1)
            )
            steps = chosen[:, None] + np.arange(_CHUNK)
            counts = torch.from_numpy(steps < ends[chosen][:, None])
            answer = model(states[chosen], features.view(_BATCH, -1, *features.shape[1:]))
            error = answer - wanted[np.minimum(steps, len(wanted) - 1)]
            loss = (error.abs().mean(-1) * counts).sum() / counts.sum()
            _optimise(parameters, loss, optimizer)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    shadowed[name].lerp_(parameter, 1 - min(_EMA, (1 + number) / (10 + number)))
            losses.append(loss.item())
            progress.note(f"loss {np.mean(losses[-100:]):.4f}")
            progress.update()
            done = number + 1
            if done % options.save_every == 0 or done == options.steps:
                report["history"].append({"step": done, "loss": float(np.mean(losses))})
                report["minutes"] = round((time.monotonic() - started) / 60, 2)
                losses.clear()
                save_checkpoint(output_dir, checkpoint)
                (output_dir / "train.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
