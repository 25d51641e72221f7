"""The ACT network: qpos and images in, a chunk of actions out; all values normalised.

Zhao et al. 2023 (arXiv 2304.13705), section IV-C. Parameters carry the names of the original code, so that
its state dicts load:

    encoder*, cls_embed, latent_proj    the CVAE encoder: a demonstrated chunk -> its style z (training only)
    latent_out_proj, input_proj*        z, qpos and image features -> tokens
    backbones                           an image -> features
    transformer, query_embed, *_head    DETR's encoder and decoder (arXiv 2005.12872): tokens -> a chunk
    prefix_proj, prefix_pos_embed       ours: actions that are executed meanwhile -> tokens
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.act.backbone import BACKBONES, DILATED

__all__ = ["ACTIVATIONS", "LATENT_DIM", "Act", "ActSizes", "normalise_images"]

LATENT_DIM = 32  # of the style z; fixed in the original code

# The mean and deviation of ImageNet's pixels, which the original's backbone was trained with.
_IMAGE_MEAN = (0.485, 0.456, 0.406)
_IMAGE_STD = (0.229, 0.224, 0.225)

# Of feed-forward parts. LeRobot also names glu, which halves its input, so that its own layers cannot run it.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}


@dataclass(frozen=True)
class ActSizes:
    """Everything that decides the network's parameters, and what leaves no trace in them.

    The latter are ``nheads``, ``activation`` and ``dilation``.

    Attributes:
        state_dim: Length of qpos.
        action_dim: Length of one action.
        chunk_size: Actions predicted at once; the original calls it ``num_queries``.
        hidden_dim: Width of every token.
        nheads: Attention heads; divides ``hidden_dim``.
        enc_layers: Layers of the CVAE encoder, and of the transformer's encoder.
        dec_layers: Layers of the transformer's decoder; all but the first are dead weight, see :class:`Act`.
        dim_feedforward: Width inside a layer's feed-forward part.
        backbone: A name in ``BACKBONES``.
        pre_norm: Whether layers normalise their input instead of their output.
        activation: A name in ``ACTIVATIONS``.
        dilation: Whether the backbone's last stage dilates its convolutions in the place of a stride of 2;
            for ``resnet50`` and larger ones.
        rtc_max_delay_steps: Most actions that can be given as the beginning of a chunk; 0 for none.
    """

    state_dim: int
    action_dim: int
    chunk_size: int
    hidden_dim: int = 512
    nheads: int = 8
    enc_layers: int = 4
    dec_layers: int = 7
    dim_feedforward: int = 3200
    backbone: str = "resnet18"
    pre_norm: bool = False
    activation: str = "relu"
    dilation: bool = False
    rtc_max_delay_steps: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("pre_norm", "dilation"):
                if not isinstance(value, bool):
                    raise ValueError(f"{name} is {value!r}, expected true or false")
            elif name not in ("backbone", "activation", "rtc_max_delay_steps") and (
                not isinstance(value, int) or value < 1
            ):
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
        for name, known in (("backbone", BACKBONES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(sorted(known))}"
                )
        if self.dilation and self.backbone not in DILATED:
            raise ValueError(
                f"dilation needs one of the backbones {', '.join(DILATED)}, not {self.backbone}: "
                "torchvision has no other either"
            )
        delay = self.rtc_max_delay_steps
        if not isinstance(delay, int) or not 0 <= delay < self.chunk_size:
            raise ValueError(
                f"rtc_max_delay_steps is {delay!r}, expected 0 to {self.chunk_size - 1}, less than chunk_size"
            )
        if self.hidden_dim % self.nheads or self.hidden_dim % 4:
            raise ValueError(
                f"hidden_dim is {self.hidden_dim}, expected a multiple of nheads ({self.nheads}) and of 4"
            )


def normalise_images(images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Return float32 images for the network, of uint8 ``images`` (..., 3, H, W).

    Args:
        images: uint8 (..., 3, H, W).
        mean: (3, 1, 1), or (cameras, 3, 1, 1), of values from 0 to 1; ImageNet's by default.
        std: Of the same shape.
    """
    if mean is None or std is None:
        mean = torch.tensor(_IMAGE_MEAN, device=images.device).view(3, 1, 1)
        std = torch.tensor(_IMAGE_STD, device=images.device).view(3, 1, 1)
    # (x / 255 - mean) / std, in two passes over the pixels instead of three
    return images.float().mul_(1 / (255 * std)).sub_(mean / std)


def _sine_table(length: int, dim: int) -> Tensor:
    """Return (1, length, dim): sines and cosines of positions (Vaswani et al. 2017, section 3.5)."""
    frequency = 10000.0 ** (
        -2 * torch.div(torch.arange(dim, dtype=torch.float64), 2, rounding_mode="floor") / dim
    )
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    table = torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())
    return table.float()[None]


def _sine_grid(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return (height * width, dim): DETR's position embedding of image cells, half for y and half for x."""

    def axis(length: int) -> Tensor:
        # Positions run from 1 to length, scaled to (0, 2 pi]; 1e-6 is DETR's guard against an empty axis.
        position = (
            torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
        )
        index = torch.arange(dim // 2, device=device)
        period = 10000.0 ** (2 * torch.div(index, 2, rounding_mode="floor") / (dim // 2))
        angles = position[:, None] / period
        return torch.where(index % 2 == 0, angles.sin(), angles.cos())  # (length, dim / 2)

    y = axis(height)[:, None].expand(height, width, dim // 2)
    x = axis(width)[None, :].expand(height, width, dim // 2)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised after its shortcut, or with ``pre_norm`` before it.

    Positions enter queries and keys, not values. Unlike the original, training does not drop out attention
    weights: drawing those masks took a fifth of a step on a CPU. Answers do not depend on it.
    """

    def __init__(self, sizes: ActSizes, dropout: float) -> None:
        super().__init__()
        dim = sizes.hidden_dim
        self.self_attn = nn.MultiheadAttention(dim, sizes.nheads, batch_first=True)
        self.linear1 = nn.Linear(dim, sizes.dim_feedforward)
        self.linear2 = nn.Linear(sizes.dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = sizes.pre_norm
        self.activation = ACTIVATIONS[sizes.activation]

    def forward(self, x: Tensor, position: Tensor, is_pad: Tensor | None = None) -> Tensor:
        """Return (B, tokens, dim); tokens where ``is_pad`` (B, tokens) are not attended to."""
        given = self.norm1(x) if self.pre_norm else x
        query = given + position
        attended, _ = self.self_attn(query, query, given, key_padding_mask=is_pad, need_weights=False)
        x = x + self.dropout(attended)
        given = self.norm2(x) if self.pre_norm else self.norm1(x)
        forward = self.linear2(self.dropout(self.activation(self.linear1(given))))
        normed: Tensor = (
            x + self.dropout(forward) if self.pre_norm else self.norm2(given + self.dropout(forward))
        )
        return normed


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the encoder's tokens, and feed-forward, as in DETR."""

    def __init__(self, sizes: ActSizes, dropout: float) -> None:
        super().__init__()
        dim = sizes.hidden_dim
        self.self_attn = nn.MultiheadAttention(dim, sizes.nheads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, sizes.nheads, batch_first=True)
        self.linear1 = nn.Linear(dim, sizes.dim_feedforward)
        self.linear2 = nn.Linear(sizes.dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = sizes.pre_norm
        self.activation = ACTIVATIONS[sizes.activation]

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        position: Tensor,
        is_pad: Tensor | None = None,
    ) -> Tensor:
        """Return (B, queries, dim) for ``x`` of that shape and ``memory`` (B, tokens, dim)."""
        before = self.pre_norm
        given = self.norm1(x) if before else x
        query = given + query_position
        attended, _ = self.self_attn(query, query, given, need_weights=False)
        x = x + self.dropout(attended)
        x, given = (x, self.norm2(x)) if before else (self.norm1(x),) * 2
        attended, _ = self.multihead_attn(
            given + query_position, memory + position, memory, key_padding_mask=is_pad, need_weights=False
        )
        x = x + self.dropout(attended)
        x, given = (x, self.norm3(x)) if before else (self.norm2(x),) * 2
        forward = self.linear2(self.dropout(self.activation(self.linear1(given))))
        x = x + self.dropout(forward)
        normed: Tensor = x if before else self.norm3(x)
        return normed


class Encoder(nn.Module):
    """Encoder layers in a row, and with ``pre_norm`` a norm behind them."""

    def __init__(self, layer: EncoderLayer, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(layer.linear2.out_features) if layer.pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor, is_pad: Tensor | None = None) -> Tensor:
        """Return (B, tokens, dim)."""
        for layer in self.layers:
            x = layer(x, position, is_pad)
        normed: Tensor = self.norm(x)
        return normed


class Decoder(nn.Module):
    """The first decoder layer and the norm behind it; the further layers only hold their weights.

    Attributes:
        run_layers: How many layers run.

    The original stacks the normalised output of every layer and then takes element 0 of the stack where it
    meant the last, so its checkpoints were trained with one decoder layer whatever ``dec_layers`` says.
    Running the others would change every answer; leaving their weights out would refuse its files.
    """

    def __init__(self, layer: DecoderLayer, num_layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.run_layers = 1  # LeRobot's checkpoints were trained with all of theirs

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        position: Tensor,
        is_pad: Tensor | None = None,
    ) -> Tensor:
        """Return (B, queries, dim); ``memory`` where ``is_pad`` (B, tokens) is not attended to."""
        for layer in self.layers[: self.run_layers]:
            x = layer(x, query_position, memory, position, is_pad)
        normed: Tensor = self.norm(x)
        return normed


class Transformer(nn.Module):
    """DETR's encoder and decoder."""

    def __init__(self, sizes: ActSizes, dropout: float) -> None:
        super().__init__()
        self.encoder = Encoder(EncoderLayer(sizes, dropout), sizes.enc_layers)
        self.decoder = Decoder(DecoderLayer(sizes, dropout), sizes.dec_layers, sizes.hidden_dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, tokens: Tensor, position: Tensor, queries: Tensor, is_pad: Tensor | None = None
    ) -> Tensor:
        """Return (B, chunk, dim) of tokens (B, n, dim) at ``position`` (n, dim), and queries (chunk, dim)."""
        memory = self.encoder(tokens, position, is_pad)
        start = torch.zeros_like(queries).expand(len(tokens), -1, -1)
        decoded: Tensor = self.decoder(start, queries, memory, position, is_pad)
        return decoded


class Act(nn.Module):
    """The network. Call it for actions; :meth:`encode` gives a demonstrated chunk's style z, for training."""

    def __init__(self, sizes: ActSizes, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.sizes = sizes
        dim = sizes.hidden_dim
        self.transformer = Transformer(sizes, dropout)
        self.encoder = Encoder(EncoderLayer(sizes, dropout), sizes.enc_layers)
        body: Any = BACKBONES[sizes.backbone]()
        if sizes.dilation:
            body.dilate_last_stage()
        # One network sees every camera. The nesting spells the original's names: backbones.0.0.body.conv1 ...
        self.backbones = nn.ModuleList([nn.Sequential(nn.ModuleDict({"body": body}))])
        self.input_proj = nn.Conv2d(body.num_channels, dim, 1)
        self.input_proj_robot_state = nn.Linear(sizes.state_dim, dim)
        self.query_embed = nn.Embedding(sizes.chunk_size, dim)
        self.additional_pos_embed = nn.Embedding(2, dim)  # positions of the z token and the qpos token
        self.action_head = nn.Linear(dim, sizes.action_dim)
        self.is_pad_head = nn.Linear(dim, 1)  # never read, by the original either; its files hold it

        self.cls_embed = nn.Embedding(1, dim)
        self.encoder_action_proj = nn.Linear(sizes.action_dim, dim)
        self.encoder_joint_proj = nn.Linear(sizes.state_dim, dim)
        self.latent_proj = nn.Linear(dim, 2 * LATENT_DIM)
        self.latent_out_proj = nn.Linear(LATENT_DIM, dim)
        if sizes.rtc_max_delay_steps:
            self.prefix_proj = nn.Linear(sizes.action_dim, dim)
            self.prefix_pos_embed = nn.Embedding(sizes.rtc_max_delay_steps, dim)
        self.pos_table: Tensor
        self.register_buffer("pos_table", _sine_table(2 + sizes.chunk_size, dim))

    def encode(self, qpos: Tensor, actions: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the style z, each (B, 32).

        Args:
            qpos: (B, state_dim).
            actions: (B, chunk_size, action_dim), what the demonstrator did next.
            is_pad: bool (B, chunk_size), true where the demonstration had ended.
        """
        tokens = torch.cat(
            [
                self.cls_embed.weight.expand(len(qpos), 1, -1),
                self.encoder_joint_proj(qpos)[:, None],
                self.encoder_action_proj(actions),
            ],
            dim=1,
        )  # (B, 2 + chunk_size, hidden_dim)
        is_pad = functional.pad(is_pad, (2, 0), value=False)
        summary = self.encoder(tokens, self.pos_table[0], is_pad)[
            :, 0
        ]  # the cls token's answer, (B, hidden_dim)
        mu, logvar = self.latent_proj(summary).chunk(2, dim=-1)
        return mu, logvar

    def forward(
        self,
        qpos: Tensor,
        images: Tensor,
        latent: Tensor | None = None,
        prefix: Tensor | None = None,
        delay: Tensor | None = None,
    ) -> Tensor:
        """Return the next actions, (B, chunk_size, action_dim).

        Args:
            qpos: (B, state_dim).
            images: (B, cameras, 3, H, W), from :func:`normalise_images`.
            latent: The style z, (B, 32); ``None`` is its prior mean, zero, as at every inference.
            prefix: The chunk's first actions, known because they are executed before it arrives, (B, n,
                action_dim), n at most ``rtc_max_delay_steps``. The network attends to them, and what it
                answers in their places means nothing. Without them it is the network without this part.
            delay: int (B,), how many of ``prefix`` count; ``None`` for all.
        """
        batch, cameras = images.shape[:2]
        backbone: Any = self.backbones[0]
        features = self.input_proj(backbone[0]["body"](images.flatten(0, 1)))
        height, width = features.shape[-2:]
        # Tokens go camera by camera. Positions repeat: cameras are told apart by what they see alone.
        cells = features.flatten(2).transpose(1, 2).reshape(batch, cameras * height * width, -1)
        grid = _sine_grid(height, width, self.sizes.hidden_dim, images.device)
        if latent is None:
            latent = qpos.new_zeros(batch, LATENT_DIM)
        tokens = torch.cat(
            [self.latent_out_proj(latent)[:, None], self.input_proj_robot_state(qpos)[:, None], cells], dim=1
        )
        position = torch.cat([self.additional_pos_embed.weight, grid.repeat(cameras, 1)])
        is_pad = None
        if prefix is not None and prefix.shape[1]:
            given = prefix.shape[1]
            if delay is not None:
                is_pad = torch.arange(given, device=qpos.device) >= delay[:, None]
                is_pad = functional.pad(is_pad, (tokens.shape[1], 0), value=False)
            tokens = torch.cat([tokens, self.prefix_proj(prefix)], dim=1)
            position = torch.cat([position, self.prefix_pos_embed.weight[:given]])
        decoded = self.transformer(tokens, position, self.query_embed.weight, is_pad)
        actions: Tensor = self.action_head(decoded)
        return actions
