"""VLAStudio's HTTP client and its own server. Runs in the environment of VLAStudio.

Its server's own code answers HTTP, decodes, batches and encodes; the policy behind it is a stand-in. Neither
side needs torch, which VLAStudio imports on the way.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import types
from typing import Any

import harness
import numpy as np


def _module(name: str, **names: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(names)


_module("torch", Tensor=type("Tensor", (), {}), no_grad=contextlib.nullcontext)
# They load checkpoints, with torch.
_module("vlastudio.configs")
_module("vlastudio.data_utils")
_module("vlastudio.data_utils.normalize", load_normalizers=None)
_module("vlastudio.data_utils.utils", set_seed=None)

from loguru import logger  # noqa: E402
from vlastudio.benchmark.base import MetaAction, MetaObs  # noqa: E402
from vlastudio.deploy.comm.fastapi.client import FastAPIPolicyClient  # noqa: E402

logger.remove()


def ask(port: int, images: dict[str, np.ndarray]) -> Any:
    """Return the function of one round trip."""
    client = FastAPIPolicyClient(f"http://127.0.0.1:{port}", image_encoding="raw", image_size=None)
    observation = MetaObs(
        state=np.zeros((1, harness.STATE_DIM), np.float32),
        image=np.stack([image.transpose(2, 0, 1) for image in images.values()]),
        raw_lang="lift the cube",
        timestep=np.array([[0]]),
    )

    def round_trip() -> np.ndarray:
        return np.stack([rows[0]["action"] for rows in client.inference(observation)])

    return round_trip


class _Unchanged:
    def normalize_metaobs(self, observation: MetaObs, ctrl_space: str) -> MetaObs:
        return observation

    def denormalize_metaact(self, action: MetaAction) -> MetaAction:
        return action


class _Policy:
    """What VLAStudio's server needs of a policy."""

    ctrl_space, ctrl_type = "ee", "delta"
    state_normalizer = action_normalizer = _Unchanged()

    def __init__(self, fixed_s: float, row_s: float) -> None:
        self._fixed_s, self._row_s = fixed_s, row_s
        self.policy = self

    def normed_mobs_to_samples(self, observation: MetaObs) -> list[dict[str, Any]]:
        return [{"state": state} for state in observation.state]

    def meta2obs(self, samples: list[dict[str, Any]]) -> int:
        return len(samples)

    def select_action(self, rows: int) -> np.ndarray:
        if self._fixed_s or self._row_s:
            time.sleep(self._fixed_s + self._row_s * rows)
        return np.repeat(harness.ACTIONS[np.newaxis], rows, axis=0)

    def act2meta(self, actions: np.ndarray, ctrl_space: str, ctrl_type: str) -> MetaAction:
        return MetaAction(action=actions, ctrl_space=ctrl_space, ctrl_type=ctrl_type)


def serve(fixed_s: float, row_s: float) -> None:
    """Serve with its defaults, but for the log of each request."""
    import uvicorn
    from vlastudio.deploy.comm.fastapi.server import create_app

    config = uvicorn.Config(create_app(_Policy(fixed_s, row_s)), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    harness.announce(server.servers[0].sockets[0].getsockname()[1])
    harness.wait_for_end()
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    harness.main(serve, ask)
