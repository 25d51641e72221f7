"""What the payloads mean: requests parsed and checked, replies built. No bytes, no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Mapping, Sequence

import numpy as np

from robowire.errors import InternalError, InvalidParams, RequestError, request_error
from robowire.meta import MetaObs
from robowire.version import __version__

__all__ = [
    "PROTOCOL_VERSION",
    "Call",
    "Infer",
    "Reset",
    "error_reply",
    "hello",
    "ok",
    "parse_call",
    "parse_policy_request",
    "raise_for_status",
]

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class Call:
    """A request by name.

    Attributes:
        method: For example ``"get_info"``.
        params: Everything else in the request.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Infer:
    """A request for actions.

    Attributes:
        observations: One for each row of the batch; one, where the request was not a batch.
        dialect: ``"meta"``: a MetaObs; ``"batch"``: a MetaObs with a leading batch axis; ``"act"``: ``qpos``
            and images.
    """

    observations: tuple[MetaObs, ...]
    dialect: str


@dataclass(frozen=True)
class Reset:
    """``"RESET"``: the session's episode starts anew."""


def parse_policy_request(value: Any, camera_names: Sequence[str] | None = None) -> Call | Infer | Reset:
    """Return what a payload on the policy port asks for.

    Args:
        value: The decoded payload.
        camera_names: The policy's cameras, the order in which the ACT dialect's images are stacked; ``None``
            where it accepts any: then they are stacked in the order they came.

    Raises:
        InvalidParams: It is no request, or its parts contradict each other.
    """
    if isinstance(value, MetaObs):
        return _parse_meta_obs(value)
    if isinstance(value, str) and value == "RESET":
        return Reset()
    if isinstance(value, dict) and "qpos" in value:
        return Infer((_parse_act(value, camera_names),), "act")
    if isinstance(value, dict) and "method" in value:
        return parse_call(value)
    raise InvalidParams(
        f"a {type(value).__name__} is no request: send a MetaObs, a dict with 'qpos' and 'images', "
        "'RESET', or a dict with 'method'"
    )


def parse_call(value: Any) -> Call:
    """Return the call in a ``{"method": ..., ...}`` dict, the only kind of request on the simulator port.

    Raises:
        InvalidParams: It is not such a dict.
    """
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise InvalidParams(f"a request is a dict with a 'method', not {_describe(value)}")
    if not all(isinstance(key, str) for key in value):
        raise InvalidParams("the parameters of a request are named by text")
    return Call(value["method"], {key: item for key, item in value.items() if key != "method"})


def hello(**said: Any) -> dict[str, Any]:
    """Return what a client of this package says first."""
    return {
        "method": "hello",
        "protocol_version": PROTOCOL_VERSION,
        "client": f"robowire {__version__}",
        **said,
    }


def ok(**fields: Any) -> dict[str, Any]:
    """Return a reply that says the request was done."""
    return {"status": "ok", **fields}


def error_reply(error: RequestError) -> dict[str, Any]:
    """Return the reply that tells a peer of an error: a code and a sentence, never our traceback."""
    return {"status": "error", "error_type": error.error_type, "message": str(error)}


def raise_for_status(reply: Any) -> dict[str, Any]:
    """Return a reply dict that says ok.

    Raises:
        RequestError: The one the reply tells of, as its own class.
        InternalError: The reply is no dict with a status.
    """
    if not isinstance(reply, dict) or "status" not in reply:
        raise InternalError(f"the reply is {_describe(reply)}, not a dict with a 'status'")
    if reply["status"] in ("ok", "OK"):
        return reply
    raise request_error(
        str(reply.get("error_type", "internal_error")), str(reply.get("message", "no message"))
    )


def _parse_meta_obs(obs: MetaObs) -> Infer:
    for name, value in vars(obs).items():
        if name == "timestep":
            _check_timestep(value)
        elif (
            name != "raw_lang"
            and value is not None
            and not (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")
        ):
            raise InvalidParams(f"{name} is {_describe(value)}, expected an array of numbers or None")
    size = _batch_size(obs)
    if size is None:
        (instruction,), (timestep,) = _instructions(obs.raw_lang, 1), _timesteps(obs.timestep, 1)
        return Infer((replace(obs, raw_lang=instruction, timestep=timestep),), "meta")
    arrays = {
        item.name: getattr(obs, item.name)
        for item in fields(obs)
        if isinstance(getattr(obs, item.name), np.ndarray) and item.name not in ("raw_lang", "timestep")
    }
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != size:
            raise InvalidParams(f"{name} has shape {array.shape}, expected a leading axis of {size}")
    instructions, timesteps = _instructions(obs.raw_lang, size), _timesteps(obs.timestep, size)
    rows = (
        MetaObs(raw_lang=text, timestep=step, **{name: array[row] for name, array in arrays.items()})
        for row, (text, step) in enumerate(zip(instructions, timesteps))
    )
    return Infer(tuple(rows), "batch")


def _batch_size(obs: MetaObs) -> int | None:
    """Return the length of the leading batch axis, or ``None`` for a single observation.

    ``timestep`` alone can't tell: known clients send (1, 1) with a single observation too.
    """
    if obs.state is not None:
        batched = obs.state.ndim == 2
        size = len(obs.state) if batched else 0
    elif obs.image is not None:
        batched = obs.image.ndim == 5
        size = len(obs.image) if batched else 0
    else:
        batched = isinstance(obs.timestep, np.ndarray) and obs.timestep.ndim == 2 and len(obs.timestep) != 1
        size = len(obs.timestep) if batched else 0
    if batched and size == 0:
        raise InvalidParams("the batch is empty")
    return size if batched else None


def _instructions(value: Any, size: int) -> list[str]:
    if value is None or isinstance(value, str):
        return [value or ""] * size
    texts = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InvalidParams(
            f"raw_lang is {_describe(value)}, expected text, or a text for each row of the batch"
        )
    if len(texts) != size:
        raise InvalidParams(f"raw_lang has {len(texts)} entries for a batch of {size}")
    return list(texts)


def _timesteps(value: Any, size: int) -> list[int]:
    steps = np.ravel(value).tolist()
    if len(steps) not in (1, size):
        raise InvalidParams(f"timestep has {len(steps)} entries for a batch of {size}")
    return [int(step) for step in (steps * size if len(steps) == 1 else steps)]


def _check_timestep(value: Any) -> None:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and (value.size == 1 or value.ndim == 2):
        return
    raise InvalidParams(f"timestep is {_describe(value)}, expected an int or an int array (B, 1)")


def _parse_act(value: Mapping[str, Any], camera_names: Sequence[str] | None) -> MetaObs:
    """Return the ACT dialect's ``{"qpos": (D,), "images": {camera: (H, W, 3) uint8}}`` as a MetaObs."""
    qpos, images = value["qpos"], value.get("images", {})
    numbers = isinstance(qpos, (list, tuple)) and all(isinstance(number, (int, float)) for number in qpos)
    state = np.array(qpos, dtype=np.float64) if numbers else qpos
    if not (isinstance(state, np.ndarray) and state.dtype.kind in "biuf" and state.ndim == 1):
        raise InvalidParams(f"qpos is {_describe(qpos)}, expected (state_dim,) numbers")
    if not isinstance(images, dict):
        raise InvalidParams(
            f"images is {_describe(images)}, expected a dict of camera names to (H, W, 3) uint8"
        )
    wanted = list(images) if camera_names is None else list(camera_names)
    missing = [name for name in wanted if name not in images]
    if missing:
        raise InvalidParams(
            f"no image of camera {missing[0]!r}: the policy needs {wanted}, the request has {list(images)}"
        )
    for name in wanted:
        image = images[name]
        if not (
            isinstance(image, np.ndarray)
            and image.dtype == np.uint8
            and image.ndim == 3
            and image.shape[2] == 3
        ):
            raise InvalidParams(
                f"the image of camera {name!r} is {_describe(image)}, expected (H, W, 3) uint8"
            )
        if image.shape != images[wanted[0]].shape:
            raise InvalidParams(
                f"the image of camera {name!r} has shape {image.shape}, "
                f"that of {wanted[0]!r} {images[wanted[0]].shape}"
            )
    timestep = value.get("timestep", -1)
    _check_timestep(timestep)
    # (cameras, 3, H, W), in one copy
    image = np.stack([images[name].transpose(2, 0, 1) for name in wanted]) if wanted else None
    return MetaObs(
        state=state.astype(np.float32),
        image=image,
        raw_lang=_instructions(value.get("raw_lang"), 1)[0],
        timestep=_timesteps(timestep, 1)[0],
    )


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type(value).__name__}"
