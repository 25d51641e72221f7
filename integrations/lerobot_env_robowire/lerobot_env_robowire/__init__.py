"""Tasks of a robowire simulator server under LeRobot's interface: ``--env.type=robowire``."""

import gymnasium

from lerobot_env_robowire.configuration_robowire import GYM_ID, RobowireEnvConfig

__all__ = ["RobowireEnvConfig"]

# Without Gymnasium's wrappers: LeRobot looks for the task's instruction on the environment itself.
gymnasium.register(
    GYM_ID,
    entry_point="lerobot_env_robowire.environment:LerobotRemoteEnv",
    order_enforce=False,
    disable_env_checker=True,
)
