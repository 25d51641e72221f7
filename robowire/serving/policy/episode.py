"""What a policy session remembers of its episode: the chunks that are averaged over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from robowire.chunking import TemporalEnsembler

__all__ = ["Episode"]


class Episode:
    """A policy session's episode: one temporal ensembler for each row of its batch.

    Args:
        on_clear: Called when a new episode starts, for a policy that knows its sessions.
    """

    def __init__(self, on_clear: Callable[[], None] = lambda: None) -> None:
        self._on_clear = on_clear
        self._rows: list[TemporalEnsembler] = []
        self._timesteps: list[int] = []

    def clear(self) -> None:
        """Start a new episode."""
        self._rows, self._timesteps = [], []
        self._on_clear()

    def ensemble(self, timesteps: Sequence[int], chunks: np.ndarray, *, k: float) -> np.ndarray:
        """Add each row's new chunk and return each row's action for this step.

        A row restarts where its timestep does not advance, and where it skips some: the older chunks would be
        averaged for the wrong steps.

        Args:
            timesteps: One for each row; -1 where the client does not count, which never restarts.
            chunks: float (B, chunk_size, action_dim).
            k: As in :class:`TemporalEnsembler`.

        Returns:
            (B, action_dim). A fresh array.
        """
        if len(self._rows) != len(timesteps):
            self._rows = [TemporalEnsembler(k) for _ in timesteps]
            self._timesteps = [-1] * len(timesteps)
        for row, before, now in zip(self._rows, self._timesteps, timesteps):
            if now != -1 and before != -1 and now != before + 1:
                row.reset()
        self._timesteps = list(timesteps)
        if len(self._rows) == 1:
            return self._rows[0].update(chunks[0])[np.newaxis]
        return np.stack([row.update(chunk) for row, chunk in zip(self._rows, chunks)])
