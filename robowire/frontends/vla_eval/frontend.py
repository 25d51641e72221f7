"""vla-eval's WebSocket wire of a policy service: one action for each observation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.datastructures import Headers

from robowire.chunking import ActionChunk, ChunkCursor
from robowire.errors import InvalidParams, RemoteProtocolError, RequestError, UnknownMethod
from robowire.frontends.authorization import offered_token
from robowire.frontends.named_observations import NamedObservation, make_adapter
from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.vla_eval.codec import (
    PROTOCOL_VERSION,
    Message,
    PayloadReader,
    encode_message,
    read_message,
)
from robowire.frontends.vla_eval.harness_specs import action_spec, observation_params, observation_spec
from robowire.frontends.websocket_server import HttpReply, Reply, WebSocketClient, WebSocketServer
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.version import __version__
from robowire.wire.arrays import describe, is_numeric
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable, quoted

__all__ = ["VlaEvalFrontend"]

_JSON = "application/json"


@dataclass
class _Connection:
    """What is remembered of one client: its episode.

    Attributes:
        cursor: The chunk whose actions are sent one by one.
        step: Observations of the episode that were answered.
    """

    cursor: ChunkCursor
    step: int = 0

    def begin_episode(self) -> None:
        self.cursor.clear()
        self.step = 0


class VlaEvalFrontend(WebSocketServer):
    """A policy for vla-eval's harness. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Port, address, limits, key map.

    Raises:
        ConfigurationError: The address can't be listened on, or the key map does not fit the policy.
    """

    name = "vla_eval"
    public_paths = frozenset({"/health"})
    token_words = "address it as ws://user:TOKEN@host:port, or send 'Authorization: Bearer TOKEN'"

    def __init__(self, service: PolicyService, options: PolicyFrontendOptions) -> None:
        assert options.vla_eval_port is not None
        self.policy_service = service
        self.adapter = make_adapter(
            service.dispatcher.spec, options, preset="libero", strided_images=service.strided_images
        )
        self.max_bytes = options.max_payload
        self._n_action_steps: int | None = service.info()["n_action_steps"]
        self._config = json.dumps(
            {
                "applied": {},
                "config": {
                    "max_batch_size": options.max_batch_size,
                    # Seconds; null where the server finds it out itself.
                    "max_wait_time": None if options.max_wait_ms is None else options.max_wait_ms / 1e3,
                },
            }
        )
        known = self.adapter.describe()
        optional = {
            "observation_params": observation_params(known),
            "action_spec": action_spec(known),
            "observation_spec": observation_spec(known),
        }
        self.hello: dict[str, Any] = {
            "harness_version": f"robowire {__version__}",
            "protocol_version": PROTOCOL_VERSION,
            "model_server": f"robowire:{service.dispatcher.spec.policy}",
            "capabilities": {},
            **{name: value for name, value in optional.items() if value},
        }
        super().__init__(service, options, options.vla_eval_port)

    def describe(self) -> str:
        """Return where it listens and which names it knows, for a person."""
        known = self.adapter.describe()
        images = ", ".join(known["images"]) or "none by name"
        return (
            f"for vla-eval: {self.url} (key map {known['key_map']}: images {images}; "
            f"state {', '.join(known['state']) or 'any'})"
        )

    def greet(self, client: WebSocketClient) -> Reply:
        """Send nothing: the client speaks first."""
        client.state = _Connection(ChunkCursor(self._n_action_steps))
        return Reply()

    def answer(self, client: WebSocketClient, message: bytes | memoryview | str) -> Reply:
        """Return the reply to one message; an error leaves the connection open."""
        return self.policy_service.answer(_session(client), _Exchange(self, client, message))

    def inference_s(self) -> float:
        """Return the time of the latest inference."""
        return self.policy_service.dispatcher.latest_s

    def token_of(self, headers: Headers) -> str | None:
        """Return the token of a client, which may be the password of its address."""
        return offered_token(headers.get("Authorization", ""), "bearer", "api-key", "basic")

    def http_get(self, path: str, query: str) -> HttpReply | None:
        """Return the reply to a health check, or the batching, which requests cannot change."""
        if path == "/health":
            if self.service.draining:
                return HttpReply('{"status": "draining"}\n', 503, _JSON)
            return HttpReply('{"status": "ok"}\n', content_type=_JSON)
        if path != "/config":
            return None
        if query:
            told = "this server is configured by its flags --max_batch_size and --max_wait_ms"
            return HttpReply(json.dumps({"errors": [told]}) + "\n", 422, _JSON)
        return HttpReply(self._config + "\n", content_type=_JSON)


class _Exchange:
    """One message and its reply.

    Attributes:
        method: ``"infer"``; what it really is shows when it is read.
    """

    method = "infer"

    def __init__(
        self, frontend: VlaEvalFrontend, client: WebSocketClient, data: bytes | memoryview | str
    ) -> None:
        self._frontend = frontend
        self._session = _session(client)
        self._connection: _Connection = client.state
        self._data: bytes | memoryview | str | None = data
        self._type, self._seq = "", 0

    def read(self) -> Request:
        """Return the request. A buffered action needs no observation: nothing of that is decoded.

        Raises:
            InvalidParams: It cannot be read, or its names are not those of the policy and the key map.
            SpecMismatch: A size or a length is not the policy's.
            UnknownMethod: There is no message of this type.
        """
        try:
            message = self._read_envelope()
        except RemoteProtocolError as exc:
            raise InvalidParams(printable(exc)) from None
        if message.type in ("episode_start", "episode_end"):
            self._connection.begin_episode()
            return Request("reset")
        if message.type == "observation":
            return self._read_observation(message)
        if message.type in ("hello", "error"):
            return Request("ping")
        raise UnknownMethod(
            f"there is no message {quoted(message.type)}, expected hello, episode_start, observation, "
            "episode_end or error"
        )

    def reply(self, value: Any) -> Reply:
        """Return the reply; there is none to the beginning and the end of an episode."""
        if self._type == "hello":
            return self._message("hello", self._frontend.hello)
        if self._type != "observation":
            return Reply()
        connection = self._connection
        if isinstance(value, ActionChunk):
            connection.cursor.put(self._frontend.adapter.actions(np.asarray(value.actions)))
        connection.step += 1
        return self._message("action", {"actions": connection.cursor.next()})

    def failure(self, error: RequestError) -> Reply:
        """Return the report of an error; the connection stays open."""
        if self._data is not None:  # refused before it was read, in a drain
            with suppress(RemoteProtocolError):
                self._read_envelope()
        failed = self._type if self._type in ("observation", "episode_start", "episode_end") else "message"
        text = f"{failed}_failed: {type(error).__name__}: {printable(error)}"
        return self._message("error", {"error": printable(text)})

    def _read_envelope(self) -> Message:
        data, self._data = self._data, None
        assert data is not None
        message = read_message(data)
        self._type, self._seq = message.type, message.seq
        return message

    def _read_observation(self, message: Message) -> Request:
        connection = self._connection
        if message.payload.get("episode_restart") is True:  # benchmarks with several tasks in one episode
            connection.begin_episode()
            self._session.episode.clear()
        if len(connection.cursor):
            return Request("ping")
        reader = PayloadReader(self._frontend.max_bytes)
        observation = _read_observation(message.payload, reader, connection.step)
        return self._frontend.adapter.request([observation])

    def _message(self, kind: str, payload: Mapping[str, Any]) -> Reply:
        return Reply((encode_message(kind, payload, seq=self._seq, timestamp=time.time()),))


def _read_observation(payload: Mapping[Any, Any], reader: PayloadReader, step: int) -> NamedObservation:
    """Return the observation in a payload.

    Args:
        payload: ``images`` by name, ``task_description``, and arrays: parts of the state. Maps of arrays have
            names joined by ``/``. Text and flags are no part of an observation.
        reader: Makes arrays and images.
        step: Step of the episode.

    Raises:
        InvalidParams: A name or a value is not what it is to be.
    """
    images: dict[str, Any] = {}
    state: dict[str, Any] = {}
    instruction = payload.get("task_description", "")
    if not isinstance(instruction, str):
        raise InvalidParams(f"task_description is {describe(instruction)}, expected text")

    for name, came in payload.items():
        if name == "images":
            if not isinstance(came, dict):
                raise InvalidParams(f"images is {describe(came)}, expected a map of names to images")
            for camera, image in came.items():
                images[str(camera)] = reader.value(str(camera), image)
        elif name != "task_description":
            _sort({name: came}, "", reader, state)
    return NamedObservation(images, state, instruction, step)


# Not inside of the other: a function that calls itself there is a cycle of references, which would keep every
# image until the garbage collector comes.
def _sort(names: Mapping[Any, Any], prefix: str, reader: PayloadReader, state: dict[str, Any]) -> None:
    """Add the parts of the state to the last map."""
    for name, came in names.items():
        if not isinstance(name, str):
            raise InvalidParams(f"the observation has the name {quoted(name)}, expected text")
        value = reader.value(name, came)
        if isinstance(value, dict):
            if prefix:
                raise InvalidParams(f"{quoted(prefix + name)} is a map in a map, expected an array")
            _sort(value, f"{name}/", reader, state)
        elif is_numeric(value) or (isinstance(value, list) and value):
            state[prefix + name] = value


def _session(client: WebSocketClient) -> PolicySession:
    assert isinstance(client.session, PolicySession)
    return client.session
