"""One group of GRPO on the shipped Lift policy: n noisy rollouts from one instant, and which were better.

An instant of an episode is saved, forked into sessions that run side by side, and restored before each
further rollout: all begin bit for bit the same, and differ by the noise on the actions alone. Their returns,
normalised within the group, are the advantages of Group Relative Policy Optimization (Shao et al. 2024, arXiv
2402.03300): A_i = (r_i - mean(r)) / std(r). A trainer raises the likelihood of the actions of each rollout by
its advantage; ``group.npz`` holds what it needs for that. The same flags give the same group, bit for bit, on
the same machine, whatever ``--num_envs``.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from policies.registry import POLICIES
from robowire import MetaAction, MetaObs, PolicyClient, SimulatorClient
from robowire.address import parse_address
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.errors import RobowireError
from robowire.progress import Progress
from robowire.rollout.video import Mp4Writer
from server import simulator_server_of_environment

TASK = "Lift"


@dataclass(frozen=True)
class NoisyRollout:
    """One rollout of the group.

    Attributes:
        number: Its place in the group, which decides its noise.
        states: float32 (steps, state_dim), what the policy saw of the robot when it was asked last.
        means: float32 (steps, action_dim), the policy's own actions.
        actions: float32 (steps, action_dim), those executed.
        rewards: float64 (steps,), shaped.
        success: Whether the cube was lifted.
    """

    number: int
    states: np.ndarray
    means: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: bool


def group_return(rewards: Sequence[float] | np.ndarray, horizon: int) -> float:
    """Return the mean reward over ``horizon`` steps; an episode that ended keeps its last reward.

    A sum of rewards would punish success, which ends an episode.
    """
    return (float(np.sum(rewards)) + (horizon - len(rewards)) * float(rewards[-1])) / horizon


def advantages(returns: Sequence[float]) -> np.ndarray:
    """Return (r_i - mean) / std of a group; zeros where all are equal, which teaches nothing."""
    values = np.asarray(returns, np.float64)
    spread = values.std()
    return np.zeros_like(values) if spread == 0 else (values - values.mean()) / spread


def rollout(
    number: int,
    observation: MetaObs,
    simulator: Any,
    policy: PolicyClient,
    one_inference: threading.Lock,
    flags: argparse.Namespace,
) -> NoisyRollout:
    """Run one rollout from where the session stands, which ``observation`` shows."""
    rng = np.random.default_rng([flags.seed, number])
    states: list[np.ndarray | None] = []
    means: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    success = False
    policy.reset()
    while len(rewards) < flags.horizon:
        with one_inference:  # two waiting observations are a batch, which may round otherwise than one
            chunk = policy.send_meta_obs(observation)[: flags.n_action_steps]
        noisy = []
        for action in chunk:
            noise = flags.noise * rng.standard_normal(action.action.shape).astype(np.float32)
            noise[-1] = 0  # the gripper opens or closes; half of either means nothing
            noisy.append(replace(action, action=action.action + noise))
        result = simulator.step_chunk(noisy[: flags.horizon - len(rewards)])
        states += [observation.state] * result.steps
        means += [action.action for action in chunk[: result.steps]]
        actions += [action.action for action in noisy[: result.steps]]
        rewards += result.rewards
        observation = result.observation
        if result.terminated or result.truncated:
            success = bool(result.info["success"])
            break
    return NoisyRollout(
        number, np.array(states), np.array(means), np.array(actions), np.array(rewards), success
    )


def run_group(
    snapshot_id: str,
    parent: SimulatorClient,
    policy_address: tuple[str, int],
    flags: argparse.Namespace,
) -> list[NoisyRollout]:
    """Return n rollouts from one instant, run in forks of the parent's session."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(flags.n):
        todo.put(number)
    one_inference = threading.Lock()

    def work(token: str) -> list[NoisyRollout]:
        done: list[NoisyRollout] = []
        with PolicyClient(*policy_address) as policy, SimulatorClient(parent.host, parent.port) as simulator:
            simulator.resume(token)
            while True:
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return done
                observation = simulator.restore(snapshot_id)
                done.append(rollout(number, observation, simulator, policy, one_inference, flags))
                progress.update()

    tokens = parent.fork(snapshot_id, min(flags.num_envs, flags.n))
    progress = Progress(TASK, flags.n, unit="rollout")
    with progress, ThreadPoolExecutor(len(tokens)) as threads:
        rollouts = [done for worker in threads.map(work, tokens) for done in worker]
    return sorted(rollouts, key=lambda done: done.number)


def replay(
    best: NoisyRollout, snapshot_id: str, simulator: SimulatorClient, spec: Any, video: Mp4Writer | None
) -> None:
    """Execute the best rollout again, record a video, and make sure that it was this one.

    Raises:
        SystemExit: It gave other rewards: the simulator does not repeat itself.
    """
    simulator.restore(snapshot_id)
    for action, reward in zip(best.actions, best.rewards, strict=True):
        if video is not None:
            video.add(simulator.render())
        again = simulator.step(MetaAction(spec.ctrl_space, spec.ctrl_type, action)).reward
        if again != reward:
            raise SystemExit(
                f"the best rollout, executed again, was rewarded {again!r} instead of {reward!r}"
            )
    if video is not None:
        video.add(simulator.render())


@contextmanager
def servers(flags: argparse.Namespace) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Yield the addresses of a policy and a simulator server: those named, or of our own."""
    with ExitStack() as stack:
        if flags.address is None:
            policy = stack.enter_context(
                make_policy_server(PolicyFlags(host="127.0.0.1", port=0, device="cpu"), POLICIES)
            )
            policy_address = policy.address
        else:
            policy_address = parse_address("address", flags.address, example="localhost:5000")
        if flags.simulator_address is None:
            simulators = simulator_server_of_environment(host="127.0.0.1", port=0)
            simulator_address = stack.enter_context(simulators).address
        else:
            simulator_address = parse_address(
                "simulator_address", flags.simulator_address, example="localhost:5555"
            )
        yield policy_address, simulator_address


def _video(path: Path) -> Mp4Writer | None:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        sys.stdout.write("no video: pip install imageio-ffmpeg\n")
        return None
    return Mp4Writer(path, ffmpeg=imageio_ffmpeg.get_ffmpeg_exe(), fps=20)


def table(rollouts: Sequence[NoisyRollout], returns: Sequence[float], scores: np.ndarray) -> str:
    """Return what a person reads, lines of text."""
    best = int(np.argmax(scores))
    lines = ["rollout  steps  success  return  advantage"]
    for done, value, score in zip(rollouts, returns, scores, strict=True):
        lines.append(
            f"{done.number:>7}  {len(done.rewards):>5}  {'yes' if done.success else 'no':>7}  {value:>6.3f}  "
            f"{score:>+9.3f}{'  best' if done.number == best else ''}"
        )
    lines.append(f"   mean                  {np.mean(returns):>6.3f}     std {np.std(returns):.3f}")
    return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one group, print its table and keep the best; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--n", type=int, default=8, help="rollouts in the group")
    add(
        "--noise",
        type=float,
        default=0.1,
        help="standard deviation of the noise on the arm's actions, -1 to 1",
    )
    add("--seed", type=int, default=0, help="of the episode and of the noise")
    add("--lead_steps", type=int, default=8, help="steps before the instant where all begin")
    add("--horizon", type=int, default=80, help="steps of a rollout at most")
    add("--n_action_steps", type=int, default=8, help="actions executed of each chunk")
    add("--num_envs", type=int, default=2, help="simulators at one time, forks of one session")
    add("--address", help="host:port of a policy server; default: the shipped policy is served here")
    add("--simulator_address", help="host:port of a simulator server; default: one is started here")
    add("--output_dir", type=Path, default=Path("outputs/grpo_lift"), help="folder for the results")
    flags = parser.parse_args(arguments)
    begun = time.perf_counter()
    try:
        with servers(flags) as (policy_address, simulator_address):
            rollouts, returns, scores = run(policy_address, simulator_address, flags)
    except RobowireError as exc:
        sys.stderr.write(f"grpo_lift.py: {exc}\n")
        return 1
    save(flags.output_dir, rollouts, returns, scores)
    files = ", ".join(sorted(path.name for path in flags.output_dir.iterdir()))
    sys.stdout.write(
        "the best one, executed again, gave the same rewards bit for bit\n"
        f"results in {flags.output_dir}: {files}; {time.perf_counter() - begun:.0f} s\n"
    )
    return 0


def run(
    policy_address: tuple[str, int], simulator_address: tuple[str, int], flags: argparse.Namespace
) -> tuple[list[NoisyRollout], list[float], np.ndarray]:
    """Return the group, its returns and its advantages; prints its table and records a video of the best."""
    with PolicyClient(*policy_address) as policy, SimulatorClient(*simulator_address) as simulator:
        simulator.select_simulator("robosuite")
        need = policy.spec
        spec = simulator.load_task(
            TASK,
            camera_names=need.camera_names,
            image_height=need.image_height,
            image_width=need.image_width,
            reward_shaping=True,
            horizon=flags.lead_steps + flags.horizon,
            observation_format="meta",
        )
        observation = simulator.reset(seed=flags.seed)
        while (left := flags.lead_steps - observation.timestep) > 0:
            chunk = policy.send_meta_obs(observation)[: min(left, flags.n_action_steps)]
            observation = simulator.step_chunk(chunk).observation
        snapshot_id = simulator.snapshot()
        rollouts = run_group(snapshot_id, simulator, policy_address, flags)

        returns = [group_return(done.rewards, flags.horizon) for done in rollouts]
        scores = advantages(returns)
        sys.stdout.write(table(rollouts, returns, scores))

        flags.output_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            video = _video(flags.output_dir / "best.mp4")
            if video is not None:
                stack.enter_context(video)
            replay(rollouts[int(np.argmax(scores))], snapshot_id, simulator, spec, video)
    return rollouts, returns, scores


def save(
    folder: Path, rollouts: Sequence[NoisyRollout], returns: Sequence[float], scores: np.ndarray
) -> None:
    """Write ``group.npz``, every step of all rollouts with its rollout's advantage, and ``best.npz``."""
    steps = [len(done.rewards) for done in rollouts]
    columns = ("states", "means", "actions", "rewards")
    np.savez(
        folder / "group.npz",
        rollout=np.repeat(np.arange(len(rollouts)), steps),
        advantage=np.repeat(scores, steps),
        **{name: np.concatenate([getattr(done, name) for done in rollouts]) for name in columns},
    )
    best = rollouts[int(np.argmax(scores))]
    np.savez(
        folder / "best.npz",
        number=best.number,
        total=returns[best.number],
        success=best.success,
        **{name: getattr(best, name) for name in columns},
    )


if __name__ == "__main__":
    sys.exit(main())
