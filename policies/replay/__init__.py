"""A policy that answers from a recording; see :mod:`robowire.recording.replay_policy`."""
