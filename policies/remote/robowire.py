"""``robowire://``: another policy server of this project, or an older one of its wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from policies.remote.options import RemoteOptions
from policies.remote.upstream import make_spec
from robowire.client.policy_client import PolicyClient
from robowire.errors import ConfigurationError, UnknownMethod
from robowire.meta import OBSERVED, MetaObs
from robowire.specs import PolicySpec

__all__ = ["RobowireUpstream"]

_ARRAYS = tuple(name for name in OBSERVED if name not in ("raw_lang", "timestep"))


class RobowireUpstream:
    """A policy server of the native wire. Its ``get_info`` says everything.

    Attributes are those of :class:`policies.remote.upstream.Upstream`.
    """

    takes_batches = True
    new_connection_is_episode = False

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        client = self._client()
        with client:
            self.info: Mapping[str, Any] = _info(client)
        self._announced = _fields_of(self.info)
        self.spec = make_spec(options, self.info, policy="robowire")
        self.stateful = bool(
            self.info.get("temporal_agg") or self.info.get("stateful")
            if options.stateful is None
            else options.stateful
        )

    def connect(self) -> RobowireConnection:
        """Return a new connection, made and greeted."""
        client = self._client()
        client.connect()
        try:
            before, now = self._announced, _fields_of(_info(client))
            changed = [
                f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
                for name in sorted({*before, *now})
                if before.get(name) != now.get(name)
            ]
            if changed:
                raise ConfigurationError(
                    f"{self._options.url} came back with another policy: {'; '.join(changed)}"
                )
        except BaseException:
            client.disconnect()
            raise
        return RobowireConnection(client)

    def _client(self) -> PolicyClient:
        options = self._options
        return PolicyClient(
            options.host,
            options.port,
            connect_timeout_s=options.connect_timeout_s,
            timeout_s=options.timeout_s,
            retries=0,
            token=options.token,
            tls=options.tls or False,
        )


class RobowireConnection:
    """A session with that server.

    Attributes:
        broken: Never: errors leave the connection open.
    """

    broken = False

    def __init__(self, client: PolicyClient) -> None:
        self._client = client
        self._fresh = True

    def begin_episode(self, instruction: str) -> None:
        """Reset the session, unless it has just begun."""
        if not self._fresh:
            self._client.reset()

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float (B, chunk_size, action_dim)."""
        self._fresh = False
        if len(observations) == 1:
            return self._client.infer(observations[0])[np.newaxis]
        return self._client.infer(_stacked(observations)).swapaxes(0, 1)

    def interrupt(self) -> None:
        """End what another thread waits for."""
        self._client.interrupt()

    def close(self) -> None:
        """End the session."""
        self._client.disconnect()


def _info(client: PolicyClient) -> dict[str, Any]:
    try:
        return client.get_info()
    except UnknownMethod:  # an older server of this wire
        return {}


def _fields_of(info: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(PolicySpec)} | {"temporal_agg", "stateful"}
    return {name: value for name, value in info.items() if name in names}


def _stacked(observations: Sequence[MetaObs]) -> MetaObs:
    """Return a batch of observations whose arrays are alike."""
    arrays: dict[str, Any] = {}
    for name in _ARRAYS:
        values = [getattr(observation, name) for observation in observations]
        if values[0] is not None:
            arrays[name] = np.stack(values)
    # One text for each row, which the type of the single observation does not say.
    texts: Any = [observation.raw_lang for observation in observations]
    timesteps = np.array([[observation.timestep] for observation in observations])
    seeds: Any = [observation.episode_seed for observation in observations]
    seeds = None if None in seeds else np.array(seeds)
    return replace(MetaObs(raw_lang=texts, timestep=timesteps, episode_seed=seeds), **arrays)
