"""A policy of a robowire policy server under LeRobot's interface: ``--policy.type=robowire``."""

from lerobot_policy_robowire.configuration_robowire import RobowireConfig

__all__ = ["RobowireConfig"]
