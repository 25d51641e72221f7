"""Run a policy on a robot: an action at every control step, while the next chunk is on its way.

``FakeRobot`` stands where yours goes; all else stays. Needs robowire and numpy, Python 3.8 or newer::

    python robot.py --host localhost --port 5000
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from robowire import AsyncOptions, AsyncPolicyClient, MetaAction, MetaObs, PolicyClient, RobowireError


class FakeRobot:
    """What your robot's driver offers: an observation now, and a way to execute one action."""

    def __init__(self, state_dim: int, cameras: int, height: int, width: int) -> None:
        self._state = np.zeros(state_dim, np.float32)
        self._images = np.zeros((cameras, 3, height, width), np.uint8)

    def observe(self) -> MetaObs:
        """Return joints in radians and the cameras' images, in the order of the policy's cameras."""
        return MetaObs(state=self._state.copy(), image=self._images if len(self._images) else None)

    def execute(self, action: MetaAction) -> None:
        """Send one action to the motors. Clip it to what is safe on your robot."""
        assert action.action is not None

    def stop(self) -> None:
        """Hold the position."""


def main() -> int:
    """Run one episode and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--fps", type=float, default=20.0, help="control steps a second")
    flags = parser.parse_args()
    robot = None
    try:
        with PolicyClient(flags.host, flags.port) as client:
            info = client.get_info()  # what the policy needs: compare it with the robot before anything moves
        cameras = info["camera_names"] or []
        robot = FakeRobot(
            info["state_dim"] or 7, len(cameras), info["image_height"] or 96, info["image_width"] or 96
        )
        options = AsyncOptions(fps=flags.fps, chunk_size_threshold=0.5)
        with AsyncPolicyClient(flags.host, flags.port, options) as policy:
            due = time.monotonic()
            for _ in range(flags.steps):
                robot.execute(policy.step(robot.observe()))
                due += 1 / flags.fps
                time.sleep(max(0.0, due - time.monotonic()))
            starved = policy.statistics.starved_steps
            print(f"{flags.steps} steps, {starved} of them with an empty queue")
    except RobowireError as exc:
        print(f"robot.py: {exc}", file=sys.stderr)
        return 1
    finally:
        if robot is not None:
            robot.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
