"""Where the policy is: the flags ``--policy.*``. LeRobot finds the policy's class by this name of a file."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig

__all__ = ["GRIPPERS", "RobowireConfig"]

# The last number of an action, in the words of key maps.
GRIPPERS = ("1 open, 0 closed", "-1 open, 1 closed")


@PreTrainedConfig.register_subclass("robowire")
@dataclass
class RobowireConfig(PreTrainedConfig):
    """A policy of a policy server.

    Attributes:
        address: ``host:port`` of the policy server.
        token: Token that it wants, if any.
        tls_ca: PEM file of the certificates to trust; implies TLS.
        cameras: LeRobot's names of the cameras in the order of the policy's, with commas:
            ``"image,image2"``. By default cameras have the policy's own names, or are numbered.
        n_action_steps: Actions to execute of each chunk; the policy's own number by default.
        gripper: What the last number of an action is to mean: ``"1 open, 0 closed"``, as from the server,
            or ``"-1 open, 1 closed"``, as LeRobot's LIBERO takes it.
    """

    device: str | None = "cpu"  # of the tensors; the policy's own is set where its server is started
    address: str = "localhost:5000"
    token: str | None = None
    tls_ca: str | None = None
    cameras: str | None = None
    n_action_steps: int | None = None
    gripper: str = GRIPPERS[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gripper not in GRIPPERS:
            raise ValueError(f"gripper is {self.gripper!r}, expected one of {', '.join(map(repr, GRIPPERS))}")

    @property
    def observation_delta_indices(self) -> None:
        """Nothing: the policy is not trained here."""
        return None

    @property
    def action_delta_indices(self) -> None:
        """Nothing: the policy is not trained here."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """Nothing: the policy is not trained here."""
        return None

    def get_optimizer_preset(self) -> None:
        """Return nothing: the policy is not trained here."""
        return None

    def get_scheduler_preset(self) -> None:
        """Return nothing: the policy is not trained here."""
        return None

    def validate_features(self) -> None:
        """Accept any: the server compares observations with what its policy needs."""
