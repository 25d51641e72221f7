"""What the server knows of one peer, and of the episode that peer is in. No socket or thread in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robowire.chunking import TemporalEnsembler
from robowire.errors import InvalidParams, ShuttingDown, Unauthenticated
from robowire.version import __version__
from robowire.wire.auth import check_token
from robowire.wire.messages import PROTOCOL_VERSION, ok

__all__ = ["Episode", "Session"]

_REPLY_FORMATS = ("list", "chunk")


@dataclass(eq=False)
class Session:
    """One connection's peer. Its connection's thread is the only one that changes it, but for ``draining``.

    Attributes:
        id: Counts from 1, never used twice by one server.
        peer: ``host:port``.
        host: Address of this machine under which the peer came.
        authenticated: Whether it may ask for anything but ``hello``.
        said_hello: Whether it understands typed errors.
        reply: How it wants a chunk: ``"list"`` of MetaAction, or ``"chunk"``, one array.
        requests: Payloads and lines received so far.
        draining: The server finishes what it has; set by the server.
        has_left: Whether the peer ended its half of the connection; for the session's thread, to ask while it
            works long for the peer.
        episode: What is remembered of the running episode.
    """

    id: int
    peer: str
    host: str = ""
    authenticated: bool = True
    said_hello: bool = False
    reply: str = "list"
    requests: int = 0
    draining: bool = False
    has_left: Callable[[], bool] = lambda: False
    episode: Episode = field(default_factory=lambda: Episode())

    def __str__(self) -> str:
        return f"client #{self.id}"

    def hello(self, params: Mapping[str, Any], *, server: str, auth_token: str | None) -> dict[str, Any]:
        """Take the ``hello`` request and return its reply. It may be repeated.

        Args:
            params: Of the request. Unknown ones are left alone: a newer client may send more.
            server: ``"policy"`` or ``"simulator"``.
            auth_token: What the client must show, if anything.

        Raises:
            Unauthenticated: The token is missing or wrong.
            InvalidParams: The client speaks another version of the protocol, or wants an unknown reply
                format.
        """
        self.said_hello = True  # even if it is refused: it understands typed errors
        check_token(params.get("token"), auth_token)
        version, reply = params.get("protocol_version", PROTOCOL_VERSION), params.get("reply", "list")
        if not isinstance(version, int) or version != PROTOCOL_VERSION:
            raise InvalidParams(
                f"protocol_version is {version!r}, this server speaks {PROTOCOL_VERSION}"[:200]
            )
        if not isinstance(reply, str) or reply not in _REPLY_FORMATS:
            raise InvalidParams(f"reply is {reply!r}, expected 'list' or 'chunk'"[:200])
        self.authenticated, self.reply = True, reply
        return ok(protocol_version=PROTOCOL_VERSION, version=__version__, server=server, session=self.id)

    def admit(self) -> None:
        """Let a request in; handlers call this before they do any but ``hello``.

        Raises:
            Unauthenticated: The session has not shown the token.
            ShuttingDown: The server takes no new requests.
        """
        if not self.authenticated:
            raise Unauthenticated("say hello with the token first")
        if self.draining:
            raise ShuttingDown("the server shuts down and takes no new requests")


class Episode:
    """A policy session's episode: one temporal ensembler for each row of its batch."""

    def __init__(self) -> None:
        self._rows: list[TemporalEnsembler] = []
        self._timesteps: list[int] = []

    def clear(self) -> None:
        """Begin anew."""
        self._rows, self._timesteps = [], []

    def ensemble(self, timesteps: Sequence[int], chunks: np.ndarray, *, k: float) -> np.ndarray:
        """Take each row's new chunk and return each row's action for this step.

        A row begins anew where its timestep does not advance. So it does where the timestep skips some: the
        older chunks would be averaged for the wrong steps.

        Args:
            timesteps: One a row; -1 where the client does not count, which never begins anew.
            chunks: float (B, chunk_size, action_dim).
            k: As in :class:`TemporalEnsembler`.

        Returns:
            (B, action_dim). A fresh array.
        """
        if len(self._rows) != len(timesteps):
            self._rows = [TemporalEnsembler(k) for _ in timesteps]
            self._timesteps = [-1] * len(timesteps)
        for row, (before, now) in enumerate(zip(self._timesteps, timesteps)):
            if now != -1 and before != -1 and now != before + 1:
                self._rows[row].reset()
        self._timesteps = list(timesteps)
        return np.stack([row.update(chunk) for row, chunk in zip(self._rows, chunks)])
