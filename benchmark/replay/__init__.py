"""A simulator that answers from a recording; see :mod:`robowire.recording.replay_simulator`."""

from __future__ import annotations

from robowire.recording.replay_simulator import ReplaySimulator, make_simulator

__all__ = ["ReplaySimulator", "make_simulator"]
