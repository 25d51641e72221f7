"""Demonstrations in the original ACT's HDF5 layout: episodes on disk in, normalised batches of frames out.

One episode a file: ``observations/qpos`` (T, state_dim), ``observations/images/CAMERA`` (T, H, W, 3) uint8
or T compressed images, ``action`` (T, action_dim), and for a mobile robot ``base_action`` (T, 2), which is
joined to the action. Attributes: ``sim``, and ``embodiment``, a JSON object with the control rate, layouts,
control space and type. A file without ``embodiment`` holds what the original's do: absolute joint positions.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from policies.act.checkpoint import Statistics
from policies.act.model import normalise_images
from robowire.errors import ConfigurationError
from robowire.progress import track
from robowire.specs import Embodiment

__all__ = ["COLORS", "Batch", "Demonstrations", "free_memory"]

# A joint that hardly moves in the demonstrations must not turn noise into large inputs; the original's bound.
MIN_STD = 1e-2

# Share of the free memory that images may take: optimiser, activations and file caches need the rest.
MEMORY_SHARE = 0.5

# Files that stay open while images are read from disk; a process may usually have 1024.
MAX_OPEN_FILES = 128

# Order of the colours in compressed images, as a decoder gives them.
COLORS = ("rgb", "bgr")

_ORIGINAL_BODY = {"ctrl_space": "joint", "ctrl_type": "absolute"}
_IMAGES = "observations/images"
_EXPECTED_IMAGES = "expected (frames, height, width, 3) uint8 or compressed images"


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
    """Every frame of the episodes. Images are in memory as bytes where they fit, else read from disk.

    10,000 frames of two 128x128 cameras take 1 GB; 50 episodes of ALOHA, each of 400 frames of two 480x640
    cameras, 37 GB.

    Args:
        paths: Files, one episode each.
        camera_names: Cameras in the policy's order; ``None`` for the embodiment's, else all of the first.
        sim: Whether files without the attribute ``sim`` were recorded in simulation; ``None`` refuses them.
        image_colors: Order of the colours that decoding a compressed image gives: ``"bgr"`` for files that
            OpenCV wrote from RGB arrays, as mobile ALOHA does.
        max_image_bytes: Most memory for images; ``None`` for half of what is free.

    Attributes:
        embodiment: What the files say about the body, and the sizes found.
        sources: The files' ``embodiment`` attributes, in their order.
        statistics: Over all episodes.
        ends: For each frame, the index one past its episode's last frame.
        episode: For each frame, its episode's number.
        in_memory: Whether the images were read at once.
    """

    def __init__(
        self,
        paths: list[Path],
        camera_names: tuple[str, ...] | None,
        *,
        sim: bool | None = None,
        image_colors: str = "rgb",
        max_image_bytes: int | None = None,
    ) -> None:
        self._paths, self._colors = paths, image_colors
        self._files: OrderedDict[int, h5py.File] = OrderedDict()
        self.sources: list[dict[str, Any]] = []
        self._lags: list[int] = []
        qpos, actions = [], []
        size = None
        for path in paths:
            with _reading(path), h5py.File(path) as file:
                _require_layout(path, file)
                source = _embodiment_of(file)
                if camera_names is None:
                    camera_names = tuple(source.get("camera_names") or sorted(file[_IMAGES]))
                # The original pairs a real robot's observation with the action before it.
                lag = 0 if _is_sim(path, file, sim) else 1
                episode_actions = _actions_of(path, file)
                actions.append(episode_actions[: len(episode_actions) - lag])
                qpos.append(file["observations/qpos"][lag:])
                for name in camera_names:
                    found = self._image_size(path, file, name, len(episode_actions))
                    size = size or found
                    if found != size:
                        raise ConfigurationError(
                            f"camera {name!r} of {path}: found images of {found[0]}x{found[1]}, expected "
                            f"{size[0]}x{size[1]} as those before: one size for all cameras and episodes"
                        )
            self.sources.append(source)
            self._lags.append(lag)
        lengths = [len(episode) for episode in actions]
        if lengths != [len(episode) for episode in qpos]:
            raise ConfigurationError(
                f"an episode in {paths[0].parent} has more observations than actions, or fewer"
            )
        try:
            self._qpos, self._actions = np.concatenate(qpos), np.concatenate(actions)
        except ValueError as exc:
            raise ConfigurationError(
                f"the episodes in {paths[0].parent} differ in their sizes: {exc}"
            ) from exc
        self.ends = np.repeat(np.cumsum(lengths), lengths)
        self.episode = np.repeat(np.arange(len(lengths)), lengths)
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._cameras = camera_names or ()
        self._size = size or (0, 0)
        self.embodiment = self._agree(paths)
        self.statistics = Statistics(
            qpos_mean=self._qpos.mean(0, dtype=np.float64).astype(np.float32),
            qpos_std=self._qpos.std(0, dtype=np.float64).clip(MIN_STD).astype(np.float32),
            action_mean=self._actions.mean(0, dtype=np.float64).astype(np.float32),
            action_std=self._actions.std(0, dtype=np.float64).clip(MIN_STD).astype(np.float32),
        )
        stats = self.statistics
        self._qpos = ((self._qpos - stats.qpos_mean) / stats.qpos_std).astype(np.float32)
        self._actions = ((self._actions - stats.action_mean) / stats.action_std).astype(np.float32)
        self._images = self._read_images(max_image_bytes)

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory."""
        return self._images is not None

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
            chunk_size: Number of actions for each; past an episode's end they are zero and marked as padding.
            shifts: Pixels to move each image by, int (B, cameras, 2); what enters repeats the edge.
            device: Device of the result.
        """
        images = self.images(frames)
        if shifts is not None:
            height, width = images.shape[-2:]
            rows = (np.arange(height) + shifts[..., :1]).clip(0, height - 1)  # (B, cameras, H)
            columns = (np.arange(width) + shifts[..., 1:]).clip(0, width - 1)
            for index in np.ndindex(shifts.shape[:2]):
                images[index] = images[index][:, rows[index]][:, :, columns[index]]
        qpos, actions, is_pad = self.targets(frames, chunk_size, device)
        return Batch(qpos, normalise_images(torch.from_numpy(images).to(device)), actions, is_pad)

    def targets(
        self, frames: np.ndarray, chunk_size: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``qpos``, ``actions`` and ``is_pad`` of a :class:`Batch`, for those who have the images."""
        steps = frames[:, None] + np.arange(chunk_size)
        is_pad = steps >= self.ends[frames][:, None]
        actions = self._actions[np.minimum(steps, len(self._actions) - 1)]
        actions[is_pad] = 0
        return (
            torch.from_numpy(self._qpos[frames]).to(device),
            torch.from_numpy(actions).to(device),
            torch.from_numpy(is_pad).to(device),
        )

    def close(self) -> None:
        """Close the files that images are read from."""
        while self._files:
            self._files.popitem()[1].close()

    def _agree(self, paths: list[Path]) -> Embodiment:
        """Return the one body of all files; sizes come from the arrays."""
        known: dict[str, Any] = {}
        for field in fields(Embodiment):
            known[field.name] = self.sources[0].get(field.name)
            # Earlier recordings do not have these; one that has them speaks for all.
            added = field.name.endswith(("_names", "_units", "_signs")) and field.name != "camera_names"
            if added and known[field.name] is None:
                known[field.name] = next(filter(None, (s.get(field.name) for s in self.sources)), None)
            for path, source in zip(paths, self.sources, strict=True):
                if added and source.get(field.name) is None:
                    continue
                if source.get(field.name) != known[field.name]:
                    raise ConfigurationError(
                        f"{field.name} is {source.get(field.name)!r} in {path}, but {known[field.name]!r} in "
                        f"{paths[0]}: train on the episodes of one body"
                    )
        height, width = self._size
        known |= {"camera_names": self._cameras, "image_height": height, "image_width": width}
        known |= {"state_dim": self._qpos.shape[1], "action_dim": self._actions.shape[1]}
        try:
            return Embodiment(**known)
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(f"the embodiment in {paths[0]} cannot be used: {exc}") from exc

    # -- images ------------------------------------------------------------------------------------------

    def _image_size(self, path: Path, file: h5py.File, name: str, length: int) -> tuple[int, int]:
        """Return height and width of a camera's images."""
        if name not in file[_IMAGES]:
            raise ConfigurationError(
                f"{path} is not an episode in the ACT layout: it has no camera {name!r}, "
                f"found {', '.join(sorted(file[_IMAGES])) or 'none'}"
            )
        images = file[f"{_IMAGES}/{name}"]
        if len(images) != length:
            raise ConfigurationError(
                f"an episode in {path.parent} has more observations than actions, or fewer"
            )
        if _is_compressed(images):
            height, width, _ = self._decoded(path, name, images[0]).shape
            return height, width
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ConfigurationError(
                f"camera {name!r} of {path}: found {images.shape} {images.dtype}, {_EXPECTED_IMAGES}; "
                "--camera_names chooses cameras"
            )
        return int(images.shape[1]), int(images.shape[2])

    def _read_images(self, max_bytes: int | None) -> np.ndarray | None:
        """Return uint8 (N, cameras, 3, H, W), or ``None`` where they take too much memory; reports which."""
        shape = (len(self.episode), len(self._cameras), 3, *self._size)
        size = int(np.prod(shape, dtype=np.int64))
        what = (
            f"{shape[0]} frames of {shape[1]} camera(s), {shape[3]}x{shape[4]}: {_gigabytes(size)} of images"
        )
        free = free_memory()
        if max_bytes is None and free is not None:
            max_bytes = int(free * MEMORY_SHARE)
        if max_bytes is not None and size > max_bytes:
            sys.stderr.write(
                f"{what}, read from disk as they are needed: {_gigabytes(max_bytes)} of memory may be used\n"
            )
            return None
        sys.stderr.write(f"{what}, read into memory\n")
        images = np.empty(shape, np.uint8)
        for number in track(range(len(self._paths)), "reading episodes", unit="episode"):
            start = self._starts[number]
            length = int(np.count_nonzero(self.episode == number))
            with _reading(self._paths[number]), h5py.File(self._paths[number]) as file:
                for camera, name in enumerate(self._cameras):
                    target = images[start : start + length, camera]
                    if _is_compressed(file[f"{_IMAGES}/{name}"]):
                        for index in range(length):
                            target[index] = self._frame(number, file, name, index)
                    else:
                        recorded = file[f"{_IMAGES}/{name}"][self._lags[number] :]
                        target[:] = recorded.transpose(0, 3, 1, 2)
        return images

    def images(self, frames: np.ndarray) -> np.ndarray:
        """Return uint8 (B, cameras, 3, H, W), a fresh array."""
        if self._images is not None:
            chosen: np.ndarray = self._images[frames]
            return chosen
        images = np.empty((len(frames), len(self._cameras), 3, *self._size), np.uint8)
        for row, frame in enumerate(frames):
            number = int(self.episode[frame])
            with _reading(self._paths[number]):
                file = self._open(number)
                for camera, name in enumerate(self._cameras):
                    images[row, camera] = self._frame(number, file, name, int(frame - self._starts[number]))
        return images

    def _frame(self, number: int, file: h5py.File, name: str, index: int) -> np.ndarray:
        """Return one image, uint8 (3, H, W)."""
        images = file[f"{_IMAGES}/{name}"]
        image = images[index + self._lags[number]]
        if _is_compressed(images):
            image = self._decoded(self._paths[number], name, image)
            if image.shape[:2] != self._size:
                raise ConfigurationError(
                    f"camera {name!r} of {self._paths[number]}: found an image of {image.shape[0]}x"
                    f"{image.shape[1]}, expected {self._size[0]}x{self._size[1]} as those before"
                )
        transposed: np.ndarray = image.transpose(2, 0, 1)
        return transposed

    def _decoded(self, path: Path, name: str, data: Any) -> np.ndarray:
        """Return a compressed image, uint8 (H, W, 3); zeros after its end are padding."""
        try:
            from PIL import Image
        except ImportError as exc:
            raise ConfigurationError(
                f"camera {name!r} of {path} holds compressed images, which need pillow: "
                "pip install 'robowire[images]'"
            ) from exc
        try:
            with Image.open(io.BytesIO(np.asarray(data, np.uint8).tobytes())) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as exc:
            raise ConfigurationError(
                f"camera {name!r} of {path}: found bytes that are not a compressed image, {_EXPECTED_IMAGES}"
            ) from exc
        colors: np.ndarray = pixels[..., ::-1] if self._colors == "bgr" else pixels
        return colors

    def _open(self, number: int) -> h5py.File:
        if number in self._files:
            self._files.move_to_end(number)
        else:
            while len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[number] = h5py.File(self._paths[number])
        return self._files[number]


def free_memory() -> int | None:
    """Return the bytes that this process may still allocate, ``None`` where the system does not say."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError, IndexError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(max(0, limit - pages * os.sysconf("SC_PAGE_SIZE")))
    return min(limits, default=None)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, RecursionError, AttributeError) as exc:
        raise ConfigurationError(f"{path} is not an episode in the ACT layout: {exc}") from exc


def _require_layout(path: Path, file: h5py.File) -> None:
    missing = [name for name in ("action", "observations/qpos", _IMAGES) if name not in file]
    if missing:
        raise ConfigurationError(
            f"{path} is not an episode in the ACT layout: it has no {' and no '.join(missing)}, "
            f"found {', '.join(sorted(file)) or 'nothing'}"
        )
    for name in ("action", "observations/qpos"):
        array = file[name]
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise ConfigurationError(
                f"{name} of {path}: found {array.shape} {array.dtype}, expected numbers (frames, n)"
            )


def _actions_of(path: Path, file: h5py.File) -> np.ndarray:
    """Return the actions, (T, action_dim), those of a mobile base last."""
    actions: np.ndarray = file["action"][:]
    if "base_action" not in file:
        return actions
    base = np.asarray(file["base_action"][:])
    if base.ndim != 2 or len(base) != len(actions):
        raise ConfigurationError(
            f"base_action of {path}: found {base.shape}, expected ({len(actions)}, n), a row for each action"
        )
    joined: np.ndarray = np.concatenate([actions, base], axis=1)
    return joined


def _embodiment_of(file: h5py.File) -> dict[str, Any]:
    text = file.attrs.get("embodiment")
    if text is None:
        # A base is driven by velocities, so that neither word would be right for all of the action.
        if "base_action" in file:
            return {}
        return {**_ORIGINAL_BODY, "action_hold": ["last"] * file["action"].shape[1]}
    source = json.loads(text)
    if not isinstance(source, dict):
        raise ValueError(f"its embodiment is a {type(source).__name__}, expected a JSON object")
    return source


def _is_sim(path: Path, file: h5py.File, sim: bool | None) -> bool:
    """Return whether an episode was recorded in simulation; its attribute counts before ``sim``."""
    said = file.attrs.get("sim", sim)
    if said is None:
        raise ConfigurationError(
            f"{path} does not say whether it was recorded in simulation, as it has no attribute 'sim': give "
            "--sim true to pair each observation with the action of its step, or --sim false to pair it with "
            "the action before, as the original ACT does for a real robot"
        )
    return bool(said)


def _is_compressed(images: h5py.Dataset) -> bool:
    """Return whether a camera holds files: (T,) of any length, or (T, n) padded to the longest."""
    variable = h5py.check_vlen_dtype(images.dtype)
    return (images.ndim == 1 and variable is not None) or (images.ndim == 2 and images.dtype == np.uint8)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
