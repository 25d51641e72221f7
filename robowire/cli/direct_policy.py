"""A policy in this process with the methods of a client, for the loops that are written for clients.

So an evaluation of a server of another wire has no server of ours in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import RemoteProtocolError
from robowire.interfaces import EpisodeSession, Policy, SessionPolicy
from robowire.meta import MetaAction, MetaObs
from robowire.serving.policy.validation import check_observation

__all__ = ["DirectPolicyClient"]


class DirectPolicyClient:
    """A session with a policy in this process. The methods are those of :class:`robowire.PolicyClient`.

    Args:
        policy: A :class:`SessionPolicy`, which may have other sessions at the same time.
    """

    def __init__(self, policy: Policy) -> None:
        assert isinstance(policy, SessionPolicy)
        self._policy: SessionPolicy = policy
        self._spec = policy.spec
        self._session: EpisodeSession | None = None

    def connect(self) -> None:
        """Open the session, unless it is open. It connects with its first observation."""
        if self._session is None:
            self._session = self._policy.open_session()

    def disconnect(self) -> None:
        """End the session. May be called twice; the next request opens another."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def interrupt(self) -> None:
        """End the request that another thread waits for, as if the connection was lost."""
        interrupt = getattr(self._session, "interrupt", None)
        if interrupt is not None:
            interrupt()

    def get_info(self) -> dict[str, Any]:
        """Return what a policy server would report of this policy."""
        return {
            **self._spec.to_wire(),
            "temporal_agg": False,
            "stateful": self._policy.stateful,
            "device": str(getattr(self._policy, "device", "unknown")),
            "model_name": None,
        }

    def reset(self) -> None:
        """Begin a new episode."""
        self.connect()
        assert self._session is not None
        self._session.reset()

    def infer_chunk(self, obs: MetaObs) -> ActionChunk:
        """Return the chunk for one observation.

        Raises:
            RobowireError: What failed, as the class that a client of the server's own wire would raise.
        """
        self.connect()
        assert self._session is not None
        check_observation(obs, self._spec)
        actions = self._session.infer([obs])[0]
        if not np.isfinite(actions).all():
            raise RemoteProtocolError("the actions in the reply are not finite")
        return ActionChunk(actions, *self._spec.ctrl)

    def send_meta_obs(self, obs: MetaObs) -> list[Any]:
        """Return the chunk as a list of :class:`MetaAction`."""
        chunk = self.infer_chunk(obs)
        return [MetaAction(chunk.ctrl_space, chunk.ctrl_type, action) for action in chunk.actions]
