from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from policies.act.backbone import BACKBONES, FrozenBatchNorm, PointFinder
from policies.act.model import Act, ActSizes, normalise_images

TINY: dict[str, Any] = {
    "state_dim": 3,
    "action_dim": 2,
    "chunk_size": 5,
    "hidden_dim": 16,
    "nheads": 2,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 24,
    "backbone": "small",
}


@pytest.mark.parametrize(("cameras", "height", "width"), [(1, 64, 64), (2, 48, 80), (3, 75, 50)])
def test_any_cameras_and_image_size_give_a_chunk(cameras: int, height: int, width: int) -> None:
    model = Act(ActSizes(**TINY)).eval()
    with torch.inference_mode():
        assert model(torch.zeros(4, 3), torch.zeros(4, cameras, 3, height, width)).shape == (4, 5, 2)


def test_only_the_first_decoder_layer_matters() -> None:
    model = Act(ActSizes(**TINY)).eval()
    qpos, images = torch.zeros(1, 3), torch.zeros(1, 1, 3, 64, 64)
    with torch.inference_mode():
        before = model(qpos, images)
        for parameter in model.transformer.decoder.layers[1].parameters():
            parameter.fill_(math.nan)
        assert torch.equal(model(qpos, images), before)


def test_the_order_of_cameras_does_not_matter_to_the_network_but_their_content_does() -> None:
    model = Act(ActSizes(**TINY)).eval()
    qpos, images = torch.zeros(1, 3), torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(qpos, images), model(qpos, images.flip(1)))
        assert not torch.allclose(model(qpos, images), model(qpos, images[:, :1]), atol=1e-4)


def test_padding_does_not_reach_the_style() -> None:
    model = Act(ActSizes(**TINY)).eval()
    qpos, actions = torch.zeros(1, 3), torch.zeros(1, 5, 2)
    is_pad = torch.tensor([[False, False, False, True, True]])
    changed = actions.clone()
    changed[:, 3:] = 7
    with torch.inference_mode():
        torch.testing.assert_close(model.encode(qpos, changed, is_pad), model.encode(qpos, actions, is_pad))


def test_images_are_normalised_as_imagenets() -> None:
    image = np.array([0, 128, 255], dtype=np.uint8).reshape(3, 1, 1)
    expected = (image / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    np.testing.assert_allclose(normalise_images(torch.from_numpy(image)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "pixels", "cells"),
    [
        ("point", 96, 1),
        ("small", 96, 6),
        ("small", 128, 8),
        ("tiny", 96, 6),
        ("resnet18", 96, 3),
        ("resnet18", 224, 7),
    ],
)
def test_a_backbone_makes_a_grid_of_features(backbone: str, pixels: int, cells: int) -> None:
    network = BACKBONES[backbone]()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, pixels, pixels)).shape == (1, network.num_channels, cells, cells)


def test_the_place_that_is_found_is_the_middle_of_what_scores_highest() -> None:
    finder = PointFinder()
    with torch.inference_mode():
        for parameter in finder.parameters():
            parameter.zero_()
        # Red scores 50 more than black.
        finder.conv1.weight[0, 0, 1, 1] = 50.0
        finder.conv2.weight[0, 0, 1, 1] = 1.0
        images = torch.zeros(2, 3, 24, 32)
        images[0, 0, 3:6, 10:12] = 1.0
        images[1, 0, 20, 31] = 1.0
        places = finder.find(images)
        features = finder(images)
    expected = [[11 / 16 - 1, 4.5 / 12 - 1], [31.5 / 16 - 1, 20.5 / 12 - 1]]
    np.testing.assert_allclose(places.numpy(), expected, atol=1e-6)
    assert features.shape == (2, finder.num_channels, 1, 1)
    np.testing.assert_allclose(features[:, :2, 0, 0].numpy(), expected, atol=1e-6)
    # Cameras are told apart by the mean colour: red of 6 and of 1 of 768 pixels.
    np.testing.assert_allclose(
        features[:, -3:, 0, 0].numpy(), np.array([[6 / 768, 0, 0], [1 / 768, 0, 0]]) * 10 + 13, atol=1e-5
    )


def test_frozen_batch_norm_has_nothing_to_train() -> None:
    assert list(FrozenBatchNorm(4).parameters()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rtc_max_delay_steps": 5},
            "rtc_max_delay_steps is 5, expected 0 to 4, less than chunk_size",
        ),
        ({"chunk_size": 0}, "chunk_size is 0, expected a positive integer"),
        ({"nheads": 3}, "hidden_dim is 16, expected a multiple of nheads (3) and of 4"),
        (
            {"backbone": "vgg"},
            "backbone is 'vgg', expected one of point, resnet101, resnet152, resnet18, resnet34, resnet50, "
            "small, tiny",
        ),
        ({"activation": "glu"}, "activation is 'glu', expected one of gelu, relu"),
        ({"pre_norm": 1}, "pre_norm is 1, expected true or false"),
        (
            {"dilation": True},
            "dilation needs one of the backbones resnet50, resnet101, resnet152, not small: "
            "torchvision has no other either",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ActSizes(**{**TINY, **change})


def test_a_prefix_is_attended_to_and_nothing_else_of_the_network_changes() -> None:
    model = Act(ActSizes(**TINY, rtc_max_delay_steps=3)).eval()
    plain = Act(ActSizes(**TINY)).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "prefix" not in name})
    qpos, images, prefix = torch.zeros(2, 3), torch.zeros(2, 1, 3, 64, 64), torch.ones(2, 3, 2)
    with torch.inference_mode():
        assert torch.equal(model(qpos, images), plain(qpos, images))
        given = model(qpos, images, prefix=prefix)
        assert not torch.allclose(given, plain(qpos, images), atol=1e-4)
        delays = torch.tensor([1, 0])
        some = model(qpos, images, prefix=prefix, delay=delays)
        torch.testing.assert_close(some[0], model(qpos, images, prefix=prefix[:, :1])[0])
        torch.testing.assert_close(some[1], plain(qpos, images)[1])
