"""Collect experience from simulators that run elsewhere, as one Gymnasium vector environment.

A trainer's own update goes where the comment says so. Needs ``pip install "robowire[trainers]"``::

    python trainer.py --address localhost:5555 --simulator robosuite --task Lift
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np

import robowire.integrations.gymnasium_env  # noqa: F401 - registers robowire/Remote-v0


def main() -> None:
    """Run the environments for some steps with random actions, and print the returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--address", default="localhost:5555")
    parser.add_argument("--simulator", default="robosuite")
    parser.add_argument("--task", default="Lift")
    parser.add_argument("--num_envs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    flags = parser.parse_args()
    envs = gymnasium.make_vec(
        "robowire/Remote-v0",
        num_envs=flags.num_envs,
        address=flags.address,
        simulator=flags.simulator,
        task=flags.task,
        camera_names=[],  # no camera is rendered: state only
    )
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)
    returns = np.zeros(flags.num_envs)
    for _ in range(flags.steps):
        actions = envs.action_space.sample()  # your policy
        observations, rewards, _, _, infos = envs.step(actions)
        returns += np.where(infos["alive"], rewards, 0.0)  # rows of sessions that were lost are left out
        # Your update of the policy, with observations, actions and rewards.
    envs.close()
    shapes = ", ".join(f"{name} {array.shape}" for name, array in observations.items())
    print(f"returns {returns.tolist()} after {flags.steps} steps; observations: {shapes}")


if __name__ == "__main__":
    main()
