"""A policy that does in its process what the instruction says: the first word of ``raw_lang``.

It runs on Python 3.8 with numpy. Its chunk is 3 actions: the state, the number of its process twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, Sequence

import numpy as np

from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

FOREVER = threading.Event()


class UnrulyPolicy:
    def __init__(self, size: int) -> None:
        self.spec = PolicySpec(policy="unruly", chunk_size=3, state_dim=size, action_dim=size)
        self._kept: list[Any] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        for observation in observations:
            word = observation.raw_lang.partition(" ")[0]
            if word == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "hang":
                sys.stderr.write("about to hang\n")
                FOREVER.wait()
            if word == "raise":
                raise RuntimeError("the instruction says raise")
            if word == "leak":
                self._kept.append(np.ones(25_000_000))
            if word == "keep":
                self._kept.append(observation.state)
            if word == "kept":
                return self._chunks([MetaObs(state=self._kept[0])])
        return self._chunks(observations)

    def _chunks(self, observations: Sequence[MetaObs]) -> np.ndarray:
        states = np.stack([observation.state for observation in observations])
        numbers = np.full_like(states, os.getpid())
        return np.stack([states, numbers, numbers], axis=1)


def make_policy(options: PolicyOptions) -> UnrulyPolicy:
    if options.extra.get("broken"):
        raise RuntimeError("the weights are broken")
    return UnrulyPolicy(int(options.extra.get("size", 2)))


class CountingPolicy(UnrulyPolicy):
    """Has sessions: the chunk's last action is the number of observations of the episode."""

    stateful = True

    def open_session(self) -> CountingSession:
        return CountingSession()


class CountingSession:
    def __init__(self) -> None:
        self._count = 0

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self._count += 1
        if observations[0].raw_lang == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((len(observations), 3, 2), self._count, np.float32)

    def reset(self) -> None:
        self._count = 0

    def close(self) -> None:
        pass


def make_counting_policy(options: PolicyOptions) -> CountingPolicy:
    return CountingPolicy(2)
