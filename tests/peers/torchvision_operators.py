"""Operators that torchvision asks for of its own library, which does not load next to a torch for CPUs."""

import torch

__all__ = ["define_operators"]


def define_operators():
    """Declare them where torch has no CUDA, and return what keeps them declared."""
    if torch.version.cuda is not None:
        return None
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators
