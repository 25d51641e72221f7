"""LeRobot's own RobotClient with a robot of ours, run in LeRobot's environment; everything it says is kept.

    python lerobot_robot_client.py ADDRESS FOLDER --policy_type act --joints 8 --cameras front:48x64

The client is unmodified: only what makes its robot is replaced, and what passes through it is copied. FOLDER
gets ``instructions.bin``, ``observation_000.bin``, ``actions_000.bin``, ...; the last line of the output is
JSON with the number of actions that the robot executed.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# LeRobot writes a folder of logs where it is, and one for the calibration of robots.
FOLDER = Path(sys.argv[2]).resolve()
os.environ["HF_HOME"] = tempfile.mkdtemp()
os.chdir(os.environ["HF_HOME"])

import numpy as np  # noqa: E402
from lerobot.async_inference import robot_client  # noqa: E402
from lerobot.async_inference.configs import RobotClientConfig  # noqa: E402
from lerobot.robots.config import RobotConfig  # noqa: E402
from lerobot.robots.robot import Robot  # noqa: E402


@RobotConfig.register_subclass("robowire_test")
@dataclass(kw_only=True)
class TestRobotConfig(RobotConfig):
    joints: int = 6
    action_dim: int = 6
    views: tuple = ()  # LeRobot checks what is called cameras


class TestRobot(Robot):
    """A robot whose joints and images are known numbers."""

    config_class = TestRobotConfig
    name = "robowire_test"
    is_connected = False
    is_calibrated = True

    def __init__(self, config: TestRobotConfig) -> None:
        self.config = config
        self.random = np.random.default_rng(0)
        self.executed: list[list[float]] = []
        self.robot_type, self.id, self.calibration = self.name, None, {}

    @property
    def observation_features(self) -> dict:
        return {
            **{f"joint_{number}.pos": float for number in range(self.config.joints)},
            **{name: (height, width, 3) for name, height, width in self.config.views},
        }

    @property
    def action_features(self) -> dict:
        return {f"joint_{number}.pos": float for number in range(self.config.action_dim)}

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def disconnect(self) -> None:
        self.is_connected = False

    def get_observation(self) -> dict:
        return {
            # Another order than that of the features, which is what counts.
            **{
                name: self.random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                for name, height, width in self.config.views
            },
            **{
                f"joint_{number}.pos": float(np.float32(self.random.uniform(-1, 1)))
                for number in reversed(range(self.config.joints))
            },
        }

    def send_action(self, action: dict) -> dict:
        self.executed.append(list(action.values()))
        return action


def camera(text: str) -> tuple:
    name, size = text.split(":")
    height, width = size.split("x")
    return name, int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("folder")
    parser.add_argument("--policy_type", default="act")
    parser.add_argument("--pretrained_name_or_path", default="someone/policy")
    parser.add_argument("--joints", type=int, default=6)
    parser.add_argument("--action_dim", type=int, default=6)
    parser.add_argument("--cameras", type=camera, nargs="*", default=[])
    parser.add_argument("--actions", type=int, default=12)
    parser.add_argument("--actions_per_chunk", type=int, default=4)
    parser.add_argument("--task", default="lift the cube")
    parser.add_argument("--token")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)

    robot_client.make_robot_from_config = TestRobot
    client = robot_client.RobotClient(
        RobotClientConfig(
            policy_type=arguments.policy_type,
            pretrained_name_or_path=arguments.pretrained_name_or_path,
            robot=TestRobotConfig(
                joints=arguments.joints, action_dim=arguments.action_dim, views=tuple(arguments.cameras)
            ),
            actions_per_chunk=arguments.actions_per_chunk,
            task=arguments.task,
            server_address=arguments.address,
            # An observation is sent when nothing is left, so no two chunks are averaged.
            chunk_size_threshold=0.0,
            aggregate_fn_name="latest_only",
            fps=30,
        )
    )
    if arguments.token is not None:
        add_token(client, arguments.token)
    copy_what_passes(client, FOLDER)
    started = client.start()
    if started:
        receiver = threading.Thread(target=client.receive_actions, daemon=True)
        loop = threading.Thread(target=client.control_loop, args=(arguments.task,), daemon=True)
        receiver.start()
        loop.start()
        deadline = time.monotonic() + 30
        while len(client.robot.executed) < arguments.actions and time.monotonic() < deadline:
            time.sleep(0.02)
        client.shutdown_event.set()
        loop.join()
    client.stop()
    print(json.dumps({"started": started, "executed": client.robot.executed}))


def add_token(client: robot_client.RobotClient, token: str) -> None:
    """Send a token with every call, as docs/coming_from_lerobot.md has it."""
    import grpc
    from lerobot.transport import services_pb2_grpc

    class Details(grpc.ClientCallDetails):
        def __init__(self, details: grpc.ClientCallDetails) -> None:
            self.method, self.timeout, self.credentials = details.method, details.timeout, details.credentials
            self.metadata = [*(details.metadata or ()), ("authorization", f"Bearer {token}")]

    class Token(grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor):
        def intercept_unary_unary(self, call, details, request):
            return call(Details(details), request)

        def intercept_stream_unary(self, call, details, requests):
            return call(Details(details), requests)

    client.channel = grpc.intercept_channel(client.channel, Token())
    client.stub = services_pb2_grpc.AsyncInferenceStub(client.channel)


def copy_what_passes(client: robot_client.RobotClient, folder: Path) -> None:
    numbers = {"observation": 0, "actions": 0}

    def keep(name: str, data: bytes) -> None:
        (folder / f"{name}_{numbers[name]:03d}.bin").write_bytes(data)
        numbers[name] += 1

    send_instructions, get_actions = client.stub.SendPolicyInstructions, client.stub.GetActions
    cut = robot_client.send_bytes_in_chunks

    def keep_instructions(setup):
        (folder / "instructions.bin").write_bytes(setup.data)
        return send_instructions(setup)

    def keep_actions(request):
        actions = get_actions(request)
        if actions.data:
            keep("actions", actions.data)
        return actions

    def keep_observation(data, *arguments, **options):
        keep("observation", data)
        return cut(data, *arguments, **options)

    client.stub.SendPolicyInstructions = keep_instructions
    client.stub.GetActions = keep_actions
    robot_client.send_bytes_in_chunks = keep_observation


if __name__ == "__main__":
    main()
