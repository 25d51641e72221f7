"""Residual networks that turn an image into a grid of features.

``resnet18`` to ``resnet152`` have torchvision's parameter names, which the original ACT's checkpoints use,
and their batch norm is frozen. ``small`` is the same idea for training from nothing on a CPU: a few layers,
and a normalisation that needs no statistics of a data set. ``tiny`` looks at patches of 8 pixels, as ViT
does, at half the cost. ``point`` finds one thing in each image, and says where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BACKBONES", "DILATED", "FrozenBatchNorm", "PatchResNet", "PointFinder", "ResNet", "backbone_of"]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants.

    ACT trains with a handful of images a batch, too few to estimate statistics from. Everything is a buffer,
    as in the original: nothing here is trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, width, H, W) normalised, the same shape."""
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


def _group_norm(width: int) -> nn.Module:
    # 16 channels a group: Wu and He 2018 (arXiv 1803.08494) found it as good as 32 groups.
    return nn.GroupNorm(width // 16, width)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, width_in: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), norm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H / stride, W / stride) for ``x`` (B, width_in, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a shortcut around them; torchvision's form of it.

    The 3x3 one has the stride, where the paper (arXiv 1512.03385) gives it to the first.
    """

    def __init__(self, width_in: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = norm(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), norm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H / stride, W / stride) for ``x`` (B, width_in, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        return functional.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Args:
        stem: Kernel size, stride and width of the first convolution.
        max_pool: Whether a 3x3 maximum of stride 2 follows it.
        stages: Width, number of blocks, and stride of the first block, for ``layer1``, ``layer2`` and so on.
        norm: Makes the normalisation of a given width; the original's name ``bn`` stays whatever it makes.
        block: Makes a block of a given width before and after it, stride and norm.
    """

    def __init__(
        self,
        *,
        stem: tuple[int, int, int],
        max_pool: bool,
        stages: tuple[tuple[int, int, int], ...],
        norm: Callable[[int], nn.Module],
        block: Callable[[int, int, int, Callable[[int], nn.Module]], nn.Module] = BasicBlock,
    ) -> None:
        super().__init__()
        kernel, stride, width_in = stem
        self.conv1 = nn.Conv2d(3, width_in, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = norm(width_in)
        self.max_pool = max_pool
        self.num_stages = len(stages)
        for number, (width, blocks, stride) in enumerate(stages, start=1):
            layer = [block(width_in, width, stride, norm)]
            layer += [block(width, width, 1, norm) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            width_in = width
        self.num_channels = width_in
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def dilate_last_stage(self) -> None:
        """Let the last stage dilate its 3x3 convolutions instead of its stride of 2, in all blocks but one.

        As torchvision's ``replace_stride_with_dilation=[False, False, True]``. Parameters stay the same.
        """
        for module in self.get_submodule(f"layer{self.num_stages}").modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
            elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, num_channels, h, w) of normalised ``images`` (B, 3, H, W)."""
        x = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        if self.max_pool:
            x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for number in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x


# Blocks of each stage, of torchvision's networks with two convolutions a block, and of those with three.
_BASIC = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_BOTTLENECK = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}

# Backbones whose last stage can be dilated.
DILATED = tuple(_BOTTLENECK)


def _resnet(blocks: tuple[int, ...], *, wide: bool) -> ResNet:
    widths = (256, 512, 1024, 2048) if wide else (64, 128, 256, 512)
    return ResNet(
        stem=(7, 2, 64),
        max_pool=True,
        stages=tuple(zip(widths, blocks, (1, 2, 2, 2), strict=True)),
        norm=FrozenBatchNorm,
        block=Bottleneck if wide else BasicBlock,
    )


def _small() -> ResNet:
    """Return a network of 0.3 million parameters.

    A 96x96 image costs 18 million multiplications and becomes 6x6 features.
    """
    return ResNet(stem=(5, 4, 32), max_pool=False, stages=((64, 1, 2), (128, 1, 2)), norm=_group_norm)


class PatchResNet(ResNet):
    """A residual network that adds to each cell of its first convolution where the cell is, as ViT does.

    Padding tells a shallow network nothing of the middle of an image, and ACT's attention gives values no
    positions, so that nothing else would.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, num_channels, h, w) of normalised ``images`` (B, 3, H, W)."""
        x: Tensor = self.bn1(self.conv1(images))
        width, height, columns = x.shape[1:]
        x = functional.relu(x + _cosines(width, height, columns, x.device), inplace=True)
        for number in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x


def _cosines(width: int, height: int, columns: int, device: torch.device) -> Tensor:
    """Return (width, height, columns): cosines of rising frequency, half of the channels along each axis."""
    frequency = math.pi * torch.arange(1, width // 2 + 1, device=device) / 2
    y = torch.cos(frequency[:, None] * ((torch.arange(height, device=device) + 0.5) / height))
    x = torch.cos(frequency[:, None] * ((torch.arange(columns, device=device) + 0.5) / columns))
    shape = (width // 2, height, columns)
    return torch.cat([y[:, :, None].expand(shape), x[:, None, :].expand(shape)])


def _tiny() -> ResNet:
    """Return a network of 0.25 million parameters.

    A 96x128 image costs 14 million multiplications, where ``small`` costs 23 million and passes four times as
    many cells through memory, and becomes 6x8 features.
    """
    return PatchResNet(stem=(9, 8, 64), max_pool=False, stages=((128, 1, 2),), norm=_group_norm)


class PointFinder(nn.Module):
    """The mean place of what a small network takes for the thing that matters, in cosines and sines.

    A spatial softmax (Levine et al. 2016, arXiv 1504.00702; Finn et al. 2016, arXiv 1509.06113) over pixels,
    not over the cells of a deep network: a thing of a few pixels is found to a fraction of one. ACT gives all
    cameras the same positions, so each image's mean colour goes along, which tells them apart.
    """

    _WIDTH, _OCTAVES = 16, 6
    # Mean colours of two cameras differ by a tenth, in normalised images that are mostly dark.
    _DARK, _CONTRAST = -1.3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, self._WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(self._WIDTH, 1, 3, padding=1)
        self.num_channels = 2 * (1 + 2 * self._OCTAVES) + 3

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, num_channels, 1, 1) of normalised ``images`` (B, 3, H, W)."""
        return self.encode(self.find(images), images.mean((2, 3)))

    def find(self, images: Tensor) -> Tensor:
        """Return column and row of the thing, (B, 2), from -1 to 1 across the image."""
        height, width = images.shape[-2:]
        score = self.conv2(functional.relu(self.conv1(images), inplace=True))
        weights = score.flatten(1).softmax(-1).view(-1, height, width)
        x = weights.sum(1) @ _middles(width, images.device)
        y = weights.sum(2) @ _middles(height, images.device)
        return torch.stack([x, y], -1)

    def encode(self, places: Tensor, colours: Tensor) -> Tensor:
        """Return features (B, num_channels, 1, 1) of places (B, 2) and mean colours (B, 3)."""
        octaves = torch.arange(self._OCTAVES, device=places.device)
        angles = (places[..., None] * (math.pi / 2 * 2.0**octaves)).flatten(1)
        colours = (colours - self._DARK) * self._CONTRAST
        features = torch.cat([places, angles.sin(), angles.cos(), colours], -1)
        return features[..., None, None]


def _middles(length: int, device: torch.device) -> Tensor:
    """Return (length,): the middles of pixels on an axis from -1 to 1."""
    return (torch.arange(length, device=device) + 0.5) * (2 / length) - 1


BACKBONES: dict[str, Callable[[], ResNet | PointFinder]] = {
    "point": PointFinder,
    "small": _small,
    "tiny": _tiny,
    **{name: partial(_resnet, blocks, wide=False) for name, blocks in _BASIC.items()},
    **{name: partial(_resnet, blocks, wide=True) for name, blocks in _BOTTLENECK.items()},
}

# Blocks of each stage of our own.
_UNNAMED = {(1, 1): "small", (1,): "tiny"}


def backbone_of(names: Iterable[str]) -> str | None:
    """Return which backbone has parameters of these names, by its blocks; ``None`` where none has.

    The shapes are not compared: wider networks have the same names.
    """
    names = set(names)
    found: dict[str, set[str]] = {}
    wide = False
    for name in names:
        stage, _, rest = name.partition(".")
        if stage.startswith("layer"):
            found.setdefault(stage, set()).add(rest.partition(".")[0])
            wide = wide or ".conv3." in name
    counts = tuple(len(found[stage]) for stage in sorted(found))
    if not counts:
        return "point" if "conv2.weight" in names else None
    if not wide and counts in _UNNAMED:
        return _UNNAMED[counts]
    table = _BOTTLENECK if wide else _BASIC
    return next((name for name, blocks in table.items() if blocks == counts), None)
