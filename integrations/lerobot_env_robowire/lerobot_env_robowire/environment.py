"""One task of a simulator server, with observations as LeRobot's environments give them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from robowire.integrations.remote_env import RemoteEnv
from robowire.meta import MetaAction

__all__ = ["LerobotRemoteEnv"]


class LerobotRemoteEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """An environment for ``lerobot-eval``: ``pixels`` by camera, ``agent_pos``, and ``is_success``.

    Args:
        actions: ``"meta"`` or ``"own"``, as in the configuration.
        render_mode: Accepted; images of videos are always there.
        **options: Arguments of :class:`robowire.integrations.remote_env.RemoteEnv`.

    Attributes:
        task: Name of the task.
        task_description: Its instruction.
    """

    def __init__(self, *, actions: str = "meta", render_mode: str = "rgb_array", **options: Any) -> None:
        self._env = RemoteEnv(render_mode="rgb_array", observation_format="meta", **options)
        spec = self._env.task_spec
        self._meta = actions == "meta"
        self._cameras = tuple(spec.camera_names or ())
        self._max_episode_steps = spec.max_episode_steps
        self.task, self.task_description = spec.task, spec.instruction or spec.task
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(spec.control_hz or 20)}
        self.action_space = self._env.action_space
        known = self._env.observation_space.spaces  # type: ignore[attr-defined]
        given: dict[str, spaces.Space[Any]] = {}
        if self._cameras:
            _, channels, height, width = known["image"].shape
            image = spaces.Box(0, 255, (height, width, channels), np.uint8)
            given["pixels"] = spaces.Dict(dict.fromkeys(self._cameras, image))
        if "state" in known:
            given["agent_pos"] = known["state"]
        self.observation_space = spaces.Dict(given)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode. LeRobot's own options mean nothing here."""
        known = {
            name: value for name, value in (options or {}).items() if name in ("init_state", "snapshot_id")
        }
        observation, info = self._env.reset(seed=seed, options=known)
        return self._named(observation), {**info, "is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action."""
        spec = self._env.task_spec
        sent: Any = np.asarray(action, np.float32)
        if self._meta:
            sent = MetaAction(spec.ctrl_space or "ee", spec.ctrl_type or "delta", sent)
        observation, reward, terminated, truncated, info = self._env.step(sent)
        # Only what LeRobot reads: vector environments merge infos, and texts of simulators do not merge.
        return (
            self._named(observation),
            reward,
            terminated,
            truncated,
            {"is_success": bool(info.get("success"))},
        )

    def render(self) -> Any:
        """Return uint8 (height, width, 3)."""
        return self._env.render()

    def close(self) -> None:
        """End the session."""
        self._env.close()

    def _named(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        if self._cameras:
            images = observation["image"].transpose(0, 2, 3, 1)
            named["pixels"] = {
                camera: np.ascontiguousarray(image) for camera, image in zip(self._cameras, images)
            }
        if "state" in observation:
            named["agent_pos"] = observation["state"]
        return named
