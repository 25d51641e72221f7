"""The ACT frontend: a policy for clients of the ACT server, over ZeroMQ."""

from __future__ import annotations

from collections.abc import Sequence

from robowire.errors import InvalidParams, RequestError, Unauthenticated
from robowire.frontends.act_zmq.codec import (
    ActExchange,
    encode_error,
    make_observation_reader,
    read_token,
)
from robowire.frontends.key_map import KeyMap
from robowire.frontends.named_observations import ObservationAdapter
from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.zmq_router import ZmqRouter
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.serving.tcp.handler import UNAUTHENTICATED_MAX_PAYLOAD
from robowire.wire.codecs import PolicyCodec
from robowire.wire.pickle.writer import Buffer

__all__ = ["ActZmqFrontend"]


class ActZmqFrontend(ZmqRouter):
    """A policy for clients of the ACT server. The port is bound when the object is made.

    Each observation is answered by one action, averaged over what all past chunks of the episode predicted
    for its step, as the ACT server does it.

    Args:
        service: What answers the requests.
        options: Port, address, limits.

    Raises:
        ConfigurationError: The address can't be listened on; or TLS is asked for, which ZeroMQ has not.
    """

    name = "act_zmq"
    # A pickle must be parsed before the token in it is seen: a small one costs nothing.
    unauthenticated_max_payload = UNAUTHENTICATED_MAX_PAYLOAD

    def __init__(self, service: PolicyService, options: PolicyFrontendOptions) -> None:
        assert options.act_zmq_port is not None
        self.policy_service = service
        spec, strided_images = service.dispatcher.spec, service.strided_images
        self._codec = PolicyCodec(
            spec.camera_names, float_images=options.float_images, strided_images=strided_images
        )
        self._adapter = ObservationAdapter(spec, KeyMap("none"), strided_images=strided_images)
        super().__init__(service, options, options.act_zmq_port)

    def describe(self) -> str:
        """Return where it listens and which images it takes, for a person."""
        cameras = self.policy_service.dispatcher.spec.camera_names
        images = "any" if cameras is None else ", ".join(cameras) or "none"
        return f"for the ACT server's clients: {self.url} (images {images})"

    def answer(self, session: PolicySession, body: bytearray) -> Sequence[Buffer]:
        """Return the reply to one request."""
        session.temporal_agg = True
        return self.policy_service.answer(session, ActExchange(body, self._codec, session.reader))

    def known_exchange(self, session: PolicySession, body: bytearray) -> ActExchange | None:
        """Return the exchange of an observation that is as an earlier one of the client."""
        match = session.reader.match(body)
        if match is None:
            return None
        template = match.template
        if template.recipe is None:  # not looked for yet
            spec = self.policy_service.dispatcher.spec
            template.recipe = make_observation_reader(template, self._codec, self._adapter, spec) or False
        if template.recipe:
            return ActExchange(body, self._codec, session.reader, observation_reader=template.recipe)
        return ActExchange(body, self._codec, session.reader, value=template.make(match.found, body))

    def token_of(self, body: bytearray) -> object:
        """Return the token in a request; called until one was right."""
        return read_token(body)

    def failure(self, error: RequestError) -> Sequence[Buffer]:
        """Return the reply to a request that was not read."""
        if self.service.needs_token and isinstance(error, (InvalidParams, Unauthenticated)):
            error = type(error)(f"{error}: on each new connection, send {{'token': TOKEN}} first")
        return encode_error(error)
