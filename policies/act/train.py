"""Train ACT from demonstrations: ``python -m policies.act.train --data_dir DIR --output_dir DIR``.

Demonstrations are HDF5 files in the original ACT's layout, one episode each: ``observations/qpos`` (T,
state_dim), ``observations/images/<camera>`` (T, H, W, 3) uint8, ``action`` (T, action_dim). A JSON attribute
``embodiment`` (control rate, layouts, control space and type) goes into the checkpoint, so that it can be
compared with a simulator's.

Every random choice of a step comes from the seed and the step's number, so a resumed training equals an
unbroken one.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from policies.act.backbone import BACKBONES
from policies.act.checkpoint import Checkpoint, Statistics, replace_file, save_checkpoint
from policies.act.model import Act, ActSizes, normalise_images
from policies.act.policy import select_device
from robowire.errors import ConfigurationError
from robowire.specs import Embodiment

__all__ = ["Demonstrations", "TrainOptions", "Training", "main", "train"]

STATE_FILE = "training_state.pt"

# A joint that hardly moves in the demonstrations must not turn noise into large inputs; the original's bound.
MIN_STD = 1e-2

# LeRobot's value for ACT: it catches rare spikes and leaves an ordinary step alone.
MAX_GRADIENT_NORM = 10.0

# What may differ when a training is taken up again: nothing that the weights depend on.
CHANGEABLE = {"data_dir", "output_dir", "n_action_steps", "save_every", "threads", "resume"}

# Enough to compare trainings by, few enough to take seconds.
MAX_VALIDATION_FRAMES = 512


@dataclass(frozen=True)
class TrainOptions:
    """What a training is told; ``_HELP`` says what each option means."""

    data_dir: str
    output_dir: str
    camera_names: tuple[str, ...] | None = None
    dataset_id: str | None = None
    max_episodes: int | None = None
    chunk_size: int = 16
    n_action_steps: int | None = None
    backbone: str = "small"
    hidden_dim: int = 128
    nheads: int = 4
    enc_layers: int = 2
    dec_layers: int = 1
    dim_feedforward: int = 512
    dropout: float = 0.1
    steps: int = 20_000
    batch_size: int = 32
    lr: float = 3e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 500
    kl_weight: float = 10.0
    ema_decay: float = 0.999
    max_shift: int = 4
    validation_share: float = 0.05
    save_every: int = 1000
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("chunk_size", "steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} is {getattr(self, name)}, expected at least 1")
        if self.n_action_steps is not None and not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigurationError(
                f"--n_action_steps is {self.n_action_steps}, expected 1 to {self.chunk_size}, the chunk_size"
            )
        for name in ("dropout", "validation_share", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(
                    f"--{name} is {getattr(self, name)}, expected at least 0 and less than 1"
                )


_HELP = {
    "data_dir": "folder of *.hdf5 episodes",
    "output_dir": "folder for model.safetensors, config.json, normalize.json, train.json; created",
    "camera_names": "cameras in the policy's order; default: the embodiment's, else all in the first file",
    "dataset_id": "name of the statistics in normalize.json; default: the name of data_dir",
    "max_episodes": "use only this many episodes, the first by name; default: all",
    "chunk_size": "actions predicted at once",
    "n_action_steps": "actions of a chunk to execute before the policy is asked again; default: left open",
    "backbone": "image network; both start from random weights, which suits only 'small'",
    "hidden_dim": "width of a token",
    "nheads": "attention heads",
    "enc_layers": "layers of both encoders",
    "dec_layers": "decoder layers; only the first is ever used",
    "dim_feedforward": "width of the feed-forward parts",
    "dropout": "share of activations dropped in the transformer",
    "steps": "optimisation steps",
    "batch_size": "frames a step",
    "lr": "highest learning rate",
    "weight_decay": "AdamW's",
    "warmup_steps": "steps of rising learning rate, before a cosine falls to zero",
    "kl_weight": "weight of the KL divergence beside the L1 loss",
    "ema_decay": "of the average of the weights, which is what is saved; 0 saves the last weights",
    "max_shift": "random shift of each image, in pixels; 0 for none",
    "validation_share": "share of the episodes held out; 0 for none",
    "save_every": "steps between checkpoints and validations",
    "seed": "of every random choice",
    "threads": "CPU threads; default: one for each core",
    "device": "cpu, cuda, cuda:N or auto",
    "resume": "continue from the last save in output_dir",
}


@dataclass(frozen=True)
class Batch:
    """Normalised frames on the training device.

    Attributes:
        qpos: (B, state_dim).
        images: (B, cameras, 3, H, W).
        actions: (B, chunk_size, action_dim); zero where padded.
        is_pad: bool (B, chunk_size), true past the end of the episode.
    """

    qpos: Tensor
    images: Tensor
    actions: Tensor
    is_pad: Tensor


class Demonstrations:
    """Every frame of the episodes, in memory, as bytes: 10,000 frames of two 128x128 cameras take 1 GB.

    Attributes:
        embodiment: What the files say about the body, and the sizes found.
        sources: The files' ``embodiment`` attributes, in their order; empty objects where a file has none.
        statistics: Over all episodes.
        ends: For each frame, the index one past its episode's last frame.
        episode: For each frame, its episode's number.
    """

    def __init__(self, paths: list[Path], camera_names: tuple[str, ...] | None) -> None:
        qpos, images, actions, self.sources = [], [], [], []
        for path in tqdm(paths, desc="reading episodes", unit="episode"):
            try:
                with h5py.File(path) as file:
                    self.sources.append(json.loads(file.attrs.get("embodiment", "{}")))
                    if camera_names is None:
                        found = sorted(file["observations/images"])
                        camera_names = tuple(self.sources[0].get("camera_names") or found)
                    # The original pairs a real robot's observation with the action before it.
                    lag = 0 if file.attrs.get("sim", True) else 1
                    actions.append(file["action"][: len(file["action"]) - lag])
                    qpos.append(file["observations/qpos"][lag:])
                    views = [file[f"observations/images/{name}"][lag:] for name in camera_names]
                    images.append(np.stack(views, axis=1).transpose(0, 1, 4, 2, 3))
            except (OSError, KeyError, ValueError) as exc:
                raise ConfigurationError(f"{path} is not an episode in the ACT layout: {exc}") from exc
        lengths = [len(episode) for episode in actions]
        if lengths != [len(episode) for episode in qpos] or lengths != [len(episode) for episode in images]:
            raise ConfigurationError(
                f"an episode in {paths[0].parent} has more observations than actions, or fewer"
            )
        try:
            self._qpos, self._actions = np.concatenate(qpos), np.concatenate(actions)
            self._images = np.concatenate(images)  # (N, cameras, 3, H, W)
        except ValueError as exc:
            raise ConfigurationError(
                f"the episodes in {paths[0].parent} differ in their sizes: {exc}"
            ) from exc
        if self._images.dtype != np.uint8:
            raise ConfigurationError(
                f"the images in {paths[0].parent} are {self._images.dtype}, expected uint8"
            )
        self.ends = np.repeat(np.cumsum(lengths), lengths)
        self.episode = np.repeat(np.arange(len(lengths)), lengths)
        self.embodiment = self._agree(paths, camera_names or ())
        self.statistics = Statistics(
            qpos_mean=self._qpos.mean(0, dtype=np.float64).astype(np.float32),
            qpos_std=self._qpos.std(0, dtype=np.float64).clip(MIN_STD).astype(np.float32),
            action_mean=self._actions.mean(0, dtype=np.float64).astype(np.float32),
            action_std=self._actions.std(0, dtype=np.float64).clip(MIN_STD).astype(np.float32),
        )
        stats = self.statistics
        self._qpos = ((self._qpos - stats.qpos_mean) / stats.qpos_std).astype(np.float32)
        self._actions = ((self._actions - stats.action_mean) / stats.action_std).astype(np.float32)

    def _agree(self, paths: list[Path], camera_names: tuple[str, ...]) -> Embodiment:
        """Return the one body of all files; sizes come from the arrays."""
        known: dict[str, Any] = {}
        for field in fields(Embodiment):
            known[field.name] = self.sources[0].get(field.name)
            for path, source in zip(paths, self.sources, strict=True):
                if source.get(field.name) != known[field.name]:
                    raise ConfigurationError(
                        f"{field.name} is {source.get(field.name)!r} in {path}, but {known[field.name]!r} in "
                        f"{paths[0]}: train on the episodes of one body"
                    )
        height, width = self._images.shape[-2:]
        known |= {"camera_names": camera_names, "image_height": height, "image_width": width}
        known |= {"state_dim": self._qpos.shape[1], "action_dim": self._actions.shape[1]}
        return Embodiment(**known)

    def provenance(self) -> dict[str, Any]:
        """Return what the files say about where they come from."""
        seeds = [source["seed"] for source in self.sources if "seed" in source]
        return {name: self.sources[0].get(name) for name in ("simulator", "task")} | {"seeds": seeds}

    def batch(
        self, frames: np.ndarray, chunk_size: int, shifts: np.ndarray | None, device: torch.device
    ) -> Batch:
        """Return these ``frames``, each with the actions that follow it.

        Args:
            frames: Indices, (B,).
            chunk_size: Actions wanted of each; past an episode's end they are zero and marked as padding.
            shifts: Pixels to move each picture by, int (B, cameras, 2); what enters repeats the edge.
            device: Where to put it.
        """
        steps = frames[:, None] + np.arange(chunk_size)
        is_pad = steps >= self.ends[frames][:, None]
        actions = self._actions[np.minimum(steps, len(self._actions) - 1)]
        actions[is_pad] = 0
        images = self._images[frames]
        if shifts is not None:
            height, width = images.shape[-2:]
            rows = (np.arange(height) + shifts[..., :1]).clip(0, height - 1)  # (B, cameras, H)
            columns = (np.arange(width) + shifts[..., 1:]).clip(0, width - 1)
            for index in np.ndindex(shifts.shape[:2]):
                images[index] = images[index][:, rows[index]][:, :, columns[index]]
        return Batch(
            torch.from_numpy(self._qpos[frames]).to(device),
            normalise_images(torch.from_numpy(images).to(device)),
            torch.from_numpy(actions).to(device),
            torch.from_numpy(is_pad).to(device),
        )


class Training:
    """A training between two steps: the network, its running average, and the optimiser."""

    def __init__(self, options: TrainOptions, data: Demonstrations, device: torch.device) -> None:
        self.options = options
        self.data = data
        self.device = device
        self.frames, self.validation_frames = self._split()
        torch.manual_seed(options.seed)
        self.model = Act(self._sizes(), dropout=options.dropout).to(device).train()
        self.average = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames to learn from, and frames of held-out episodes to measure by."""
        episodes = self.data.episode[-1] + 1
        held_out = math.ceil(self.options.validation_share * episodes)
        if held_out >= episodes:
            raise ConfigurationError(
                f"{episodes} episodes leave none to train on: record more, or --validation_share 0"
            )
        chosen = np.random.default_rng(self.options.seed).permutation(episodes)[:held_out]
        is_held_out = np.isin(self.data.episode, chosen)
        validation = np.flatnonzero(is_held_out)
        every = max(1, math.ceil(len(validation) / MAX_VALIDATION_FRAMES))
        return np.flatnonzero(~is_held_out), validation[::every]

    def _sizes(self) -> ActSizes:
        values: dict[str, Any] = {
            field.name: getattr(self.options, field.name, None) for field in fields(ActSizes)
        }
        values |= {name: getattr(self.data.embodiment, name) for name in ("state_dim", "action_dim")}
        try:
            return ActSizes(**values)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc

    def step(self, number: int) -> float:
        """Take optimisation step ``number`` and return its loss."""
        options = self.options
        rng = np.random.default_rng([options.seed, number])
        torch.manual_seed(int(rng.integers(2**63)))  # dropout and the style z
        frames = rng.choice(self.frames, options.batch_size)
        shifts = None
        if options.max_shift:
            shape = (options.batch_size, len(self.data.embodiment.camera_names or ()), 2)
            shifts = rng.integers(-options.max_shift, options.max_shift, shape, endpoint=True)
        batch = self.data.batch(frames, options.chunk_size, shifts, self.device)

        mu, logvar = self.model.encode(batch.qpos, batch.actions, batch.is_pad)
        latent = mu + (logvar / 2).exp() * torch.randn_like(mu)
        l1 = _l1(self.model(batch.qpos, batch.images, latent), batch)
        # Of N(mu, exp(logvar)) from N(0, 1): Kingma and Welling 2013 (arXiv 1312.6114), appendix B.
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1).mean()
        loss: Tensor = l1 + options.kl_weight * kl

        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * self._schedule(number)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        # Early on the average follows quickly, or it would remember the random start for thousands of steps.
        decay = min(options.ema_decay, (1 + number) / (10 + number))
        with torch.no_grad():
            for averaged, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(parameter, 1 - decay)
        return loss.item()

    def _schedule(self, number: int) -> float:
        """Return the share of ``lr`` to use: a linear rise, then half a cosine down to zero."""
        steps, warmup_steps = self.options.steps, self.options.warmup_steps
        if number < warmup_steps:
            return (number + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (number - warmup_steps) / max(1, steps - warmup_steps)))

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Return the L1 loss of held-out frames with the style z at zero, as a robot would meet them."""
        frames, size = self.validation_frames, self.options.batch_size
        if not len(frames):
            return {}
        total = 0.0
        for start in range(0, len(frames), size):
            part = frames[start : start + size]
            batch = self.data.batch(part, self.options.chunk_size, None, self.device)
            total += len(part) * _l1(self.average(batch.qpos, batch.images), batch).item()
        return {"validation_l1": total / len(frames)}

    def save_state(self, path: Path, progress: dict[str, Any]) -> None:
        """Write everything :meth:`resume` needs, and ``progress`` as it is."""
        buffer = io.BytesIO()
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save({"progress": json.dumps(progress), **parts}, buffer)
        replace_file(path, buffer.getvalue())

    def resume(self, path: Path) -> dict[str, Any]:
        """Take up a saved training and return its progress.

        Raises:
            ConfigurationError: There is none, or it was told something else.
        """
        if not path.is_file():
            raise ConfigurationError(f"nothing to resume: there is no {path.name} in {path.parent}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        progress: dict[str, Any] = json.loads(state["progress"])
        for name, known in progress["options"].items():
            value = getattr(self.options, name)
            value = list(value) if isinstance(value, tuple) else value
            if name not in CHANGEABLE and value != known:
                raise ConfigurationError(f"--{name} is {value!r}, but the training to resume had {known!r}")
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        return progress


def train(options: TrainOptions, *, on_save: Callable[[int], object] = lambda step: None) -> dict[str, Any]:
    """Train, writing the checkpoint into ``output_dir``, and return what ``train.json`` holds.

    Args:
        options: What to train, from what.
        on_save: Called after each save with the number of steps taken.

    Raises:
        ConfigurationError: The demonstrations or the options cannot be used.
    """
    started = time.monotonic()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    paths = sorted(Path(options.data_dir).glob("*.hdf5"))[: options.max_episodes]
    if not paths:
        raise ConfigurationError(
            f"no *.hdf5 files in {options.data_dir}: record demonstrations into it first"
        )
    data = Demonstrations(paths, options.camera_names)
    training = Training(options, data, device)
    report: dict[str, Any] = {
        "command": ["python", "-m", "policies.act.train", *_command(options)],
        "options": asdict(options),
        "seed": options.seed,
        "episodes": len(paths),
        "validation_episodes": len(np.unique(data.episode[training.validation_frames])),
        "frames": len(data.episode),
        "demonstrations": data.provenance(),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "minutes": 0.0,
        "history": [],
    }
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    first, minutes_before = 0, 0.0
    if options.resume:
        before = training.resume(output_dir / STATE_FILE)
        report["history"] = before["history"]
        first, minutes_before = before["history"][-1]["step"], before["minutes"]
    dataset_id = options.dataset_id or Path(options.data_dir).resolve().name
    checkpoint = Checkpoint(
        training.average, data.embodiment, {dataset_id: data.statistics}, options.n_action_steps
    )

    losses: list[float] = []  # since the last save
    progress = tqdm(
        range(first, options.steps),
        initial=first,
        total=options.steps,
        desc="training",
        unit="step",
        mininterval=1.0,
    )
    for number in progress:
        losses.append(training.step(number))
        if number % 20 == 0:
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
        done = number + 1
        if done % options.save_every and done != options.steps:
            continue
        figures = {"step": done, "loss": float(np.mean(losses)), **training.validate()}
        progress.write("  ".join(f"{name} {value:.6g}" for name, value in figures.items()))
        losses.clear()
        report["history"].append(figures)
        report["minutes"] = round(minutes_before + (time.monotonic() - started) / 60, 2)
        save_checkpoint(output_dir, checkpoint)
        replace_file(output_dir / "train.json", json.dumps(report, indent=2).encode() + b"\n")
        training.save_state(output_dir / STATE_FILE, report)
        on_save(done)
    return report


def _l1(predicted: Tensor, batch: Batch) -> Tensor:
    """Return the mean absolute error over the actions that were demonstrated, not the padding."""
    error = (predicted - batch.actions).abs().mean(-1)
    return (error * ~batch.is_pad).sum() / (~batch.is_pad).sum()


def _command(options: TrainOptions) -> list[str]:
    """Return the flags that give these options."""
    words: list[str] = []
    for field in fields(TrainOptions):
        value = getattr(options, field.name)
        if value == field.default or field.name == "resume":
            continue
        words += [f"--{field.name}", *(value if isinstance(value, tuple) else [str(value)])]
    return words


def _parse(argv: list[str]) -> TrainOptions:
    parser = argparse.ArgumentParser(
        prog="python -m policies.act.train",
        description="Train ACT from demonstrations.",
        allow_abbrev=False,
    )
    kinds = {"max_episodes": int, "threads": int}
    for field in fields(TrainOptions):
        flag, text = f"--{field.name}", _HELP[field.name]
        if field.name in ("data_dir", "output_dir"):
            parser.add_argument(flag, required=True, help=text)
        elif field.name == "resume":
            parser.add_argument(flag, action="store_true", help=text)
        elif field.name == "camera_names":
            parser.add_argument(flag, nargs="+", metavar="CAMERA", help=text)
        else:
            shown = "" if field.default is None else " (default: %(default)s)"
            kind = kinds.get(field.name) or (str if field.default is None else type(field.default))
            choices = sorted(BACKBONES) if field.name == "backbone" else None
            parser.add_argument(flag, type=kind, default=field.default, choices=choices, help=text + shown)
    values = vars(parser.parse_args(argv))
    if values["camera_names"] is not None:
        values["camera_names"] = tuple(values["camera_names"])
    return TrainOptions(**values)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        train(_parse(sys.argv[1:] if argv is None else argv))
    except ConfigurationError as exc:
        tqdm.write(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
