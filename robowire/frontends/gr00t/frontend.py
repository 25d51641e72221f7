"""The GR00T frontend: a policy for clients of GR00T N1.5, N1.6 and N1.7 on one port, over ZeroMQ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RemoteProtocolError, RequestError, Unauthenticated, UnknownMethod
from robowire.frontends.gr00t.codec import decode, encode, find_token, modality_config
from robowire.frontends.named_observations import NamedObservation, ObservationAdapter, make_adapter
from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.zmq_router import ZmqRouter
from robowire.registry import nearest
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.specs import PolicySpec
from robowire.wire.arrays import describe, is_numeric
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable, quoted

__all__ = ["Gr00tFrontend", "ObservationReader", "action_parts"]

_ENDPOINTS = ("ping", "get_modality_config", "reset", "get_action")
# Key of the instruction where a client asks for one; it may send any other.
_LANGUAGE = "annotation.human.task_description"
_LAYOUT = re.compile(r"(?:(\w+):)|([A-Za-z_]\w*)\((\d{1,4})\)")


class Gr00tFrontend(ZmqRouter):
    """A policy for clients of GR00T. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Port, address, limits, key map.

    Raises:
        ConfigurationError: The address can't be listened on, or the key map does not fit the policy; or TLS
            is asked for, which ZeroMQ has not.
    """

    name = "gr00t"

    def __init__(self, service: PolicyService, options: PolicyFrontendOptions) -> None:
        assert options.gr00t_port is not None
        self.policy_service = service
        spec = service.dispatcher.spec
        self.adapter = make_adapter(spec, options, strided_images=service.strided_images)
        known = self.adapter.describe()
        self.reader = ObservationReader(self.adapter, max_rows=options.max_waiting)
        layout = known["action_layout"]
        # A rotation in another notation can change the length.
        dim = spec.action_dim if layout == spec.action_layout else None
        self.parts = action_parts(layout, dim)
        self.modalities = _modalities(spec, known, self.parts)
        # Sessions whose observations were N1.5's.
        self._n1_5: WeakKeyDictionary[PolicySession, bool] = WeakKeyDictionary()
        super().__init__(service, options, options.gr00t_port)

    def describe(self) -> str:
        """Return where it listens and which names it knows, for a person."""
        names = "; ".join(f"{kind} {', '.join(keys)}" for kind, keys in self.modalities.items())
        return f"for GR00T's clients: {self.url} ({names})"

    def answer(self, session: PolicySession, body: bytearray) -> bytes:
        """Return the reply to one request."""
        return self.policy_service.answer(session, _Exchange(self, session, body))

    def known_exchange(self, session: PolicySession, body: bytearray) -> _Exchange:
        """Return the exchange of a request: each of them takes little time to read."""
        return _Exchange(self, session, body)

    def token_of(self, body: bytearray) -> object:
        """Return the token in a request; called until one was right."""
        return find_token(body)

    def failure(self, error: RequestError) -> bytes:
        """Return the report of an error."""
        if isinstance(error, Unauthenticated):
            return encode({"error": "Unauthorized: Invalid API token"})  # GR00T's own words
        return encode({"error": f"{error.error_type}: {printable(error)}"})

    def speaks_n1_5(self, session: PolicySession) -> bool:
        """Return whether the session's latest observation was N1.5's."""
        return self._n1_5.get(session, False)

    def note_version(self, session: PolicySession, *, n1_5: bool) -> None:
        """Remember whose observation a session sent."""
        self._n1_5[session] = n1_5

    def config(self, session: PolicySession) -> dict[str, Any]:
        """Return the reply to ``get_modality_config``."""
        n1_5 = self.speaks_n1_5(session)
        config = {}
        for kind, keys in self.modalities.items():
            # N1.5 writes the modality in front of its keys.
            names = [key if kind == "language" or not n1_5 else f"{kind}.{key}" for key in keys]
            steps = list(range(self.policy_service.chunk_size)) if kind == "action" else [0]
            config[kind] = modality_config(names, steps, as_text=n1_5)
        return config


@dataclass(frozen=True)
class _Rows:
    """The observations of one request.

    Attributes:
        request: Of one observation for each entry of the batch.
        flat: Whether its names have the modality in front, as the reply's have then too.
    """

    request: Request
    flat: bool


class _Exchange:
    """One request and its reply.

    Attributes:
        method: ``"infer"``; what it really is shows when it is read.
    """

    method = "infer"

    def __init__(self, frontend: Gr00tFrontend, session: PolicySession, body: bytearray) -> None:
        self._frontend = frontend
        self._session = session
        self._body: bytearray | None = body
        self._endpoint = ""
        self._rows: _Rows | None = None

    def read(self) -> Request:
        """Return the request.

        Raises:
            UnknownMethod: Its endpoint is unknown, or may not be used.
            InvalidParams: It cannot be read, or its names are not those of the policy and the key map.
            SpecMismatch: A size or a length is not the policy's.
        """
        body, self._body = self._body, None
        assert body is not None
        try:
            content = decode(body)
        except RemoteProtocolError as exc:
            raise InvalidParams(printable(exc)) from None
        if not isinstance(content, dict):
            raise InvalidParams(f"a request is {quoted(content)}, expected a map with an 'endpoint'")
        endpoint = content.get("endpoint", "get_action")
        if endpoint == "kill":
            raise UnknownMethod("kill is refused: a client may not end this server")
        if not isinstance(endpoint, str) or endpoint not in _ENDPOINTS:
            hint = nearest(endpoint[:40], _ENDPOINTS) if isinstance(endpoint, str) else ""
            raise UnknownMethod(
                f"unknown endpoint {quoted(endpoint, 50)}.{hint} Known: {', '.join(_ENDPOINTS)}"
            )
        self._endpoint = endpoint
        if endpoint != "get_action":
            return Request("reset" if endpoint == "reset" else "ping")
        data = content.get("data")
        if not isinstance(data, dict):
            raise InvalidParams(f"data is {describe(data)}, expected a map of an observation")
        self._frontend.note_version(self._session, n1_5="observation" not in data)
        self._rows = rows = self._frontend.reader.read(data.get("observation", data))
        return rows.request

    def reply(self, value: Any) -> bytes:
        """Return the reply to a request that was executed."""
        frontend = self._frontend
        if isinstance(value, ActionChunk):
            actions = self._actions(value.actions)
            return encode(actions if frontend.speaks_n1_5(self._session) else [actions, {}])
        if self._endpoint == "get_modality_config":
            return encode(frontend.config(self._session))
        if self._endpoint == "reset":
            return encode({})
        return encode({"status": "ok", "message": "Server is running"})

    def failure(self, error: RequestError) -> bytes:
        """Return the report of an error."""
        return self._frontend.failure(error)

    def _actions(self, chunk: np.ndarray) -> dict[str, np.ndarray]:
        assert self._rows is not None
        actions = self._frontend.adapter.actions(np.asarray(chunk))
        if self._rows.request.batched:
            actions = actions.swapaxes(0, 1)  # (B, chunk_size, A)
        prefix = "action." if self._rows.flat else ""
        parts = self._frontend.parts or {"action": slice(None)}
        return {
            prefix + name: np.ascontiguousarray(actions[..., part], np.float32)
            for name, part in parts.items()
        }


class ObservationReader:
    """Reads GR00T's observations, nested or with dotted names, of one or of many.

    Args:
        adapter: Knows the names.
        max_rows: Largest batch to accept.
    """

    def __init__(self, adapter: ObservationAdapter, *, max_rows: int) -> None:
        self._adapter = adapter
        self._max_rows = max_rows
        known = adapter.describe()
        state = [name for line in known["state"] for name in line.split(" or ")]
        self._known = {"video": frozenset(known["images"]), "state": frozenset(state)}

    def read(self, observation: Any) -> _Rows:
        """Return the observations of a request.

        Raises:
            InvalidParams: A name or a value is not what the policy and the key map know.
            SpecMismatch: A size or a length is not the policy's.
        """
        if not isinstance(observation, dict) or not all(isinstance(name, str) for name in observation):
            raise InvalidParams(
                f"an observation is {quoted(observation)}, expected a map of video, state and language"
            )
        flat = not any(isinstance(value, dict) for value in observation.values())
        video, state, language = _flat_parts(observation) if flat else _nested_parts(observation)
        arrays = {
            **{f"video.{name}": (value, 4) for name, value in video.items()},
            **{f"state.{name}": (value, 2) for name, value in state.items()},
        }
        size, batched = self._size(arrays, language)
        texts = _instructions(language, size)
        rows = []
        for row in range(size):
            # The newest of the steps that a client may send.
            values = {name: value[row, -1] if batched else value[-1] for name, (value, _) in arrays.items()}
            named = NamedObservation(
                {self._name("video", name): values[f"video.{name}"] for name in video},
                {self._name("state", name): values[f"state.{name}"] for name in state},
                texts[row],
            )
            rows.append(named)
        return _Rows(self._adapter.request(rows, batched=batched), flat)

    def _size(self, arrays: Mapping[str, tuple[Any, int]], language: Mapping[str, Any]) -> tuple[int, bool]:
        """Return the length of the batch, and whether the arrays have its axis."""
        axes = "(B, T, height, width, 3) and (B, T, D), or without B"
        batched: bool | None = None
        size = 1
        for name, (value, ndim) in arrays.items():
            if not is_numeric(value) or value.ndim not in (ndim, ndim + 1) or 0 in value.shape[:-1]:
                raise InvalidParams(f"{quoted(name)} is {describe(value)}, expected {axes}")
            has_batch = value.ndim == ndim + 1
            if batched is None:
                batched, size = has_batch, len(value) if has_batch else 1
            elif batched != has_batch or (has_batch and len(value) != size):
                raise InvalidParams(f"{quoted(name)} has shape {value.shape}, others {axes} with B = {size}")
        if batched is None:  # a policy that needs neither
            texts = next(iter(language.values()), [""])
            batched, size = True, max(len(texts), 1) if isinstance(texts, list) else 1
        if size > self._max_rows:
            raise InvalidParams(f"the batch has {size} rows, expected at most {self._max_rows}: send several")
        return size, batched

    def _name(self, kind: str, name: str) -> str:
        """Return the name by which the adapter knows a key: with the modality in front, or alone."""
        dotted = f"{kind}.{name}"
        return name if name in self._known[kind] and dotted not in self._known[kind] else dotted


def _flat_parts(observation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the views, states and instructions of dotted names."""
    video, state, language = {}, {}, {}
    for name, value in observation.items():
        kind, _, rest = name.partition(".")
        if kind == "video" and rest:
            video[rest] = value
        elif kind == "state" and rest:
            state[rest] = value
        elif kind == "annotation":
            language[name] = value
        else:
            raise InvalidParams(
                f"the observation has the name {quoted(name)}, expected video.NAME, state.NAME and "
                "annotation.NAME"
            )
    return video, state, language


def _nested_parts(observation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the views, states and instructions of a map by modality."""
    parts = []
    for kind in ("video", "state", "language"):
        part = observation.get(kind)
        part = {} if part is None else part
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise InvalidParams(f"{kind} is {quoted(part)}, expected a map of names")
        parts.append(part)
    unknown = [name for name in observation if name not in ("video", "state", "language")]
    if unknown:
        raise InvalidParams(
            f"the observation has the name {quoted(unknown[0])}, expected video, state and language"
        )
    video, state, language = parts
    return video, state, language


def _instructions(language: Mapping[str, Any], size: int) -> list[str]:
    """Return the text of each row."""
    if not language:
        return [""] * size
    if len(language) > 1:
        raise InvalidParams(f"the observation has the instructions {quoted(list(language))}, expected one")
    ((name, value),) = language.items()
    texts = [value] * size if isinstance(value, str) else value
    if isinstance(texts, list):
        # [[text], ...] of N1.6 has the steps, of which the last counts.
        texts = [text[-1] if isinstance(text, list) and text else text for text in texts]
        if len(texts) == size and all(isinstance(text, str) for text in texts):
            return texts
    raise InvalidParams(f"{quoted(name)} is {quoted(value)}, expected a text for each of {size} rows")


def action_parts(layout: str | None, action_dim: int | None) -> dict[str, slice]:
    """Return the keys of an action and which of its numbers they are; empty where it has no layout.

    Args:
        layout: Words with lengths, with arms where there are several: ``"right: dpos(3) gripper(1); left:
            dpos(3) gripper(1)"`` is ``right_dpos``, ``right_gripper``, ...
        action_dim: Numbers of an action, where they are known.
    """
    arm, words = "", []
    for name, word, length in _LAYOUT.findall(layout or ""):
        if name:
            arm = f"{name}_"
        else:
            words.append((arm + word, int(length)))
    if not words or action_dim not in (None, sum(length for _, length in words)):
        return {}
    often = Counter(word for word, _ in words)
    parts: dict[str, slice] = {}
    start = 0
    for word, length in words:
        number = sum(key == word or key.startswith(f"{word}_") for key in parts) + 1
        parts[word if often[word] == 1 else f"{word}_{number}"] = slice(start, start + length)
        start += length
    return parts


def _modalities(
    spec: PolicySpec, known: Mapping[str, Any], parts: Mapping[str, slice]
) -> dict[str, Sequence[str]]:
    """Return the keys of each modality, for clients that ask for them; none is without a key."""
    by_camera = {camera: name for name, camera in reversed(known["images"].items())}
    cameras = [by_camera.get(camera, camera) for camera in spec.camera_names or ()]
    state = [line.split(" or ")[0] for line in known["state"]]
    if not state and known["state_layout"] == spec.state_layout:
        words = list(action_parts(spec.state_layout, spec.state_dim))
        plain = list(action_parts(re.sub(r"\w+:", "", spec.state_layout or ""), spec.state_dim))
        state = words if words == plain else []  # of two arms a key does not tell the adapter which
    return {
        "video": [name.removeprefix("video.") for name in cameras] or ["image"],
        "state": [name.removeprefix("state.") for name in state] or ["state"],
        "action": list(parts) or ["action"],
        "language": [_LANGUAGE],
    }
