"""``infer``: send random observations that fit the policy, and time the answers. Runs on Python 3.8."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from robowire.cli.command import Program
from robowire.cli.connection_flags import ImageFlags, at_least, open_policy_client, pixels
from robowire.cli.ping import quantiles
from robowire.client.policy_client import PolicyClient
from robowire.errors import UnknownMethod
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

__all__ = ["InferFlags", "policy_spec", "random_observation", "run"]


@dataclass(frozen=True)
class InferFlags(ImageFlags):
    """Flags of ``infer``.

    Attributes:
        num_requests: Observations to send.
        delay: Seconds between two of them.
        image_size: Pixels, 224 or 480x640 (height x width); default: the policy's.
        seed: Seed of the random observations.
    """

    num_requests: int = 5
    delay: float = 1.0
    image_size: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, num_requests=self.num_requests)
        at_least(0, delay=self.delay, seed=self.seed)
        pixels(self.image_size)


def run(flags: InferFlags, program: Program) -> int:
    """Print the time of every answer, a summary and the first action."""
    size = pixels(flags.image_size)
    rng, times = np.random.default_rng(flags.seed), []
    with open_policy_client(flags) as client:
        spec = policy_spec(client)
        for number in range(flags.num_requests):
            if number:
                time.sleep(flags.delay)
            observation = random_observation(spec, rng, size)
            observation.timestep = number
            begun = time.perf_counter()
            actions = client.infer(observation)
            times.append(time.perf_counter() - begun)
            if not number:
                first = actions[0]
            count, length = actions.shape
            shown = f"{count} actions of {length} in {times[-1] * 1e3:.2f} ms"
            sys.stdout.write(f"request {number + 1}: {shown}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(times)} requests: {quantiles(times, 50, 99)}\n")
    sys.stdout.write(f"first action: {np.array2string(first, precision=4, max_line_width=100)}\n")
    return 0


def random_observation(
    spec: PolicySpec, rng: np.random.Generator, image_size: tuple[int, int] | None = None
) -> MetaObs:
    """Return an observation that fits the policy; open fields get one camera, 224x224 pixels, 14 joints.

    Args:
        spec: Spec of the policy.
        rng: Source of the values.
        image_size: Height and width in pixels, where the spec leaves them open.
    """
    height, width = image_size or (spec.image_height or 224, spec.image_width or 224)
    cameras = 1 if spec.camera_names is None else len(spec.camera_names)
    image = rng.integers(0, 256, (cameras, 3, height, width), np.uint8) if cameras else None
    state = rng.standard_normal(spec.state_dim or 14, np.float32)
    return MetaObs(state=state, image=image, raw_lang="do nothing in particular", timestep=0)


def policy_spec(client: PolicyClient) -> PolicySpec:
    """Return the spec of the served policy; an open one for an older server without it."""
    try:
        return client.spec
    except UnknownMethod:
        return PolicySpec()
