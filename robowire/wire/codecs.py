"""Payloads of the native wire become requests here, and replies become payloads. No sockets.

A codec belongs to a port: :class:`PolicyCodec` reads the three ways to ask for actions (``MetaObs``, a batch
of them, the ACT dialect) in addition to methods by name; :class:`CallCodec` reads methods by name only. Each
payload becomes an exchange: its method is known at once, its parameters are read when the service has
authorised it, and its reply is encoded in the words that this client knows.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Mapping, Protocol, Sequence

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RequestError
from robowire.images import write_planes
from robowire.meta import MetaObs
from robowire.wire.arrays import describe, is_numeric, require_array, require_timestep
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD, frame_header
from robowire.wire.messages import Request, error_reply, ok, parse_call
from robowire.wire.packed import INFER_REQUEST, chunk_reply_frame, read_header
from robowire.wire.packed_policy import PolicyLayout, require_seed
from robowire.wire.pickle.templates import MISS, TemplateReader
from robowire.wire.pickle.writer import Buffer, encode_frame
from robowire.wire.text_safety import quoted

__all__ = [
    "AnyExchange",
    "CallCodec",
    "Codec",
    "Negotiated",
    "PackedExchange",
    "PickleExchange",
    "PolicyCodec",
    "read_act",
    "read_declaration",
    "read_meta_obs",
]

_UINT8 = np.dtype(np.uint8)
_INFER = bytes((INFER_REQUEST,))

_NO_ARRAYS = ("raw_lang", "timestep", "delay", "episode_seed")
_ARRAY_FIELDS = tuple(item.name for item in fields(MetaObs) if item.name not in _NO_ARRAYS)


class Negotiated(Protocol):
    """What a client's ``hello`` agreed on: the session of a service.

    Attributes:
        said_hello: Whether it understands typed errors.
        reply: Format of a chunk: ``"list"`` or ``"chunk"``.
        packed: Whether it may declare layouts and send packed requests.
        layouts: Those that it declared, by their numbers.
        reader: Reads its pickles.
    """

    said_hello: bool
    reply: str
    packed: bool
    layouts: dict[int, Any]
    reader: TemplateReader


class PickleExchange:
    """One payload and its reply. Methods by name only.

    Args:
        value: The decoded payload.
        session: Whose ``hello`` decides the format of the reply.
    """

    def __init__(self, value: Any, session: Negotiated) -> None:
        self._value = value
        self._session = session

    @property
    def method(self) -> str:
        """Name of the method; ``""`` where the payload names none."""
        method = self._value.get("method") if isinstance(self._value, dict) else None
        return method if isinstance(method, str) else ""

    def read(self) -> Request:
        """Return the request.

        Raises:
            InvalidParams: It is not a request, or its parts contradict each other.
        """
        return parse_call(self._value)

    def reply(self, value: Any) -> Sequence[Buffer]:
        """Return the frame of a reply: of a dict, or of a pickle that a simulator's process has written."""
        if isinstance(value, dict):
            return encode_frame(value)
        return [frame_header(len(value)), value]

    def failure(self, error: RequestError) -> Sequence[Buffer]:
        """Return the frame that reports an error."""
        return encode_frame(error_reply(error))


class PolicyExchange(PickleExchange):
    """One payload of the policy port and its reply.

    Args:
        value: The decoded payload.
        session: Whose ``hello`` decides the format of the reply.
        codec: Of the port.
    """

    def __init__(self, value: Any, session: Negotiated, codec: PolicyCodec) -> None:
        super().__init__(value, session)
        self._codec = codec
        # An old client gets the failure that its dialect always had, also where the request can't be read.
        self._is_meta_obs = isinstance(value, MetaObs)
        self._is_act = isinstance(value, dict) and "qpos" in value
        self._is_reset = isinstance(value, str) and value == "RESET"

    @property
    def method(self) -> str:
        """Name of the method; ``"infer"`` for an observation, ``"reset"`` for ``"RESET"``."""
        if self._is_meta_obs or self._is_act:
            return "infer"
        return "reset" if self._is_reset else super().method

    def read(self) -> Request:
        """Return the request.

        Raises:
            InvalidParams: It is not a request, its parts contradict each other, or the batch is too large.
        """
        value = self._value
        if self._is_meta_obs:
            return read_meta_obs(value, self._codec)
        if self._is_act:
            return Request("infer", observations=(read_act(value, self._codec),))
        if self._is_reset:
            return Request("reset")
        if isinstance(value, dict) and "method" in value:
            request = parse_call(value)
            if request.method == "layout" and self._session.packed:
                return read_declaration(request.params, self._codec)
            return request
        raise InvalidParams(
            f"a {type(value).__name__} is no request: send a MetaObs, a dict with 'qpos' and 'images', "
            "'RESET', or a dict with 'method'"
        )

    def reply(self, value: Any) -> Sequence[Buffer]:
        """Return the frame of a reply; of a chunk, in the format that the client agreed on."""
        if self._is_reset:
            return encode_frame({"status": "OK"})
        if not isinstance(value, ActionChunk):
            return encode_frame(value)
        if self._session.reply == "list":
            return self._list_reply(value)
        return encode_frame(_chunk_reply(value))

    def _list_reply(self, chunk: ActionChunk) -> Sequence[Buffer]:
        if self._is_act and self._codec.act_reply == "action":
            return encode_frame({"status": "OK", "action": chunk.actions[0]})
        if chunk.actions.ndim == 2 and self._is_meta_obs and _reads_rows(self._value):
            chunk = replace(chunk, actions=chunk.actions[:, np.newaxis])
        # The environments of those who wrote this wire first assert it; clients that say hello may be newer.
        if chunk.ctrl_type == "absolute" and not self._session.said_hello:
            chunk = replace(chunk, ctrl_type="abs")
        return encode_frame(chunk)

    def failure(self, error: RequestError) -> Sequence[Buffer]:
        """Return the frame that reports an error.

        A client that never said hello is an old one, and knows what clients of each dialect always received.
        """
        if not self._session.said_hello:
            if self._is_meta_obs:
                return encode_frame([])
            if self._is_act:
                return encode_frame({"status": "ERROR", "message": str(error)})
        return super().failure(error)


class PackedExchange:
    """One packed request of the policy port and its reply.

    Args:
        payload: Given away: arrays view it.
        session: Has the declared layouts.
        codec: Of the port.
    """

    method = "infer"
    _number = 0

    def __init__(self, payload: bytearray, session: Negotiated, codec: PolicyCodec) -> None:
        self._payload = payload
        self._session = session
        self._codec = codec

    def read(self) -> Request:
        """Return the request.

        Raises:
            InvalidParams: Its layout is not declared, its length is another, or a value is not valid.
        """
        _, flags, number, timestep = read_header(self._payload)
        self._number = number
        layout: PolicyLayout | None = self._session.layouts.get(number)
        if layout is None:
            raise InvalidParams(f"layout {number} is not declared on this connection")
        if flags:
            raise InvalidParams(f"a packed request has the flags {flags:#x}, which mean nothing here")
        obs = layout.observation(self._payload, timestep)
        if layout.checked is None:
            return read_meta_obs(obs, self._codec)
        return Request("infer", observations=(obs,), kind=layout.checked)

    def reply(self, value: Any) -> Sequence[Buffer]:
        """Return the frame of a chunk, packed where that is possible."""
        return chunk_reply_frame(self._number, value) or encode_frame(_chunk_reply(value))

    def failure(self, error: RequestError) -> Sequence[Buffer]:
        """Return the frame that reports an error: a pickle."""
        return encode_frame(error_reply(error))


def _chunk_reply(chunk: ActionChunk) -> dict[str, Any]:
    reply = ok(
        actions=chunk.actions,
        ctrl_space=chunk.ctrl_space,
        ctrl_type=chunk.ctrl_type,
        timestep=chunk.timestep,
        infer_ms=chunk.infer_ms,
    )
    if chunk.raw_actions is not None:
        reply["raw_actions"] = chunk.raw_actions
    return reply


class AnyExchange(Protocol):
    """What the exchanges of this module offer: an ``Exchange`` of :mod:`robowire.serving.service`."""

    @property
    def method(self) -> str:
        """Name of the method."""
        ...

    def read(self) -> Request:
        """Return the request."""
        ...

    def reply(self, value: Any) -> Sequence[Buffer]:
        """Return the frame of a reply."""
        ...

    def failure(self, error: RequestError) -> Sequence[Buffer]:
        """Return the frame that reports an error."""
        ...


class Codec(Protocol):
    """What makes exchanges of payloads, for one port."""

    def known_exchange(self, payload: bytearray, session: Negotiated) -> AnyExchange | None:
        """Return the exchange of a payload that takes little time to read; ``None`` for another."""
        ...

    def exchange(self, payload: bytearray, session: Negotiated) -> AnyExchange:
        """Return the exchange that a payload begins. The payload is given away: large arrays view it.

        Raises:
            UnsafePayload: It can't be read.
        """
        ...


class CallCodec:
    """Methods by name: the fleet's port."""

    def known_exchange(self, payload: bytearray, session: Negotiated) -> PickleExchange | None:
        """Return nothing: every request of this port may take long."""
        return None

    def exchange(self, payload: bytearray, session: Negotiated) -> PickleExchange:
        """Return the exchange that a payload begins."""
        return PickleExchange(session.reader.loads(payload), session)


class PolicyCodec:
    """Observations and methods by name: the policy port.

    Args:
        camera_names: The policy's cameras, in their order, in which the ACT dialect's images are stacked.
            ``None`` where it accepts any: then they are stacked in the order they came.
        max_rows: Largest batch to accept.
        float_images: What images of floats are: ``"refuse"``, or ``"convert"`` for 0..1 to 0..255.
        strided_images: Whether the policy takes images in any order of memory.
        act_reply: Answer to the ACT dialect of a client that agreed on no other: ``"chunk"`` for a list of
            MetaAction, ``"action"`` for ``{"status": "OK", "action": (action_dim,)}``, the chunk's first.
        max_payload: Largest request that the port accepts, in bytes: no layout may ask for more.

    Attributes:
        camera_names: As given.
        max_rows: As given.
        float_images: As given.
        strided_images: As given.
        act_reply: As given.
        max_payload: As given.
    """

    def __init__(
        self,
        camera_names: Sequence[str] | None = None,
        *,
        max_rows: int = 256,
        float_images: str = "refuse",
        strided_images: bool = False,
        act_reply: str = "chunk",
        max_payload: int = DEFAULT_MAX_PAYLOAD,
    ) -> None:
        self.camera_names = camera_names
        self.max_rows = max_rows
        self.float_images = float_images
        self.strided_images = strided_images
        self.act_reply = act_reply
        self.max_payload = max_payload

    def exchange(self, payload: bytearray, session: Negotiated) -> AnyExchange:
        """Return the exchange that a payload begins."""
        if session.packed and payload and payload[0] == INFER_REQUEST:
            return PackedExchange(payload, session, self)
        return PolicyExchange(session.reader.loads(payload), session, self)

    def known_exchange(self, payload: bytearray, session: Negotiated) -> AnyExchange | None:
        """Return the exchange of a payload that is as an earlier one, and so takes little time to read.

        Returns:
            ``None`` for another, which is as it was.
        """
        if session.packed and payload[:1] == _INFER:
            layout = session.layouts.get(int.from_bytes(payload[2:4], "little"))
            known = layout is not None and layout.checked is not None and not layout.decodes
            return PackedExchange(payload, session, self) if known else None
        value = session.reader.known(payload)
        return None if value is MISS else PolicyExchange(value, session, self)

    def checked_image(self, what: str, image: Any) -> Any:
        """Return an image of bytes, from one of floats where it may be converted; others as they are.

        Args:
            what: What a message calls it.
            image: Anything.

        Raises:
            InvalidParams: It holds floats, which are refused here, or floats that are not 0 to 1.
        """
        if not is_numeric(image, "f") or self.camera_names == ():  # or the policy uses no image
            return image
        if self.float_images != "convert":
            raise InvalidParams(
                f"{what} is {describe(image)}, expected uint8, 0 to 255: "
                "a server with --float_images convert takes floats of 0 to 1"
            )
        if image.size and not (image.min() >= 0 and image.max() <= 1):  # NaN is refused too
            raise InvalidParams(
                f"{what} holds floats from {image.min():.3g} to {image.max():.3g}, and those that are "
                "converted to uint8 are 0 to 1"
            )
        return np.rint(image * 255).astype(np.uint8)


def _reads_rows(obs: MetaObs) -> bool:
    """Return whether the sender of an observation reads every reply as rows of a batch."""
    # ILStudio's client sends arrays of timesteps, of a single observation too. VLAStudio has no module
    # benchmark, so it can't even unpickle a MetaAction of ours.
    return isinstance(obs.timestep, np.ndarray) or type(obs).__module__.startswith("vlastudio.")


def read_meta_obs(obs: MetaObs, codec: PolicyCodec) -> Request:
    """Return the request of a MetaObs, single or with a leading batch axis.

    Args:
        obs: As a peer made it; nothing in it was checked.
        codec: Says how large a batch may be, and what images of floats are.

    Raises:
        InvalidParams: A field is of another type, its parts contradict each other, or the batch is too large.
    """
    for name in _ARRAY_FIELDS:
        value = getattr(obs, name)
        if value is not None:
            require_array(name, value, "an array of numbers or None")
    require_timestep(obs.timestep)
    if obs.delay is not None:
        require_timestep(obs.delay, name="delay")
    arrays = {name: getattr(obs, name) for name in _ARRAY_FIELDS if getattr(obs, name) is not None}
    size = _batch_size(obs)
    # Before a row is made: rows of nothing cost memory, and no bytes.
    if size is not None and size > codec.max_rows:
        raise InvalidParams(f"the batch has {size} rows, expected at most {codec.max_rows}: send several")
    if "image" in arrays:
        arrays["image"] = codec.checked_image("image", arrays["image"])
    if size is None:
        (instruction,), (timestep,) = _instructions(obs.raw_lang, 1), _timesteps(obs.timestep, 1)
        (delay,), (seed,) = _delays(obs.delay, 1), _seeds(obs.episode_seed, 1)
        single = MetaObs(raw_lang=instruction, timestep=timestep, delay=delay, episode_seed=seed, **arrays)
        return Request("infer", observations=(single,))
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != size:
            raise InvalidParams(f"{name} has shape {array.shape}, expected a leading axis of {size}")
    instructions, timesteps = _instructions(obs.raw_lang, size), _timesteps(obs.timestep, size)
    delays, seeds = _delays(obs.delay, size), _seeds(obs.episode_seed, size)
    rows = (
        MetaObs(
            raw_lang=text,
            timestep=step,
            delay=delay,
            episode_seed=seed,
            **{name: array[row] for name, array in arrays.items()},
        )
        for row, (text, step, delay, seed) in enumerate(zip(instructions, timesteps, delays, seeds))
    )
    return Request("infer", observations=tuple(rows), batched=True)


def read_declaration(params: Mapping[str, Any], codec: PolicyCodec) -> Request:
    """Return the request that declares a layout: the layout, and the rows of its prototype.

    Raises:
        InvalidParams: It is no layout, or an observation of it would be refused.
    """
    layout = PolicyLayout.read(params)
    size = layout.layout.fixed_size + layout.decoded_size  # encoded images may be as large as raw ones
    if size > codec.max_payload:  # before anything of that size is made
        raise InvalidParams(
            f"requests of this layout have {size} bytes, "
            f"this server takes at most {codec.max_payload} (--max_payload)"
        )
    prototype = layout.prototype()
    request = read_meta_obs(prototype, codec)
    (first, *_) = request.observations
    # Images of floats are converted one by one; everything else of one observation is as it was declared.
    direct = not request.batched and layout.single and first.image is prototype.image
    return replace(
        request, method="layout", params={"layout": layout, "direct": direct}, observations=(first,)
    )


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
    if isinstance(value, np.ndarray):
        count = value.size
    elif isinstance(value, (list, tuple)):
        count = len(value)
    else:
        count = -1
    if count not in (-1, size):
        raise InvalidParams(f"raw_lang has {count} entries for a batch of {size}")
    texts = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    if count == -1 or not all(isinstance(text, str) for text in texts):
        raise InvalidParams(
            f"raw_lang is {describe(value)}, expected text, or a text for each row of the batch"
        )
    return list(texts)


def _delays(value: Any, size: int) -> Sequence[int | None]:
    return [None] * size if value is None else _timesteps(value, size, name="delay")


def _seeds(value: Any, size: int) -> Sequence[int | None]:
    if value is None:
        return [None] * size
    if isinstance(value, bool) or not (isinstance(value, (int, np.integer)) or is_numeric(value, "iu")):
        raise InvalidParams(f"episode_seed is {describe(value)}, expected an integer of 64 bits")
    count = int(np.size(value))
    if count not in (1, size):
        raise InvalidParams(f"episode_seed has {count} entries for a batch of {size}")
    seeds = [value] if isinstance(value, int) else np.ravel(value).tolist()
    for seed in seeds:
        require_seed(seed)
    return seeds * size if count == 1 else seeds


def _timesteps(value: Any, size: int, *, name: str = "timestep") -> list[int]:
    if isinstance(value, int):  # the common case, and numpy takes 20 us for it
        return [value] * size
    count = int(np.size(value))
    if count not in (1, size):
        raise InvalidParams(f"{name} has {count} entries for a batch of {size}")
    steps = np.ravel(value).tolist()
    return [int(step) for step in (steps * size if count == 1 else steps)]


def read_act(value: Mapping[str, Any], codec: PolicyCodec) -> MetaObs:
    """Return the ACT dialect's ``{"qpos": (D,), "images": {camera: (H, W, 3) uint8}}`` as a MetaObs.

    Args:
        value: As a peer made it; nothing in it was checked, but that it has ``qpos``.
        codec: Says which cameras there are, and what images of floats are.

    Raises:
        InvalidParams: A part is missing, or not what it is to be.
    """
    images = value.get("images", {})
    state = _read_qpos(value["qpos"])
    if not isinstance(images, dict):
        raise InvalidParams(
            f"images is {describe(images)}, expected a dict of camera names to (H, W, 3) uint8"
        )
    wanted = list(images) if codec.camera_names is None else codec.camera_names
    try:
        found = [images[name] for name in wanted]
    except KeyError as exc:
        raise InvalidParams(
            f"no image of camera {exc}: the policy needs {list(wanted)}, "
            f"the request has {quoted(list(images))}"
        ) from None
    if not _are_images(found):
        found = list(_checked_images(dict(zip(wanted, found)), codec).values())
    timestep, seed, lang = value.get("timestep", -1), value.get("episode_seed"), value.get("raw_lang")
    if type(timestep) is not int:
        require_timestep(timestep)
        timestep = _timesteps(timestep, 1)[0]
    stacked = None
    if len(found) == 1 and codec.strided_images:
        stacked = found[0].transpose(2, 0, 1)[np.newaxis]
    elif found:
        # In one copy, and in C order, as a MetaObs has it: np.stack would keep the order of (H, W, 3), for
        # which torch has other kernels, which round otherwise.
        height, width, _ = found[0].shape
        stacked = np.empty((len(found), 3, height, width), np.uint8)
        for row, image in zip(stacked, found):
            write_planes(row, image)
    return MetaObs(
        state=state,
        image=stacked,
        raw_lang="" if lang is None else _instructions(lang, 1)[0],
        timestep=timestep,
        episode_seed=None if seed is None else _seeds(seed, 1)[0],
    )


def _are_images(images: Sequence[Any]) -> bool:
    """Return whether all are uint8 (H, W, 3) of one size: the common case, in few calls."""
    shape = None
    for image in images:
        if type(image) is not np.ndarray or image.dtype != _UINT8:
            return False
        if shape is None:
            shape = image.shape
            if len(shape) != 3 or shape[2] != 3:
                return False
        elif image.shape != shape:
            return False
    return True


def _checked_images(images: Mapping[str, Any], codec: PolicyCodec) -> dict[str, np.ndarray]:
    """Return images by camera, all uint8 (H, W, 3) of one size.

    Raises:
        InvalidParams: One is something else.
    """
    first = None
    checked: dict[str, np.ndarray] = {}
    for name, image in images.items():
        checked[name] = codec.checked_image(f"the image of camera {quoted(name)}", image)
    for name, image in checked.items():
        what = f"the image of camera {quoted(name)}"
        require_array(what, image, "(H, W, 3) uint8", dtype=np.uint8, shape=(None, None, 3))
        first = first or name
        if image.shape != checked[first].shape:
            raise InvalidParams(
                f"{what} has shape {image.shape}, that of {quoted(first)} {checked[first].shape}"
            )
    return checked


def _read_qpos(qpos: Any) -> np.ndarray:
    """Return float32 (state_dim,)."""
    if type(qpos) is np.ndarray and qpos.dtype == np.float32 and qpos.ndim == 1:
        return qpos.astype(np.float32)
    numbers = (int, float, np.integer, np.floating)
    if isinstance(qpos, (list, tuple)) and all(isinstance(number, numbers) for number in qpos):
        try:
            state: Any = np.array(qpos, dtype=np.float64)
        except OverflowError:
            raise InvalidParams("qpos holds an integer that no float can represent") from None
    else:
        state = qpos
    array = require_array("qpos", state, "(state_dim,) numbers", shape=(None,))
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and that is refused
        return array.astype(np.float32)
