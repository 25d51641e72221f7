"""Ask a policy server for the actions of a batch of environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from lerobot_policy_robowire.configuration_robowire import GRIPPERS, RobowireConfig
from robowire.address import parse_address
from robowire.chunking import ChunkCursor
from robowire.client.policy_client import PolicyClient
from robowire.integrations.lerobot_observations import from_lerobot
from robowire.meta import MetaObs

__all__ = ["RobowirePolicy"]


class RobowirePolicy(PreTrainedPolicy):
    """A policy that a server holds. It has no weights of its own.

    Args:
        config: Where the server is.

    Raises:
        RobowireError: The server does not answer, or refuses.
    """

    config_class = RobowireConfig
    name = "robowire"

    def __init__(self, config: RobowireConfig, **ignored: Any) -> None:
        super().__init__(config)
        host, port = parse_address("policy.address", config.address, example="localhost:5000")
        self._client = PolicyClient(host, port, token=config.token, ca=config.tls_ca)
        info = self._client.get_info()
        if config.cameras is not None:
            self._cameras: list[str] | None = [name.strip() for name in config.cameras.split(",")]
        else:
            self._cameras = info["camera_names"]
        self._steps = config.n_action_steps or info["n_action_steps"]
        self.reset()

    def reset(self) -> None:
        """Begin an episode in every environment of the batch."""
        self._cursor = ChunkCursor(self._steps)
        self._client.reset()
        self._timestep = 0

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **ignored: Any) -> torch.Tensor:
        """Return the next action of each environment, float32 (B, action_dim)."""
        if not len(self._cursor):
            self._cursor.put(self._infer(batch))
        self._timestep += 1
        return torch.from_numpy(np.ascontiguousarray(self._cursor.next(), np.float32))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **ignored: Any) -> torch.Tensor:
        """Return a whole chunk for each environment, float32 (B, chunk_size, action_dim)."""
        return torch.from_numpy(np.ascontiguousarray(self._infer(batch).swapaxes(0, 1), np.float32))

    def forward(self, batch: dict[str, Any]) -> Any:
        """Refuse to train: the weights are the server's."""
        raise NotImplementedError("a robowire policy is trained where its server gets it from, not here")

    def get_optim_params(self) -> dict[str, Any]:
        """Return nothing: there are no weights here."""
        return {}

    def _infer(self, batch: dict[str, Any]) -> np.ndarray:
        """Return (chunk_size, B, action_dim)."""
        arrays = {
            name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
            if name.startswith("observation.") or name == "task"
        }
        size = len(next(value for name, value in arrays.items() if name != "task"))
        rows = [self._row(arrays, row) for row in range(size)]
        images = [row.image for row in rows]
        states = [row.state for row in rows]
        chunk = self._client.infer(
            MetaObs(
                image=None if images[0] is None else np.stack(images),
                state=None if states[0] is None else np.stack(states),
                raw_lang=[row.raw_lang for row in rows],  # type: ignore[arg-type]  # one for each row
                timestep=np.full((size, 1), self._timestep),
            )
        )
        if self.config.gripper == GRIPPERS[1]:
            chunk[..., -1] = 1 - 2 * chunk[..., -1]
        return chunk

    def _row(self, arrays: dict[str, Any], row: int) -> MetaObs:
        named = {name: value[row] for name, value in arrays.items() if name != "task"}
        tasks = arrays.get("task", "")
        named["task"] = tasks if isinstance(tasks, str) else tasks[row]
        cameras = self._cameras
        if cameras is not None and not any(f"observation.images.{name}" in named for name in cameras):
            cameras = None  # LeRobot's numbered ones, in their order
        return from_lerobot(named, camera_names=cameras)
