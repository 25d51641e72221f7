"""LeRobot's client, one observation at a time, and its own server. Runs in the environment of lerobot.

Its server has one place for an observation, which all clients share, and empties it when another client
comes: it serves one client. Its own code receives, decodes, resizes images to the policy's size, which is
theirs here, divides them by 255, and encodes; the policy is a stand-in, without pre- and postprocessor.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import harness
import numpy as np

sys.path.append(str(harness.ROOT / "tests" / "peers"))
from torchvision_operators import define_operators

operators = define_operators()

import grpc  # noqa: E402
import torch  # noqa: E402
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation  # noqa: E402
from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402
from lerobot.datasets.utils import hw_to_dataset_features  # noqa: E402
from lerobot.transport import services_pb2, services_pb2_grpc  # noqa: E402
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks  # noqa: E402

POLICY = "bench"
JOINTS = [f"joint_{number}.pos" for number in range(harness.STATE_DIM)]


def ask(port: int, images: dict[str, np.ndarray]) -> Any:
    """Return the function of one round trip: an observation is sent, and its chunk is fetched."""
    options = grpc_channel_options(initial_backoff="0.0333s")  # of 30 steps a second, its default
    # A robot's client has a process, and so a connection, of its own; here several share a process.
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [*options, ("grpc.use_local_subchannel_pool", 1)])
    stub = services_pb2_grpc.AsyncInferenceStub(channel)
    stub.Ready(services_pb2.Empty())
    shapes = {name: image.shape for name, image in images.items()}
    size = next(name for name, known in harness.SIZES.items() if known == shapes)
    features = hw_to_dataset_features(
        {**dict.fromkeys(JOINTS, float), **shapes}, "observation", use_video=False
    )
    instructions = RemotePolicyConfig(POLICY, f"{POLICY}/{size}", features, harness.CHUNK_SIZE)
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(instructions)))
    raw = {**dict.fromkeys(JOINTS, 0.0), **images, "task": "lift the cube"}
    timesteps = itertools.count()

    def round_trip() -> np.ndarray:
        observation = TimedObservation(time.time(), next(timesteps), raw, must_go=True)
        pieces = send_bytes_in_chunks(pickle.dumps(observation), services_pb2.Observation)
        stub.SendObservations(pieces)
        reply = stub.GetActions(services_pb2.Empty()).data
        assert reply, "the server had no observation, or its policy failed"
        return np.stack([timed.get_action().numpy() for timed in pickle.loads(reply)])

    return round_trip


class _Policy:
    """What LeRobot's server needs of a policy, which is loaded by the name of a size of images."""

    fixed_s = row_s = 0.0
    actions = torch.from_numpy(harness.ACTIONS[np.newaxis])

    def __init__(self, size: str) -> None:
        self.config = SimpleNamespace(
            image_features={
                f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (channels, height, width))
                for name, (height, width, channels) in harness.SIZES[size].items()
            }
        )

    @classmethod
    def from_pretrained(cls, path: str) -> _Policy:
        return cls(PurePosixPath(path).name)

    def to(self, device: str) -> None:
        assert device == "cpu", device

    def predict_action_chunk(self, observation: dict[str, Any]) -> torch.Tensor:
        if self.fixed_s or self.row_s:
            time.sleep(self.fixed_s + self.row_s)
        return self.actions


def _unchanged(value: Any) -> Any:
    return value


def serve(fixed_s: float, row_s: float) -> None:
    """Serve with its defaults, but for the sleep that makes each inference take as long."""
    with tempfile.TemporaryDirectory() as folder:
        # Its import makes a folder of logs where it is, and finds standard error, where requests are logged.
        os.chdir(folder)
        with open("stderr.log", "w") as log, contextlib.redirect_stderr(log):
            from lerobot.async_inference import policy_server

            _Policy.fixed_s, _Policy.row_s = fixed_s, row_s
            policy_server.SUPPORTED_POLICIES = [POLICY]
            policy_server.get_policy_class = lambda policy_type: _Policy
            policy_server.make_pre_post_processors = lambda config, **options: (_unchanged, _unchanged)
            servicer = policy_server.PolicyServer(policy_server.PolicyServerConfig(inference_latency=0.0))
            server = grpc.server(ThreadPoolExecutor(max_workers=4))
            services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            harness.announce(port)
            harness.wait_for_end()
            servicer.stop()
            server.stop(None).wait()
        os.chdir(harness.ROOT)


if __name__ == "__main__":
    harness.main(serve, ask)
