"""Bodies of VLAStudio's HTTP wire: JSON in which arrays are Base64. Pure; both directions.

A request is ``{"meta_obs": {...}, "client_id"?, "episode_id"?, "timestamp"?, "__index__"?, "reasoning"?}``,
its reply ``{"mact_list": [step, ...]}``, where a step is a list of one action for each row of the batch. An
array is ``{"__type__": "ndarray", "dtype": name, "shape", "data": Base64}``; images may also be
``{"__type__": "jpeg_nchw", "shape": [cameras, 3, height, width], "quality", "frames": [Base64]}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, MissingDependency, RemoteProtocolError
from robowire.frontends.base64_text import from_base64, to_base64
from robowire.frontends.json_body import load_json
from robowire.images import decode_image, encode_image
from robowire.meta import OBSERVED, MetaAction, MetaObs
from robowire.wire.arrays import view_array
from robowire.wire.codecs import PolicyCodec, read_meta_obs
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable, quoted

__all__ = ["InferenceCall", "encode_call", "encode_chunk", "read_actions", "read_call"]

_OBSERVATION = OBSERVED

# An observation has nine fields, each an array of four entries and a size for each axis; ``reasoning`` may
# add some. A number of two bytes takes 32 bytes of memory.
_MAX_ITEMS = 65_536

_MAX_ID = 200


@dataclass(frozen=True)
class InferenceCall:
    """The body of one ``POST /inference``. Its arrays and images are not decoded yet.

    Attributes:
        client: Whose call it is; ``None`` where the client does not say.
        episode: Name of the running episode; ``None`` where the client does not say.
        timestep: Replaces the timestep of the observation; ``None`` leaves it.
        observation: ``meta_obs`` as it came.
    """

    client: str | None
    episode: str | None
    timestep: int | None
    observation: Mapping[str, Any]

    def request(self, codec: PolicyCodec, *, max_bytes: int) -> Request:
        """Return the request, its arrays and images decoded. The arrays are fresh.

        Args:
            codec: Says how large a batch may be, and what images of floats are.
            max_bytes: Most bytes of the decoded images.

        Raises:
            InvalidParams: Something in the observation can't be read.
        """
        # The seed is no field of VLAStudio's own clients; one that adds it is understood.
        names = (*_OBSERVATION, "episode_seed")
        given = {name: self.observation[name] for name in names if name in self.observation}
        decoded = {name: _decode(name, value, max_bytes) for name, value in given.items()}
        if decoded.get("timestep") is None:
            decoded["timestep"] = -1
        if self.timestep is not None:
            decoded["timestep"] = self.timestep
        observation = MetaObs(**decoded)
        _align_batch(observation)
        return read_meta_obs(observation, codec)


def read_call(body: bytes) -> InferenceCall:
    """Return the call in a body.

    Raises:
        InvalidParams: It is no such body; the message says why.
    """
    try:
        value = load_json(body, max_items=_MAX_ITEMS)
    except (ValueError, RecursionError) as exc:
        raise InvalidParams(f"the body is not JSON: {printable(exc, 150) or type(exc).__name__}") from None
    if not isinstance(value, dict) or not isinstance(value.get("meta_obs"), dict):
        raise InvalidParams("the body is an object with 'meta_obs', an observation")
    timestep = value.get("timestamp")
    # The client declares a float; only a step of the episode is a timestep.
    if isinstance(timestep, float) and timestep.is_integer():
        timestep = int(timestep)
    if timestep is not None and (
        not isinstance(timestep, int) or isinstance(timestep, bool) or not -1 <= timestep < 2**31
    ):
        raise InvalidParams(f"timestamp is {quoted(timestep)}, expected the number of the step, or none")
    return InferenceCall(
        _identity("client_id", value.get("client_id")),
        _identity("episode_id", value.get("episode_id")),
        timestep,
        value["meta_obs"],
    )


def encode_chunk(chunk: ActionChunk) -> bytes:
    """Return the body of the reply: the whole chunk, a list of steps."""
    actions = chunk.actions if chunk.actions.ndim == 3 else chunk.actions[:, np.newaxis]
    # Readers of this wire compare with "abs".
    ctrl_type = "abs" if chunk.ctrl_type == "absolute" else chunk.ctrl_type
    rest = {"ctrl_space": chunk.ctrl_space, "ctrl_type": ctrl_type}
    steps = [
        [{**rest, "action": _encode_array(action), "gripper_continuous": False} for action in rows]
        for rows in actions
    ]
    return _to_json({"mact_list": steps})


def encode_call(
    observation: MetaObs,
    *,
    client: str | None = None,
    episode: int | str | None = None,
    jpeg_quality: int | None = None,
) -> bytes:
    """Return the body of a request, as VLAStudio's client writes it.

    Args:
        observation: Single, or with a leading batch axis.
        client: ``client_id``.
        episode: ``episode_id``.
        jpeg_quality: Send ``image``, uint8 (cameras, 3, height, width), as JPEG of this quality, 1 to 100;
            ``None`` sends its numbers.
    """
    shown: dict[str, Any] = {}
    for name in _OBSERVATION:
        value = getattr(observation, name)
        shown[name] = _encode_array(value) if isinstance(value, np.ndarray) else value
    if jpeg_quality is not None and observation.image is not None:
        shown["image"] = _encode_jpeg(observation.image, jpeg_quality)
    body: dict[str, Any] = {"meta_obs": shown}
    if client is not None:
        body["client_id"] = client
    if episode is not None:
        body["episode_id"] = episode
    return _to_json(body)


def read_actions(body: bytes) -> list[list[MetaAction]]:
    """Return the steps of a reply, each a list of one action for each row of the batch.

    Raises:
        RemoteProtocolError: It is no such reply.
    """
    try:
        steps = load_json(body)["mact_list"]
        return [
            [
                MetaAction(
                    str(row["ctrl_space"]),
                    str(row["ctrl_type"]),
                    _read_array(row["action"]),
                    bool(row.get("gripper_continuous", False)),
                )
                for row in step
            ]
            for step in steps
        ]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, InvalidParams) as exc:
        raise RemoteProtocolError(f"the reply has no list of actions: {printable(exc, 150)}") from None


def _identity(name: str, value: Any) -> str | None:
    """Return a name that a client chose, as text; numbers are names too."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= _MAX_ID:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
        return f"int {value}"  # not the client that calls itself "7"
    raise InvalidParams(f"{name} is {quoted(value)}, expected text of at most {_MAX_ID} characters")


def _decode(name: str, value: Any, max_bytes: int) -> Any:
    """Return a field of the observation with its array decoded."""
    kind = value.get("__type__") if isinstance(value, dict) else None
    if kind == "ndarray":
        return _read_array(value, name)
    if kind == "jpeg_nchw" and name == "image":
        return _decode_jpeg(value, max_bytes)
    if isinstance(value, dict):
        raise InvalidParams(f"{name} is {quoted(value, 80)}, expected an array")
    return value


def _read_array(value: Any, name: str = "the array") -> np.ndarray:
    try:
        array = view_array(value["dtype"], value["shape"], _base64(value["data"]))
    except KeyError as exc:
        raise InvalidParams(f"{name} has no {exc}") from None
    except InvalidParams as exc:
        raise InvalidParams(f"{name}: {exc}") from None
    return array.astype(array.dtype.newbyteorder("="))  # a policy may write to it


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    return {
        "__type__": "ndarray",
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "data": to_base64(array.tobytes()),
    }


def _decode_jpeg(value: Mapping[str, Any], max_bytes: int) -> np.ndarray:
    """Return uint8 (cameras, 3, height, width) of images encoded as JPEG.

    No pixel is decoded before the sizes that the files announce were compared with what the request says.
    """
    shape, frames = value.get("shape"), value.get("frames")
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or not all(isinstance(size, int) and 0 < size < 2**16 for size in shape)
        or shape[1] != 3
    ):
        raise InvalidParams(f"image has the shape {quoted(shape, 80)}, expected [cameras, 3, height, width]")
    if not isinstance(frames, list) or len(frames) != shape[0]:
        found = len(frames) if isinstance(frames, list) else "no"
        raise InvalidParams(f"image has {found} frames for {shape[0]} cameras")
    if math.prod(shape) > max_bytes:
        raise InvalidParams(
            f"the images announce {math.prod(shape)} bytes, this server accepts {max_bytes} (--max_payload)"
        )
    files = [_base64(frame) for frame in frames]
    images = np.empty(shape, np.uint8)
    for image, file in zip(images, files):
        try:
            pixels = decode_image({"encoding": "jpeg", "shape": (shape[2], shape[3], 3), "data": file})
        except (RemoteProtocolError, MissingDependency) as exc:  # the client then sends numbers
            raise InvalidParams(str(exc)) from None
        image[...] = pixels.transpose(2, 0, 1)
    return images


def _encode_jpeg(images: np.ndarray, quality: int) -> dict[str, Any]:
    files = [encode_image(image.transpose(1, 2, 0), "jpeg", quality=quality)["data"] for image in images]
    return {
        "__type__": "jpeg_nchw",
        "shape": list(images.shape),
        "quality": quality,
        "frames": [to_base64(file) for file in files],
    }


def _align_batch(observation: MetaObs) -> None:
    """Give the images the batch axis that the state has.

    VLAStudio's client sends (cameras, 3, height, width), also with a state of (1, state_dim). With a state of
    more rows, that is one camera for each row.
    """
    state = observation.state
    if not (isinstance(state, np.ndarray) and state.ndim == 2):
        return
    for name, single in (("image", 4), ("depth", 3), ("pc", 2)):
        value = getattr(observation, name)
        if isinstance(value, np.ndarray) and value.ndim == single:
            setattr(observation, name, value[np.newaxis] if len(state) == 1 else value[:, np.newaxis])


def _base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise InvalidParams(f"data is {quoted(text, 50)}, expected Base64")
    try:
        return from_base64(text)
    except ValueError:
        raise InvalidParams(f"data is {quoted(text, 50)}, which is not Base64") from None


def _to_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
