"""ACT behind the policy contract: observations in, actions of the robot out."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from policies.act.checkpoint import ClippedStatistics, ImageStatistics, Statistics, load_checkpoint
from policies.act.model import Act, normalise_images
from robowire.errors import ConfigurationError
from robowire.images import stack_images
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import nearest
from robowire.specs import Embodiment, PolicySpec

__all__ = ["ActPolicy", "make_policy", "select_device", "split_batch"]

_OPTIONS = ("nheads", "ema")

DEFAULT_FOLDER = Path(__file__).with_name("default")


def split_batch(observations: Sequence[MetaObs], device: torch.device) -> list[list[int]]:
    """Return the indices of observations that run together."""
    if device.type == "cpu":
        # Matrix products of another size round in another order, and a grasp can hang on the last bit: one by
        # one, an episode is the same whatever else the server answers. Pairs would save 7 % of the time.
        return [[index] for index in range(len(observations))]
    # A checkpoint that does not name its image size takes any, so the sizes in a batch may differ.
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, observation in enumerate(observations):
        shape = () if observation.image is None else observation.image.shape
        # Of a prefix as many actions count as there are steps of delay.
        kind = (*shape, observation.delay or 0, observation.prefix_raw is None)
        groups.setdefault(kind, []).append(index)
    return list(groups.values())


class ActPolicy:
    """A loaded model with one set of statistics. Stateless: temporal ensembling belongs to a session.

    Attributes:
        spec: What it needs and gives.
        device: Where the model is.
    """

    strided_images = True

    def __init__(
        self,
        model: Act,
        statistics: Statistics,
        spec: PolicySpec,
        device: torch.device,
        images: ImageStatistics | None = None,
    ) -> None:
        self.spec = spec
        self._model = model.eval().to(device)
        self._statistics = statistics
        self.device = device
        self._images: tuple[torch.Tensor, ...] = ()
        if images is not None:
            self._images = tuple(
                torch.from_numpy(numbers)[..., None, None].to(device) for numbers in (images.mean, images.std)
            )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation.

        Args:
            observations: ``image`` is uint8 (cameras, 3, H, W), RGB, in the spec's order of cameras;
                ``state`` is float (state_dim,), as the demonstrations recorded it. The first ``delay``
                actions of a ``prefix`` are answered as they are, and continued.

        Returns:
            float32 (B, chunk_size, action_dim), not normalised. A fresh array.
        """
        sizes = self._model.sizes
        actions = np.empty((len(observations), sizes.chunk_size, sizes.action_dim), dtype=np.float32)
        for indices in split_batch(observations, self.device):
            actions[indices] = self._infer_alike([observations[index] for index in indices])
        return actions

    @torch.inference_mode()
    def _infer_alike(self, observations: Sequence[MetaObs]) -> np.ndarray:
        stats = self._statistics
        states = np.stack([np.asarray(observation.state, dtype=np.float32) for observation in observations])
        # In C order: torch has other kernels for other orders, which round otherwise in the last bit.
        images = stack_images([np.asarray(observation.image) for observation in observations])
        # LeRobot's statistics are float64: a constant number's range is 1e-8 there.
        normal = ((states - stats.qpos_mean) / stats.qpos_std).astype(np.float32, copy=False)
        if isinstance(stats, ClippedStatistics):
            normal = np.clip(normal, -stats.state_limit, stats.state_limit)
        qpos = torch.from_numpy(normal).to(self.device)
        # Images cross to the device as bytes, a quarter of their floats.
        pixels = normalise_images(torch.from_numpy(images).to(self.device), *self._images)
        prefix = _prefix(observations, stats)
        if prefix is None:
            normalised = self._model(qpos, pixels)
        else:
            given = torch.from_numpy(prefix).to(self.device)
            normalised = self._model(qpos, pixels, prefix=given)
            normalised[:, : given.shape[1]] = given
        actions: np.ndarray = normalised.cpu().numpy() * stats.action_std + stats.action_mean
        if isinstance(stats, ClippedStatistics):
            actions = np.clip(actions, stats.action_low, stats.action_high)
        return actions


def _prefix(observations: Sequence[MetaObs], stats: Statistics) -> np.ndarray | None:
    """Return the actions that are executed meanwhile, normalised, float32 (B, delay, action_dim).

    ``None`` without any. The observations share one delay.
    """
    delay = observations[0].delay
    if not delay:
        return None
    rows = []
    for observation in observations:
        if observation.prefix_raw is not None:
            rows.append(np.asarray(observation.prefix_raw[:delay], np.float32))
        else:
            assert observation.prefix is not None  # the server has checked it
            rows.append((observation.prefix[:delay] - stats.action_mean) / stats.action_std)
    return np.stack(rows).astype(np.float32, copy=False)


def make_policy(options: PolicyOptions) -> ActPolicy:
    """Return the policy of a checkpoint, or of the embedded default.

    ``options.extra`` may hold ``nheads``, which the weights of the original's checkpoints do not show, and
    ``ema``: whether to take the average of the weights where a file has both.

    Raises:
        ConfigurationError: The checkpoint, the device, the dataset id or an option cannot be used.
    """
    for name in options.extra:
        if name not in _OPTIONS:
            raise ConfigurationError(
                f"policy 'act' has no option {name!r}.{nearest(name, _OPTIONS)} Known: {', '.join(_OPTIONS)}"
            )
    ema = options.extra.get("ema")
    if ema is not None and not isinstance(ema, bool):
        raise ConfigurationError(f"ema is {ema!r}, expected true or false")
    nheads = options.extra.get("nheads")
    if nheads is not None and (not isinstance(nheads, int) or nheads < 1):
        raise ConfigurationError(f"nheads is {nheads!r}, expected a positive integer")
    device = select_device(options.device)
    folder = (
        DEFAULT_FOLDER
        if options.model_name_or_path is None
        else Path(options.model_name_or_path).expanduser()
    )
    checkpoint = load_checkpoint(folder, camera_names=options.camera_names, nheads=nheads, ema=ema)

    known = list(checkpoint.statistics)
    dataset_id = known[0] if options.dataset_id is None else options.dataset_id
    if dataset_id not in checkpoint.statistics:
        if known == [None]:
            raise ConfigurationError(
                f"dataset_id is {dataset_id!r}, but {folder} has one set of statistics, without a name: "
                "leave --dataset_id out"
            )
        names = [str(name) for name in known]
        raise ConfigurationError(
            f"{folder} has no statistics called {dataset_id!r}.{nearest(str(dataset_id), names)} "
            f"Known: {', '.join(names)}"
        )
    sizes = checkpoint.model.sizes
    if device.type == "cpu" and sizes.backbone == "small" and "OMP_NUM_THREADS" not in os.environ:
        # So small a network gains a tenth from a second core that is idle, and loses half of its speed where
        # simulators keep that core busy, because OpenMP's threads wait for each other in a loop.
        torch.set_num_threads(1)
    body = {
        field.name: getattr(checkpoint.embodiment, field.name) for field in dataclasses.fields(Embodiment)
    }
    spec = PolicySpec(
        **body,
        policy="act",
        chunk_size=sizes.chunk_size,
        n_action_steps=checkpoint.n_action_steps,
        dataset_id=dataset_id,
        checkpoint=checkpoint.digest,
        temporal_ensemble_coeff=checkpoint.temporal_ensemble_coeff,
        rtc="trained" if sizes.rtc_max_delay_steps else "none",
        rtc_max_delay_steps=sizes.rtc_max_delay_steps,
    )
    policy = ActPolicy(checkpoint.model, checkpoint.statistics[dataset_id], spec, device, checkpoint.images)
    if spec.image_height is not None and spec.image_width is not None:
        # The first inference takes several times as long as any other; no robot should be the one to wait.
        shape = (len(spec.camera_names or ()), 3, spec.image_height, spec.image_width)
        policy.infer([MetaObs(state=np.zeros(sizes.state_dim), image=np.zeros(shape, np.uint8))])
    return policy


def select_device(name: str) -> torch.device:
    """Return the device called ``name``: cpu, cuda, cuda:N, or auto for CUDA where there is one.

    Raises:
        ConfigurationError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ConfigurationError(f"device is {name!r}, expected cpu, cuda, cuda:N or auto")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError("no CUDA device is available: use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigurationError(
                f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)"
            )
    return device
