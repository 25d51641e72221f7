"""vla-eval's client and its own model server. Runs in the environment of vla-eval."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import harness
import numpy as np
from vla_eval.api import serve_background
from vla_eval.connection import Connection
from vla_eval.model_servers.predict import PredictModelServer


class BenchServer(PredictModelServer):
    """Answer one action for each observation; ``predict_batch`` costs what a batch costs."""

    def __init__(self, fixed_s: float, row_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._fixed_s, self._row_s = fixed_s, row_s

    def predict_batch(self, obs_batch: list[Any], ctx_batch: list[Any]) -> list[dict[str, np.ndarray]]:
        """Return the actions."""
        if self._fixed_s or self._row_s:
            time.sleep(self._fixed_s + self._row_s * len(obs_batch))
        return [{"actions": harness.ACTIONS[0]} for _ in obs_batch]


def ask(port: int, images: dict[str, np.ndarray]) -> Any:
    """Return the function of one round trip."""
    loop = asyncio.new_event_loop()
    connection = Connection(f"ws://127.0.0.1:{port}")
    loop.run_until_complete(connection.connect())
    loop.run_until_complete(connection.start_episode({"task": {"name": "bench"}}))
    observation = {
        "images": images,
        "states": np.zeros(harness.STATE_DIM, np.float64),
        "task_description": "lift the cube",
    }

    def round_trip() -> np.ndarray:
        return loop.run_until_complete(connection.act(observation))["actions"]

    return round_trip


def serve(fixed_s: float, row_s: float) -> None:
    """Serve with its defaults: one observation at a time."""
    server = serve_background(BenchServer(fixed_s, row_s))
    harness.announce(server.port)
    harness.wait_for_end()


if __name__ == "__main__":
    harness.main(serve, ask)
