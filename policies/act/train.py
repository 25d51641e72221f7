"""Train ACT from demonstrations: ``python -m policies.act.train --data_dir DIR --output_dir DIR``.

Demonstrations are HDF5 files, described in ``demonstrations.py``. What they say of the body goes into the
checkpoint, so that it can be compared with a simulator's.

With ``--rtc_max_delay_steps`` the network also learns real-time chunking at training time (arXiv 2512.05964):
a random number of the chunk's first actions is given to it, and only the others are learned. See
``docs/latency.md``.

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

import numpy as np
import torch
from torch import Tensor

from policies.act.backbone import BACKBONES
from policies.act.checkpoint import Checkpoint, load_checkpoint, replace_file, save_checkpoint
from policies.act.demonstrations import COLORS, Batch, Demonstrations
from policies.act.loss_plot import plot_losses
from policies.act.model import Act, ActSizes
from policies.act.policy import select_device
from robowire.errors import ConfigurationError
from robowire.progress import Progress

__all__ = ["TrainOptions", "Training", "main", "train"]

STATE_FILE = "training_state.pt"

# LeRobot's value for ACT: it catches rare spikes and leaves an ordinary step alone.
MAX_GRADIENT_NORM = 10.0

# What may differ when a training is taken up again: nothing that the weights depend on.
CHANGEABLE = {"data_dir", "output_dir", "n_action_steps", "save_every", "threads", "resume", "max_memory_gb"}

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
    sim: bool | None = None
    image_colors: str = "rgb"
    max_memory_gb: float | None = None
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
    use_vae: bool = True
    kl_weight: float = 10.0
    ema_decay: float = 0.999
    max_shift: int = 4
    rtc_max_delay_steps: int = 0
    init_from: str | None = None
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
        if self.image_colors not in COLORS:
            raise ConfigurationError(f"--image_colors is {self.image_colors!r}, expected rgb or bgr")
        if self.max_memory_gb is not None and not 0 <= self.max_memory_gb < math.inf:
            raise ConfigurationError(f"--max_memory_gb is {self.max_memory_gb}, expected at least 0")
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
    "sim": "true or false: whether files without the attribute 'sim' were recorded in simulation",
    "image_colors": "order of colours in compressed images; bgr for those that OpenCV wrote from RGB",
    "max_memory_gb": "memory for images; larger sets are read from disk; default: half of what is free",
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
    "use_vae": "true or false: encode styles, for demonstrators that differ; steps take a third longer",
    "kl_weight": "weight of the KL divergence, added to the L1 loss",
    "ema_decay": "of the average of the weights, which is what is saved; 0 saves the last weights",
    "max_shift": "random shift of each image, in pixels; 0 for none",
    "rtc_max_delay_steps": "most actions of a chunk that are given in training and not predicted; 0 for none",
    "init_from": "folder of an ACT checkpoint to begin from: weights of the same name and shape are taken",
    "validation_share": "share of the episodes held out; 0 for none",
    "save_every": "steps between checkpoints and validations",
    "seed": "of every random choice",
    "threads": "CPU threads; default: one for each core",
    "device": "cpu, cuda, cuda:N or auto",
    "resume": "continue from the last save in output_dir",
}


class Training:
    """A training between two steps: the network, its running average, and the optimiser."""

    def __init__(self, options: TrainOptions, data: Demonstrations, device: torch.device) -> None:
        self.options = options
        self.data = data
        self.device = device
        self.frames, self.validation_frames = self._split()
        torch.manual_seed(options.seed)
        self.model = Act(self._sizes(), dropout=options.dropout).to(device).train()
        if options.init_from is not None:
            _take_weights(self.model, Path(options.init_from))
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
            field.name: getattr(self.options, field.name)
            for field in fields(ActSizes)
            if hasattr(self.options, field.name)
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

        delay = self._delays(rng)
        prefix = None if delay is None else batch.actions[:, : options.rtc_max_delay_steps]
        if options.use_vae:
            mu, logvar = self.model.encode(batch.qpos, batch.actions, batch.is_pad)
            latent = mu + (logvar / 2).exp() * torch.randn_like(mu)
            l1 = _l1(self.model(batch.qpos, batch.images, latent, prefix, delay), batch, delay)
            # Of N(mu, exp(logvar)) from N(0, 1): Kingma and Welling 2013 (arXiv 1312.6114), appendix B.
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1).mean()
            loss: Tensor = l1 + options.kl_weight * kl
        else:
            loss = _l1(self.model(batch.qpos, batch.images, None, prefix, delay), batch, delay)

        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * self._schedule(number)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        # Early on the average follows quickly, or it would remember the random start for thousands of steps.
        decay = min(options.ema_decay, (1 + number) / (10 + number))
        with torch.no_grad():
            for averaged, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(parameter, 1 - decay)
        return loss.item()

    def _delays(self, rng: np.random.Generator) -> Tensor | None:
        """Return how many actions are given for each frame, int (B,): none for half of them, else any number.

        Half, because a policy without latency is asked without a prefix.
        """
        longest = self.options.rtc_max_delay_steps
        if not longest:
            return None
        drawn = rng.integers(1 - longest, longest, self.options.batch_size, endpoint=True)
        return torch.from_numpy(np.maximum(drawn, 0)).to(self.device)

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
    # Hidden files are not episodes: some systems leave a "._episode_0.hdf5" next to each.
    found = sorted(path for path in Path(options.data_dir).glob("*.hdf5") if not path.name.startswith("."))
    paths = found[: options.max_episodes]
    if not paths:
        raise ConfigurationError(
            f"no *.hdf5 files in {options.data_dir}: record demonstrations into it first"
        )
    memory = None if options.max_memory_gb is None else int(options.max_memory_gb * 1e9)
    data = Demonstrations(
        paths,
        options.camera_names,
        sim=options.sim,
        image_colors=options.image_colors,
        max_image_bytes=memory,
    )
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
    with Progress("training", options.steps, unit="step", done=first, least_s=0) as progress:
        for number in range(first, options.steps):
            losses.append(training.step(number))
            progress.update()
            if number % 20 == 0:
                progress.note(f"loss {np.mean(losses[-100:]):.4f}")
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
            plot_losses(report["history"], output_dir / "loss.png")
            training.save_state(output_dir / STATE_FILE, report)
            on_save(done)
    return report


def _l1(predicted: Tensor, batch: Batch, delay: Tensor | None = None) -> Tensor:
    """Return the mean absolute error over the actions that were demonstrated, not the padding.

    Args:
        predicted: (B, chunk_size, action_dim).
        batch: What was demonstrated.
        delay: int (B,), how many of the first actions were given, and so do not count.
    """
    error = (predicted - batch.actions).abs().mean(-1)
    counts = ~batch.is_pad
    if delay is not None:
        counts = counts & (torch.arange(error.shape[1], device=delay.device) >= delay[:, None])
    return (error * counts).sum() / counts.sum()


def _take_weights(model: Act, folder: Path) -> None:
    """Copy the weights of a checkpoint that ``model`` has in the same shape.

    Raises:
        ConfigurationError: The folder holds no ACT, or one of another shape.
    """
    given = load_checkpoint(folder).model.state_dict()
    own = model.state_dict()
    differ = [name for name in own if name in given and given[name].shape != own[name].shape]
    if differ:
        name = differ[0]
        raise ConfigurationError(
            f"--init_from {folder}: {name} is {tuple(given[name].shape)} there and {tuple(own[name].shape)} "
            "here: train a network of the same sizes"
        )
    model.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)


def _command(options: TrainOptions) -> list[str]:
    """Return the flags that give these options."""
    words: list[str] = []
    for field in fields(TrainOptions):
        value = getattr(options, field.name)
        if value == field.default or field.name == "resume":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{field.name}", *(value if isinstance(value, tuple) else [text])]
    return words


def _truth(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def _parse(argv: list[str]) -> TrainOptions:
    parser = argparse.ArgumentParser(
        prog="python -m policies.act.train",
        description="Train ACT from demonstrations.",
        allow_abbrev=False,
    )
    kinds: dict[str, Callable[[str], Any]] = {
        "max_episodes": int,
        "threads": int,
        "n_action_steps": int,
        "max_memory_gb": float,
        "sim": _truth,
        "use_vae": _truth,
    }
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
            choices = {"backbone": sorted(BACKBONES), "image_colors": COLORS}.get(field.name)
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
        sys.stderr.write(f"error: {exc}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
