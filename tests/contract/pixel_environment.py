"""An environment of nobody's suite: it shows images, counts, and says nothing of rates or success."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Pixels(gymnasium.Env[Any, Any]):
    """A grey image that grows brighter by the action, and a count of steps. It does not draw itself."""

    observation_space = spaces.Dict(
        {"screen": spaces.Box(0, 255, (4, 8, 1), np.uint8), "count": spaces.Discrete(100)}
    )
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.grey = 0, int(self.np_random.integers(100))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count, self.grey = self.count + 1, self.grey + int(action.sum())
        return self._observe(), 1.0, False, False, {"self": self, "grey": np.int64(self.grey)}

    def _observe(self) -> Any:
        return {"screen": np.full((4, 8, 1), self.grey, np.uint8), "count": self.count}
