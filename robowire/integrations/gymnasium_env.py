"""Simulators of a simulator server under Gymnasium's interface, registered as ``robowire/Remote-v0``.

Importing this module registers it, so that both of these work::

    gymnasium.make("robowire.integrations.gymnasium_env:robowire/Remote-v0", address=..., task=..., ...)
    gymnasium.make_vec("robowire.integrations.gymnasium_env:robowire/Remote-v0", num_envs=4, address=..., ...)

It needs the extra ``trainers``; see docs/trainers.md.
"""

from __future__ import annotations

import gymnasium

from robowire.integrations.remote_env import RemoteEnv
from robowire.integrations.remote_vector_env import RemoteVectorEnv

__all__ = ["ENV_ID", "RemoteEnv", "RemoteVectorEnv"]

ENV_ID = "robowire/Remote-v0"

gymnasium.register(
    ENV_ID,
    entry_point=f"{__name__}:RemoteEnv",
    vector_entry_point=f"{__name__}:RemoteVectorEnv",
)
