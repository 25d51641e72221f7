"""Whether observations and actions are what a policy declared. What the spec leaves open is not checked."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from robowire.errors import BackendError, SpecMismatch
from robowire.meta import MetaObs
from robowire.specs import PolicySpec
from robowire.wire.arrays import describe, require_array

__all__ = ["check_observation", "check_values", "checked_actions", "observation_kind"]

# Numbers up to which a list is faster than an array: more than any arm's joints.
_FEW = 64


def check_observation(observation: MetaObs, spec: PolicySpec) -> None:
    """Accept an observation that the policy can use.

    Raises:
        SpecMismatch: It does not fit; the message names the field, what was found and what is expected.
    """
    _check_image(observation.image, spec)
    if spec.state_dim is not None:
        layout = f": {spec.state_layout}" if spec.state_layout else ""
        expected = f"({spec.state_dim},) numbers{layout}"
        require_array("state", observation.state, expected, shape=(spec.state_dim,), error=SpecMismatch)
    if observation.delay is not None or observation.prefix is not None or observation.prefix_raw is not None:
        _check_prefix(observation, spec)
    check_values(observation)


def check_values(observation: MetaObs) -> None:
    """Accept an observation whose states are finite.

    Raises:
        SpecMismatch: One is not; the message names the field and the entry.
    """
    # One of these in a batch can make every action of the batch NaN, and a robot can't execute NaN.
    for value in (observation.state, observation.state_ee, observation.state_joint):
        # A sum of few numbers takes a tenth of the time of two ufuncs. One that is not finite may be an
        # overflow.
        if value is not None and not (value.size <= _FEW and math.isfinite(sum(value.ravel().tolist()))):
            _check_finite(observation)
    if observation.delay:
        _check_delay(observation)


def _check_finite(observation: MetaObs) -> None:
    for name in ("state", "state_ee", "state_joint"):
        value = getattr(observation, name)
        if value is not None and not np.logical_and.reduce(np.isfinite(value), axis=None):
            bad = int(np.flatnonzero(~np.isfinite(value))[0])
            raise SpecMismatch(f"{name}[{bad}] is {value.reshape(-1)[bad]}, expected finite numbers")


def observation_kind(observation: MetaObs) -> Hashable:
    """Return what two observations must share to be stacked: the shape and dtype of every array."""
    # A list, and None first: an observation is looked at for each request, and most of its fields are None.
    return tuple(
        [
            (name, value.shape, value.dtype)
            for name, value in observation.__dict__.items()
            if value is not None and isinstance(value, np.ndarray) and name != "timestep"
        ]
    )


def checked_actions(actions: np.ndarray, batch_size: int, spec: PolicySpec) -> np.ndarray:
    """Return a policy's answer as float32 (B, chunk_size, action_dim).

    Raises:
        BackendError: It has another shape.
    """
    shape = actions.shape if isinstance(actions, np.ndarray) else np.shape(actions)
    if (
        len(shape) != 3
        or shape[:2] != (batch_size, spec.chunk_size)
        or spec.action_dim not in (None, shape[2])
    ):
        dim = "action_dim" if spec.action_dim is None else spec.action_dim
        raise BackendError(
            f"the policy answered with shape {shape}, "
            f"its spec promises ({batch_size}, {spec.chunk_size}, {dim})"
        )
    return np.asarray(actions, dtype=np.float32)


def _check_prefix(observation: MetaObs, spec: PolicySpec) -> None:
    if spec.rtc == "none":
        raise SpecMismatch(
            f"the observation has a prefix, but policy {spec.policy!r} has no real-time chunking "
            "(rtc is 'none' in get_info): send none"
        )
    if observation.delay is None:
        raise SpecMismatch("the observation has a prefix without delay: how many of its actions count?")
    longest = spec.rtc_max_delay_steps
    if not 0 <= observation.delay <= longest:
        raise SpecMismatch(f"delay is {observation.delay}, expected 0 to {longest}, rtc_max_delay_steps")
    expected = f"(n, {spec.action_dim or 'action_dim'}) numbers"
    for name in ("prefix", "prefix_raw"):
        value = getattr(observation, name)
        if value is not None:
            require_array(name, value, expected, shape=(None, spec.action_dim), error=SpecMismatch)


def _check_delay(observation: MetaObs) -> None:
    """Accept a prefix of at least ``delay`` actions, all finite."""
    delay = observation.delay
    given = observation.prefix if observation.prefix_raw is None else observation.prefix_raw
    name = "prefix" if observation.prefix_raw is None else "prefix_raw"
    found = 0 if given is None else len(given)
    if not 0 <= delay <= found:
        raise SpecMismatch(
            f"delay is {delay}, but {name} has {found} actions: send as many, or a smaller delay"
        )
    if given is not None and not np.isfinite(given[:delay]).all():
        raise SpecMismatch(f"{name} holds numbers that are not finite")


def _check_image(image: Any, spec: PolicySpec) -> None:
    cameras, height, width = spec.camera_names, spec.image_height, spec.image_width
    if cameras == ():
        return  # the policy uses no image
    if image is None and cameras is None:
        return
    count = "cameras" if cameras is None else len(cameras)
    expected = f"uint8 ({count}, 3, {height or 'height'}, {width or 'width'})"
    if cameras is not None:
        expected += f", the cameras being {', '.join(cameras)}"
    elif height is None and width is None:
        return
    shape = (None if cameras is None else len(cameras), 3, height, width)
    array = require_array("image", image, expected, dtype=np.uint8, shape=shape, error=SpecMismatch)
    if not array.size:
        raise SpecMismatch(f"image is {describe(image)}, expected {expected}")
