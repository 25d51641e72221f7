"""The factory of the policy ``replay``."""

from __future__ import annotations

from robowire.recording.replay_policy import ReplayPolicy, make_policy

__all__ = ["ReplayPolicy", "make_policy"]
