"""What a client's instructions say of its robot and policy, compared with the policy that is served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from robowire.errors import InvalidParams, SpecMismatch
from robowire.frontends.lerobot.codec import RemotePolicyConfig, TimedObservation
from robowire.frontends.named_observations import NamedObservation, ObservationAdapter
from robowire.wire.text_safety import quoted

__all__ = ["RobotFeatures", "check_policy"]

logger = logging.getLogger(__name__)

_STATE = "observation.state"
_IMAGES = "observation.images."


def check_policy(instructions: RemotePolicyConfig, info: Mapping[str, Any]) -> None:
    """Accept instructions that name the policy that is served.

    Args:
        instructions: What the client wants.
        info: What ``get_info`` reports.

    Raises:
        SpecMismatch: The policy is another one; the message names both.
    """
    if instructions.policy_type != info["policy"]:
        raise SpecMismatch(
            f"policy_type is {quoted(instructions.policy_type)}, but this server holds {info['policy']!r}: "
            "the policy is set when the server is started, and nothing is loaded over the wire"
        )
    path, held = instructions.pretrained_name_or_path, info.get("model_name")
    wanted = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if held is None:
        logger.warning(
            "the policy comes from no named checkpoint, so whether it is %s is not checked", quoted(path)
        )
    elif wanted != held:
        raise SpecMismatch(
            f"pretrained_name_or_path is {quoted(path)}, but this server holds {held!r}: the checkpoint is "
            "set when the server is started, and nothing is loaded over the wire"
        )
    if instructions.actions_per_chunk > info["chunk_size"]:
        logger.warning(
            "a client wants %d actions of a chunk, this policy's chunks have %d",
            min(instructions.actions_per_chunk, 10**9),
            info["chunk_size"],
        )


@dataclass(frozen=True)
class RobotFeatures:
    """Which names of a robot's observations are its state and its cameras.

    Attributes:
        joints: Names of the state's numbers, in the order of the state.
        cameras: By its name in an observation, what the adapter knows an image as.
        shapes: Announced shape of each camera's image, by its name in an observation.
    """

    joints: tuple[str, ...]
    cameras: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, instructions: RemotePolicyConfig) -> RobotFeatures:
        """Return the features that instructions announce; depth images are left out.

        Raises:
            InvalidParams: A feature is not of LeRobot's form.
        """
        joints: tuple[str, ...] = ()
        cameras: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, feature in instructions.lerobot_features.items():
            if not isinstance(name, str) or not isinstance(feature, dict):
                raise InvalidParams(f"the feature {quoted(name)} is {quoted(feature)}, expected a dict")
            if name == _STATE:
                names = feature.get("names")
                if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
                    raise InvalidParams(f"the names of {_STATE} are {quoted(names)}, expected a list of text")
                joints = tuple(names)
                if len(set(joints)) != len(joints):
                    raise InvalidParams(f"a name of {_STATE} is there twice: {quoted(names)}")
            elif name.startswith(_IMAGES):
                info = feature.get("info")
                if isinstance(info, dict) and info.get("is_depth_map") is True:
                    continue
                shape = feature.get("shape")
                if not isinstance(shape, (list, tuple)) or not all(
                    type(size) is int and 0 < size < 1 << 31 for size in shape
                ):
                    raise InvalidParams(f"the shape of {quoted(name)} is {quoted(shape)}, expected sizes")
                camera = name[len(_IMAGES) :]
                renamed = instructions.rename_map.get(name, name)
                cameras[camera] = renamed[len(_IMAGES) :] if renamed.startswith(_IMAGES) else renamed
                shapes[camera] = tuple(shape)
        return cls(joints, cameras, shapes)

    def check(self, adapter: ObservationAdapter, *, max_payload: int) -> None:
        """Accept features whose observations the policy can take.

        Args:
            adapter: Knows the policy's names and sizes.
            max_payload: Most bytes of an observation.

        Raises:
            RequestError: A name, a number or a size does not fit; the message lists both sides.
        """
        announced = sum(prod(shape) for shape in self.shapes.values())
        if announced > max_payload:
            raise SpecMismatch(f"the images announced have {announced} bytes, the limit is {max_payload}")
        blank: dict[str, Any] = {joint: 0.0 for joint in self.joints}
        for camera, shape in self.shapes.items():
            blank[camera] = np.broadcast_to(np.uint8(0), shape)
        adapter.observation(self.named(TimedObservation(0.0, 0, blank)))

    def named(self, observation: TimedObservation) -> NamedObservation:
        """Return what the adapter takes.

        Raises:
            InvalidParams: A name that was announced is missing.
        """
        values = observation.observation
        missing = [name for name in (*self.joints, *self.cameras) if name not in values]
        if missing:
            raise InvalidParams(
                f"the observation has no {quoted(missing)}, which the policy instructions announced; it has "
                f"{quoted(list(values))}"
            )
        return NamedObservation(
            images={name: values[camera] for camera, name in self.cameras.items()},
            state={joint: values[joint] for joint in self.joints},
            instruction=values.get("task", ""),
            timestep=observation.timestep,
        )
