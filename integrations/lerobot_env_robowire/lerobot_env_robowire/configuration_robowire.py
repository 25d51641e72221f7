"""Which task, and where its server is: the flags ``--env.*``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from robowire.address import parse_address
from robowire.client.simulator_client import SimulatorClient

__all__ = ["ACTIONS", "GYM_ID", "RobowireEnvConfig"]

GYM_ID = "robowire/LeRobot-v0"

# What the numbers of an action mean.
ACTIONS = ("meta", "own")


@EnvConfig.register_subclass("robowire")
@dataclass
class RobowireEnvConfig(EnvConfig):
    """A task of a simulator server, which is asked for the task's features when the flags are read.

    Attributes:
        task: One of the simulator's.
        simulator: One that the server offers.
        address: ``host:port`` of the simulator server.
        token: Token that it wants, if any.
        tls_ca: PEM file of the certificates to trust; implies TLS.
        episode_length: Steps after which an episode ends; by default the task's own.
        actions: ``"meta"``: gripper 1 open, 0 closed, as a robowire policy gives it. ``"own"``: the
            simulator's own numbers, for a policy that was trained with them.
    """

    task: str | None = "Lift"
    fps: int = 20
    simulator: str = "robosuite"
    address: str = "localhost:5555"
    token: str | None = None
    tls_ca: str | None = None
    episode_length: int | None = None
    actions: str = "meta"

    def __post_init__(self) -> None:
        if self.actions not in ACTIONS:
            raise ValueError(f"actions is {self.actions!r}, expected one of {', '.join(ACTIONS)}")
        host, port = parse_address("env.address", self.address, example="localhost:5555")
        with SimulatorClient(host, port, token=self.token, tls=False, ca=self.tls_ca) as client:
            client.select_simulator(self.simulator)
            spec = client.load_task(self.task, horizon=self.episode_length)
        self.fps = round(spec.control_hz or self.fps)
        size = (spec.image_height or 0, spec.image_width or 0, 3)
        self.features = {"action": PolicyFeature(FeatureType.ACTION, (spec.action_dim or 0,))}
        self.features_map = {"action": "action"}
        if spec.state_dim is not None:
            self.features["agent_pos"] = PolicyFeature(FeatureType.STATE, (spec.state_dim,))
            self.features_map["agent_pos"] = "observation.state"
        for camera in spec.camera_names or ():
            self.features[f"pixels/{camera}"] = PolicyFeature(FeatureType.VISUAL, size)
            self.features_map[f"pixels/{camera}"] = f"observation.images.{camera}"

    @property
    def package_name(self) -> str:
        """Package that registers the environment."""
        return "lerobot_env_robowire"

    @property
    def gym_id(self) -> str:
        """Id of the environment, the same for every task."""
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment."""
        return {
            "address": self.address,
            "simulator": self.simulator,
            "task": self.task,
            "token": self.token,
            "ca": self.tls_ca,
            "horizon": self.episode_length,
            "actions": self.actions,
        }
