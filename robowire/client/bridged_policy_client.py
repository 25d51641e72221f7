"""A policy client behind a bridge: its observations and actions are the body's, the server's the policy's."""

from __future__ import annotations

from typing import Any, Sequence

from robowire.chunking import ActionChunk
from robowire.contract import Bridge, bridge, check_adapters
from robowire.errors import RobowireError
from robowire.meta import MetaAction, MetaObs
from robowire.specs import Embodiment, PolicySpec

__all__ = ["BridgedPolicyClient"]


class BridgedPolicyClient:
    """A session with a policy server, in the names, units, signs and rate of a body.

    ::

        body = Embodiment(state_names=("b", "a"), action_names=("b", "a"), action_units=("deg", "deg"))
        client = BridgedPolicyClient(PolicyClient("localhost", 5000), body, adapters=("reorder", "units"))
        client.connect()  # refuses a policy that these adapters do not fit to the body
        chunk = client.infer_chunk(observation)

    Connecting compares the server's policy with the body; a session that begins again behind a lost
    connection is not compared again.

    Args:
        client: :class:`robowire.PolicyClient`, or what has its methods.
        body: What the robot, or the simulator's task, gives and takes.
        adapters: Names of :data:`robowire.contract.ADAPTERS` that may bridge mismatches.

    Raises:
        ConfigurationError: There is no such adapter.
    """

    def __init__(self, client: Any, body: Embodiment, *, adapters: Sequence[str] = ()) -> None:
        check_adapters(adapters)
        self._client, self._body, self._adapters = client, body, tuple(adapters)
        self._compared = False
        self._bridge: Bridge | None = None

    def connect(self) -> None:
        """Connect, and compare policy and body.

        Raises:
            SpecMismatch: They differ in what no adapter bridges; each mismatch is named.
            ConfigurationError: The rate is bridged, and the server averages over time.
            RobowireError: The server cannot be used.
        """
        self._client.connect()
        try:
            self.get_info()
        except RobowireError:
            self._client.disconnect()
            raise

    def disconnect(self) -> None:
        """End the session."""
        self._client.disconnect()

    def interrupt(self) -> None:
        """End the request that another thread waits for, as if the connection was lost."""
        self._client.interrupt()

    def reset(self) -> None:
        """Begin a new episode."""
        self._client.reset()

    def get_info(self) -> dict[str, Any]:
        """Return the server's info with the spec that the body sees, and ``adapters``, those in use.

        Raises:
            SpecMismatch: As :meth:`connect`.
            ConfigurationError: As :meth:`connect`.
        """
        info: dict[str, Any] = self._client.get_info()
        spec = PolicySpec.from_wire(info)
        found = bridge(spec, self._body, self._adapters)
        if found is not None:
            found.require_timeable(info)
        self._bridge, self._compared = found, True
        if found is None:
            return info
        return {**info, **found.spec().to_wire(), "adapters": list(found.adapters)}

    def infer_chunk(self, obs: MetaObs) -> ActionChunk:
        """Return the chunk for one observation of the body, in the body's numbers and steps."""
        if not self._compared:
            self.connect()
        if self._bridge is None:
            chunk: ActionChunk = self._client.infer_chunk(obs)
            return chunk
        return self._bridge.chunk(self._client.infer_chunk(self._bridge.observation(obs)))

    def send_meta_obs(self, obs: MetaObs) -> list[Any]:
        """Return the chunk as a list of :class:`~robowire.meta.MetaAction`, one for each step of the body."""
        chunk = self.infer_chunk(obs)
        return [MetaAction(chunk.ctrl_space, chunk.ctrl_type, action) for action in chunk.actions]
