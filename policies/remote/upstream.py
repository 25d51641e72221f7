"""What each wire offers to a remote policy: an upstream that is described once, and connections to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np

from policies.remote.options import RemoteOptions
from robowire.errors import ConfigurationError
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

__all__ = ["Upstream", "UpstreamConnection", "make_spec"]


class UpstreamConnection(Protocol):
    """One connection, and so one episode after the other. Used by one thread, but for :meth:`interrupt`.

    After any failure but a ``RequestError`` it is of no further use: its owner closes it and opens another.

    Attributes:
        broken: Whether that is so after a ``RequestError`` too.
    """

    broken: bool

    def begin_episode(self, instruction: str) -> None:
        """Say that a new episode begins, where the wire has a way to say so."""
        ...

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float (B, chunk_size, action_dim) for B observations, in our own convention.

        Raises:
            ConnectionLost: The connection ended before the reply.
            RequestTimeout: No reply in time.
            RequestError: What the server answered instead of actions.
            RemoteProtocolError: The reply is not of this wire.
        """
        ...

    def interrupt(self) -> None:
        """End what another thread waits for, as if the connection was lost."""
        ...

    def close(self) -> None:
        """Close it. May be called twice."""
        ...


class Upstream(Protocol):
    """A server of one wire that was reached once, and said what it is.

    Attributes:
        spec: What its policy needs and gives.
        stateful: Whether an answer depends on earlier observations of the connection.
        takes_batches: Whether one request may hold several observations.
        new_connection_is_episode: Whether the wire's one way to begin an episode is a new connection.
        info: What the server says of itself that is of use to people, as plain data.
    """

    spec: PolicySpec
    stateful: bool
    takes_batches: bool
    new_connection_is_episode: bool
    info: Mapping[str, Any]

    def connect(self) -> UpstreamConnection:
        """Return a new connection, made and greeted.

        Raises:
            ConnectFailed: Nothing answers there.
            ConfigurationError: It is another policy than before.
        """
        ...


# A prefix is not passed on: the server asked may answer several clients in one batch.
_SPEC_NAMES = {item.name for item in fields(PolicySpec) if not item.name.startswith("rtc")}


def make_spec(options: RemoteOptions, announced: Mapping[str, Any], *, policy: str) -> PolicySpec:
    """Return the spec of a policy that its server announced in part, completed by a person's options.

    Args:
        options: Options of the remote policy.
        announced: Fields of a spec that the server said; ``None`` where it did not.
        policy: Name of the policy where the server says none.

    Raises:
        ConfigurationError: Both say something, and not the same; or nobody said the length of a chunk.
    """
    told = {name: value for name, value in announced.items() if name in _SPEC_NAMES and value is not None}
    told.pop("temporal_ensemble_coeff", None)  # what comes from there is averaged already
    for name, value in told.items():
        if isinstance(value, list):
            told[name] = tuple(value)
    differences = []
    for name, value in options.spec.items():
        said = told.get(name)
        # Names of cameras may be those of another body, in the same places; a person may execute less.
        if name == "camera_names" and said is not None and len(said) == len(value):
            continue
        if name != "n_action_steps" and said is not None and said != value:
            differences.append(f"{name}: the server says {said!r}, policy_options.{name} {value!r}")
    if differences:
        raise ConfigurationError(f"{options.url} has another policy: {'; '.join(differences)}")
    merged = {"policy": policy, **told, **options.spec}
    if "chunk_size" not in merged:
        raise ConfigurationError(
            f"{options.url} does not say how many actions it answers: --policy_options.chunk_size N"
        )
    try:
        return PolicySpec(**merged)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{options.url} announces what no policy can be: {exc}") from exc
