"""Observations under LeRobot's names, and back."""

from __future__ import annotations

import re
from typing import Any, Mapping, Sequence

import numpy as np

from robowire.errors import InvalidParams
from robowire.meta import MetaObs

__all__ = ["from_lerobot", "to_lerobot"]

_STATE, _TASK = "observation.state", "task"
_IMAGE = re.compile(r"observation\.(image|images\..+)", re.DOTALL)
_NUMBERED = re.compile(r"observation\.images\.image([2-9]|[1-9]\d+)?")


def to_lerobot(observation: MetaObs) -> dict[str, Any]:
    """Return an observation under LeRobot's names, as its policies take them (without a batch axis).

    Returns:
        ``observation.images.image``, ``observation.images.image2``, ... in the order of the policy's
        cameras: float32 (3, height, width), 0 to 1; ``observation.state``: float32 (state_dim,); ``task``:
        the instruction. What is missing in the observation is left out. Fresh arrays.
    """
    named: dict[str, Any] = {_TASK: observation.raw_lang}
    for number, image in enumerate(() if observation.image is None else observation.image, 1):
        named[_image_name(number)] = image.astype(np.float32) / np.float32(255)
    if observation.state is not None:
        named[_STATE] = np.array(observation.state, np.float32)
    return named


def from_lerobot(
    observation: Mapping[str, Any], *, timestep: int = -1, camera_names: Sequence[str] | None = None
) -> MetaObs:
    """Return the observation in a dict with LeRobot's names; names of other things are left out.

    Args:
        observation: Images are float (3, height, width), 0 to 1, as LeRobot's policies take them, or uint8
            (height, width, 3), as its robots and simulators give them; all of one size. Cameras have any
            name: ``observation.images.wrist``, or ``observation.image`` for the only one. ``task`` is a
            text, or a list of one.
        timestep: Step of the episode.
        camera_names: Cameras in the policy's order, such as ``["front", "wrist"]``. ``None`` means
            ``image``, ``image2``, ... by their numbers, and other names in the order of the dict.

    Raises:
        InvalidParams: An image, a state or the task is not of this form, a camera is missing, or the images
            are numbered with a gap.
    """
    names = _image_names(observation, camera_names)
    images = [_image(name, _array(name, observation[name])) for name in names]
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{name} {image.shape}" for name, image in zip(names, images))
        raise InvalidParams(f"the images differ in size: {sizes}")
    state = None
    if _STATE in observation:
        state = np.array(_array(_STATE, observation[_STATE]), np.float32)
        if state.ndim != 1:
            raise InvalidParams(f"{_STATE} has shape {state.shape}, expected (state_dim,)")
    return MetaObs(
        state=state,
        image=np.stack(images) if images else None,
        raw_lang=_instruction(observation.get(_TASK, "")),
        timestep=timestep,
    )


def _image_names(observation: Mapping[str, Any], camera_names: Sequence[str] | None) -> list[str]:
    """Return the names of the images, in the order of the policy's cameras."""
    names = [name for name in observation if _IMAGE.fullmatch(name)]
    if camera_names is not None:
        wanted = [
            "observation.image"
            if camera == "image" and names == ["observation.image"]
            # A camera may be given by its whole name too.
            else camera
            if camera in observation
            else f"observation.images.{camera}"
            for camera in camera_names
        ]
        missing = [name for name in wanted if name not in observation]
        if missing:
            raise InvalidParams(
                f"the images are called {', '.join(names) or 'nothing: there are none'}, expected "
                f"{', '.join(wanted)}"
            )
        return wanted
    if all(_NUMBERED.fullmatch(name) for name in names):
        names.sort(key=lambda name: (len(name), name))
        wanted = [_image_name(number) for number in range(1, len(names) + 1)]
        if names != wanted:
            raise InvalidParams(f"the images are called {', '.join(names)}, expected {', '.join(wanted)}")
    return names


def _instruction(task: Any) -> str:
    """Return the text of ``task``, which LeRobot's batches have as a list of one."""
    if isinstance(task, (list, tuple)) and len(task) == 1:
        task = task[0]
    if not isinstance(task, str):
        raise InvalidParams(f"{_TASK} is {str(task)[:100]!r}, expected a text, or a list of one")
    return task


def _image_name(number: int) -> str:
    return f"observation.images.image{'' if number == 1 else number}"


def _array(name: str, value: Any) -> np.ndarray:
    """Return an observation's part as numbers."""
    try:
        array: np.ndarray = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as exc:  # a tensor of bfloat16, on a GPU, or with gradients
        raise InvalidParams(f"{name} cannot be made a numpy array: {exc}") from exc
    if array.dtype.kind not in "biuf":
        raise InvalidParams(f"{name} is {array.dtype} {array.shape}, expected numbers")
    return array


def _image(name: str, image: np.ndarray) -> np.ndarray:
    """Return uint8 (3, height, width)."""
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    if image.dtype.kind == "f" and image.ndim == 3 and image.shape[0] == 3:
        if not (image.min(initial=0) >= 0 and image.max(initial=0) <= 1):
            raise InvalidParams(f"{name} is {image.dtype} from beyond 0 to 1, expected 0 to 1")
        levels: np.ndarray = np.rint(image * 255).astype(np.uint8)
        return levels
    raise InvalidParams(
        f"{name} is {image.dtype} {image.shape}, expected float (3, height, width) or uint8 "
        "(height, width, 3)"
    )
