"""The openpi frontend: a policy for openpi's client, and for RoboArena's, over WebSocket."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RemoteProtocolError, RequestError
from robowire.frontends.msgpack_templates import MessageTemplate, MessageTemplates
from robowire.frontends.named_observations import (
    NamedObservation,
    ObservationAdapter,
    ObservationReader,
    make_adapter,
)
from robowire.frontends.openpi.codec import ARRAY_FIELDS, decode, encode, encode_chunk, timings
from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.websocket_server import (
    INTERNAL_ERROR,
    HttpReply,
    Reply,
    WebSocketClient,
    WebSocketServer,
)
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.specs import PolicySpec
from robowire.version import __version__
from robowire.wire.arrays import describe
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable, quoted

__all__ = ["OpenpiFrontend"]

# Keys of a request that are no part of the observation.
_ENDPOINT, _SESSION, _ERRORS, _BATCH, _PROMPT, _TIMESTEP, _SEED = (
    *("endpoint", "session_id", "errors", "batch", "prompt", "timestep", "episode_seed"),
)
_ENDPOINTS = ("infer", "reset")


class _Recipe(NamedTuple):
    """How messages of one template become an observation.

    Attributes:
        words: What is no part of the observation.
        reader: Reads the observation.
    """

    words: dict[str, Any]
    reader: ObservationReader


@dataclass
class _Connection:
    """What is remembered of one client.

    Attributes:
        templates: Of its observations.
        typed_errors: It asked for errors as maps, which leave the connection open.
        session_id: The latest one it sent.
        total_ms: How long its latest request took, from the last byte received to the first one sent.
    """

    templates: MessageTemplates[_Recipe]
    typed_errors: bool = False
    session_id: str | None = None
    total_ms: float | None = None


class OpenpiFrontend(WebSocketServer):
    """A policy for clients of openpi. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Port, address, limits, key map.

    Raises:
        ConfigurationError: The address can't be listened on, or the key map does not fit the policy.
    """

    name = "openpi"
    public_paths = frozenset({"/healthz"})

    def __init__(self, service: PolicyService, options: PolicyFrontendOptions) -> None:
        assert options.openpi_port is not None
        self.policy_service = service
        self.adapter = make_adapter(
            service.dispatcher.spec, options, preset="libero", strided_images=service.strided_images
        )
        self.max_rows = options.max_waiting
        self._metadata = encode(_metadata(service, self.adapter))
        super().__init__(service, options, options.openpi_port)

    def describe(self) -> str:
        """Return where it listens and which names it knows, for a person."""
        known = self.adapter.describe()
        images = ", ".join(known["images"]) or "none by name"
        state = ", ".join(known["state"]) or "any"
        return (
            f"for openpi's clients: {self.url} (key map {known['key_map']}: images {images}; state {state})"
        )

    def greet(self, client: WebSocketClient) -> Reply:
        """Return the metadata, which a client waits for before it sends anything."""
        client.state = _Connection(MessageTemplates(ARRAY_FIELDS, partial(_recipe, self.adapter)))
        return Reply((self._metadata,))

    def answer(self, client: WebSocketClient, message: bytes | memoryview | str) -> Reply:
        """Return the reply to one message."""
        assert isinstance(client.session, PolicySession)
        return self.policy_service.answer(client.session, _Exchange(self, client, message))

    def inference_s(self) -> float:
        """Return the time of the latest inference."""
        return self.policy_service.dispatcher.latest_s

    def http_get(self, path: str, query: str) -> HttpReply | None:
        """Return the reply to a health check."""
        if path != "/healthz":
            return None
        # A load balancer that sees 503 sends new clients elsewhere.
        return HttpReply("draining\n", 503) if self.service.draining else HttpReply("OK\n")


class _Exchange:
    """One message and its reply.

    Attributes:
        method: ``"infer"``; what it really is shows when it is read.
    """

    method = "infer"

    def __init__(
        self, frontend: OpenpiFrontend, client: WebSocketClient, message: bytes | memoryview | str
    ) -> None:
        self._frontend = frontend
        self._client = client
        self._connection: _Connection = client.state
        self._message: bytes | memoryview | str | None = message
        self._started = time.monotonic()
        self._endpoint: str | None = None
        self._batched = False

    def read(self) -> Request:
        """Return the request.

        Raises:
            InvalidParams: It cannot be read, or its names are not those of the policy and the key map.
            SpecMismatch: A size or a length is not the policy's.
        """
        message, self._message = self._message, None
        if message is None or isinstance(message, str):
            raise InvalidParams("a request is a binary message of msgpack, not text")
        templates = self._connection.templates
        if (known := templates.read(message)) is not None:
            if known.words:
                self._read_words(dict(known.words))
            return known.reader.request(message)
        try:
            content = decode(message)
        except RemoteProtocolError as exc:
            raise InvalidParams(printable(exc)) from None
        if not isinstance(content, dict):
            raise InvalidParams(f"a request is {quoted(content)}, expected a map of an observation's names")
        self._read_words(content)
        if self._endpoint == "reset":
            return Request("reset")
        if _BATCH in content:
            return self._read_batch(content)
        request = self._frontend.adapter.request([_read_observation(content)])
        templates.accepted(message)
        return request

    def reply(self, value: Any) -> Reply:
        """Return the reply to a request that was executed."""
        if not isinstance(value, ActionChunk):
            return Reply(("reset successful",))
        actions = self._frontend.adapter.actions(np.asarray(value.actions))
        connection = self._connection
        if self._endpoint is not None and not self._batched:
            # RoboArena's servers send what its policies return: the array itself.
            return Reply((encode(np.ascontiguousarray(actions)),))
        infer_ms = float(value.infer_ms or 0.0)
        if self._batched:
            batch = [{"actions": actions[:, row]} for row in range(actions.shape[1])]
            message = encode({**timings(infer_ms, connection.total_ms), "batch": batch})
        else:
            message = encode_chunk(actions, infer_ms, connection.total_ms)
        connection.total_ms = (time.monotonic() - self._started) * 1e3
        return Reply((message,))

    def failure(self, error: RequestError) -> Reply:
        """Return the report of an error; openpi's own one ends the connection."""
        text = f"{error.error_type}: {printable(error)}"
        if not self._connection.typed_errors:
            return Reply((text,), close=(INTERNAL_ERROR, error.error_type))
        content = {
            "status": "error",
            "type": "error",
            "error_type": error.error_type,
            "message": printable(error),
        }
        return Reply((encode(content),))

    def _read_words(self, content: dict[Any, Any]) -> None:
        """Take out of the request what is no part of the observation."""
        errors = content.pop(_ERRORS, None)
        if errors not in (None, "typed", "text"):
            raise InvalidParams(f"{_ERRORS} is {quoted(errors)}, expected 'typed' or 'text'")
        if errors is not None:
            self._connection.typed_errors = errors == "typed"
        endpoint = content.pop(_ENDPOINT, None)
        if endpoint is not None and endpoint not in _ENDPOINTS:
            raise InvalidParams(f"{_ENDPOINT} is {quoted(endpoint)}, expected {' or '.join(_ENDPOINTS)}")
        self._endpoint = endpoint
        session_id = content.pop(_SESSION, None)
        if session_id is None:
            return
        if not isinstance(session_id, str) or len(session_id) > 1000:
            raise InvalidParams(
                f"{_SESSION} is {quoted(session_id)}, expected a text of at most 1000 characters"
            )
        if session_id != self._connection.session_id:
            # Another episode of a client that keeps its connection.
            session = self._client.session
            assert isinstance(session, PolicySession)
            session.episode.clear()
            self._connection.session_id = session_id

    def _read_batch(self, content: dict[Any, Any]) -> Request:
        rows = content.pop(_BATCH)
        if content:
            raise InvalidParams(
                f"a batch comes with {quoted(list(content))}, expected {_BATCH} alone: each observation has "
                "its own prompt"
            )
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise InvalidParams(f"{_BATCH} is {quoted(rows)}, expected a list of observations, at least one")
        if len(rows) > self._frontend.max_rows:
            raise InvalidParams(
                f"the batch has {len(rows)} rows, expected at most {self._frontend.max_rows}: send several"
            )
        self._batched = True
        return self._frontend.adapter.request([_read_observation(row) for row in rows], batched=True)


def _recipe(adapter: ObservationAdapter, template: MessageTemplate[_Recipe]) -> _Recipe:
    """Return how messages of a template become an observation.

    Raises:
        ValueError: Their values decide that as well, or they are none.
    """
    content = template.prototype
    if not isinstance(content, dict) or _BATCH in content or content.get(_ENDPOINT) == "reset":
        raise ValueError("no observation")
    words = {key: content.pop(key) for key in (_ERRORS, _ENDPOINT, _SESSION) if key in content}
    named = _read_observation(content)
    arrays = (*named.images.items(), *named.state.items())
    places = {name: template.places[template.index(array)] for name, array in arrays}
    if len(places) != len(template.places):  # one that is no part of it, or two of one name
        raise ValueError("it has other arrays")
    return _Recipe(words, adapter.reader(named, places))


def _read_observation(content: Mapping[Any, Any]) -> NamedObservation:
    """Return the observation in a map under openpi's names.

    Args:
        content: Images and parts of the state by name, in maps of maps (``images``: ``cam_high``) too, whose
            names are joined by ``/``; ``prompt``: the instruction; ``timestep``: step of the episode;
            ``episode_seed``: its seed.

    Raises:
        InvalidParams: A name is no text, or the prompt, the timestep or the seed is not what it is to be.
    """
    images: dict[str, Any] = {}
    state: dict[str, Any] = {}
    prompt, timestep = content.get(_PROMPT, ""), content.get(_TIMESTEP, -1)
    if isinstance(prompt, bytes):
        prompt = prompt.decode("utf-8", "replace")
    if not isinstance(prompt, str):
        raise InvalidParams(f"{_PROMPT} is {describe(prompt)}, expected text")
    if isinstance(timestep, bool) or not isinstance(timestep, (int, np.integer)):
        raise InvalidParams(f"{_TIMESTEP} is {describe(timestep)}, expected an int")
    seed = content.get(_SEED)
    if seed is not None and (
        isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 63
    ):
        raise InvalidParams(f"{_SEED} is {quoted(seed)}, expected an int from 0 to {(1 << 63) - 1}")
    _sort(content, "", images, state)
    return NamedObservation(images, state, prompt, int(timestep), None if seed is None else int(seed))


# A function of its own: one inside of the other that calls itself is a cycle of references, which would keep
# every image until the garbage collector comes.
def _sort(names: Mapping[Any, Any], prefix: str, images: dict[str, Any], state: dict[str, Any]) -> None:
    """Add images and parts of the state to the two maps."""
    for name, value in names.items():
        if not isinstance(name, str):
            raise InvalidParams(f"the observation has the name {quoted(name)}, expected text")
        if isinstance(value, dict) and not prefix:
            _sort(value, f"{name}/", images, state)
        elif isinstance(value, np.ndarray) and value.ndim >= 3:
            images[prefix + name] = value
        elif prefix or name not in (_PROMPT, _TIMESTEP, _SEED):
            state[prefix + name] = value


def _metadata(service: PolicyService, adapter: ObservationAdapter) -> dict[str, Any]:
    """Return what a client is told first. RoboArena's clients read the last six keys."""
    spec, known = service.dispatcher.spec, adapter.describe()
    size = (spec.image_height, spec.image_width)
    wrists = sum(any(word in name for word in ("wrist", "hand")) for name in spec.camera_names or ())
    return {
        "server": f"robowire {__version__}",
        "policy": spec.policy,
        "action_horizon": service.chunk_size,
        "n_action_steps": spec.n_action_steps and min(spec.n_action_steps, service.chunk_size),
        "action_dim": spec.action_dim,
        "ctrl_space": spec.ctrl_space,
        "ctrl_type": spec.ctrl_type,
        "control_hz": spec.control_hz,
        **known,
        # No policy here continues a chunk that is being executed.
        "rtc_mode": "none",
        "rtc_max_delay_steps": 0,
        "image_resolution": None if None in size else list(size),
        "needs_wrist_camera": wrists > 0,
        "n_external_cameras": len(spec.camera_names or ()) - wrists,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": _action_space(spec),
    }


def _action_space(spec: PolicySpec) -> str:
    """Return RoboArena's word for the actions."""
    velocity = "vel" in (spec.action_layout or "") or spec.ctrl_type == "delta"
    space = "joint" if spec.ctrl_space == "joint" else "cartesian"
    return f"{space}_{'velocity' if velocity else 'position'}"
