"""The fakes keep the contract of a policy, and each of its tests catches a policy that is broken there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, FailingPolicy, PolicyContract, SlowPolicy

ROOT = Path(__file__).resolve().parents[2]


def make_constant(options: PolicyOptions) -> ConstantPolicy:
    return ConstantPolicy()


def make_echo(options: PolicyOptions) -> EchoPolicy:
    return EchoPolicy()


def make_failing(options: PolicyOptions) -> FailingPolicy:
    return FailingPolicy()


def make_slow(options: PolicyOptions) -> SlowPolicy:
    policy = SlowPolicy()
    policy.release.set()
    return policy


class TestConstant(PolicyContract):
    make_policy = make_constant


class TestEcho(PolicyContract):
    make_policy = make_echo


class TestFailing(PolicyContract):
    """No instruction of the contract says fail."""

    make_policy = make_failing


class TestSlow(PolicyContract):
    make_policy = make_slow


class Dice(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return super().infer(observations) + np.random.default_rng().standard_normal(1).astype(np.float32)


class TestOneThatDrawsAtRandom(PolicyContract):
    """Where a policy is declared not to be deterministic, different actions are no failure."""

    make_policy = lambda options: Dice()  # noqa: E731
    deterministic = False


# -- policies that are broken in one place each --------------------------------------------------------------


class WithoutInfer:
    spec = PolicySpec(policy="mine", action_dim=3)


class Nameless(EchoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, policy="")


class Overreaching(EchoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, n_action_steps=5)


class NotJson(EchoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, control_hz=np.float32(20))


class Renamed(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.spec = replace(self.spec, chunk_size=self.spec.chunk_size + 1)
        return super().infer(observations)


class Double(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return super().infer(observations).astype(np.float64)


class Short(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return super().infer(observations)[:, 1:]


class Listing(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> Any:
        return super().infer(observations).tolist()


class Infinite(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return super().infer(observations) / np.float32(0)


class Reusing(EchoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self._buffer = np.zeros((9, 4, 3), np.float32)

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        chunk = self._buffer[: len(observations)]
        chunk[:] = super().infer(observations)
        return chunk


class Frozen(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        actions = super().infer(observations)
        actions.flags.writeable = False
        return actions


class Remembering(EchoPolicy):
    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self._calls += 1
        return super().infer(observations) + np.float32(self._calls)


class Mixing(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        actions = super().infer(observations)
        return actions - actions.mean(axis=0)


class Shuffling(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        return super().infer(sorted(observations, key=lambda observation: observation.timestep))


class Normalising(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        for observation in observations:
            assert observation.state is not None
            observation.state /= 2
        return super().infer(observations)


class Tagging(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        for observation in observations:
            observation.raw_lang = observation.raw_lang.upper()
        return super().infer(observations)


class LookingAtMemory(EchoPolicy):
    strided_images = True

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, camera_names=("front",))

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        actions = super().infer(observations)
        for row, observation in zip(actions, observations):
            assert observation.image is not None
            row += np.float32(observation.image.ravel("K")[1])
        return actions


class Inventing(EchoPolicy):
    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        missing = [observation.state is None for observation in observations]
        if any(missing):
            return np.full((len(observations), 4, 3), np.nan, np.float32)
        return super().infer(observations)


class Sulking(EchoPolicy):
    """Never recovers from one observation that lacks its state."""

    _hurt = False

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        if any(observation.state is None for observation in observations):
            self._hurt = True
            raise ValueError("no state")
        actions = super().infer(observations)
        return actions * np.float32(np.nan) if self._hurt else actions


TABLE: list[tuple[str, type, str]] = [
    ("the_spec_says_what_a_client_must_know", Nameless, "policy of the spec: found , expected a value"),
    (
        "the_spec_says_what_a_client_must_know",
        Overreaching,
        "n_action_steps of the spec: found 5, expected 1 to chunk_size, 4, or None",
    ),
    ("the_spec_is_plain_data", NotJson, "Object of type float32 is not JSON serializable"),
    ("the_spec_stays_the_same", Renamed, "the spec after an inference: found PolicySpec("),
    (
        "a_chunk_has_the_declared_shape_and_float32",
        Double,
        "infer of 1 observations: found float64, expected float32",
    ),
    (
        "a_chunk_has_the_declared_shape_and_float32",
        Short,
        "infer of 1 observations: found shape (1, 3, 3), expected (B, chunk_size, action_dim) (1, 4, 3)",
    ),
    (
        "a_chunk_has_the_declared_shape_and_float32",
        Listing,
        "infer of 1 observations: found a list, expected a numpy array",
    ),
    (
        "a_chunk_has_the_declared_shape_and_float32",
        Infinite,
        "infer of 1 observations: found actions that are NaN or infinite, expected finite numbers",
    ),
    ("actions_are_a_fresh_array", Reusing, "actions of two inferences: found one array, expected two"),
    ("actions_are_a_fresh_array", Frozen, "actions: found a read-only array"),
    (
        "equal_observations_give_equal_actions",
        Remembering,
        "actions of one observation, inferred twice: found others, expected the same, bit for bit",
    ),
    ("a_row_depends_on_its_own_observation_alone", Mixing, "an action computed in a batch and alone: found"),
    (
        "a_row_depends_on_its_own_observation_alone",
        Shuffling,
        "an action computed in a batch and alone: found",
    ),
    (
        "observations_are_not_modified",
        Normalising,
        "observations after an inference: found another ['state']",
    ),
    ("observations_are_not_modified", Tagging, "observations after an inference: found another ['raw_lang']"),
    (
        "the_order_of_images_in_memory_changes_nothing",
        LookingAtMemory,
        "actions for images in another order of memory: found others, expected the same, bit for bit",
    ),
    (
        "a_missing_field_is_handled_or_refused",
        Inventing,
        "infer without state: found actions that are NaN or infinite, expected finite numbers",
    ),
    (
        "a_missing_field_is_handled_or_refused",
        Sulking,
        "infer after one without state: found actions that are NaN or infinite, expected finite numbers",
    ),
]


class Viewing:
    """Returns views of the states of two observations that lie side by side, alternately of two copies."""

    spec = PolicySpec(policy="viewing", camera_names=(), state_dim=3, action_dim=3)

    def __init__(self) -> None:
        self._calls = 0

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self._calls += 1
        if self._calls == 1:
            return np.stack([observation.state for observation in observations])[:, np.newaxis]
        both = np.stack([observation.state for observation in observations])
        for observation, row in zip(observations, both, strict=True):
            observation.state = row
        return both[:, np.newaxis]


def contract_of(factory: Any) -> PolicyContract:
    case: PolicyContract = type("Case", (PolicyContract,), {"make_policy": lambda options: factory()})()
    return case


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize(
    ("test", "broken", "message"), TABLE, ids=[broken.__name__ for _, broken, _ in TABLE]
)
def test_each_test_catches_a_policy_that_is_broken_there(test: str, broken: type, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        getattr(contract_of(broken), f"test_{test}")()


def test_a_policy_that_lends_out_its_observation_is_caught() -> None:
    class Case(PolicyContract):
        make_policy = lambda options: Viewing()  # noqa: E731

    with pytest.raises(AssertionError, match=r"^actions: found memory of the observation's state, expected"):
        Case().test_actions_are_a_fresh_array()


def test_what_is_no_policy_is_told_where_to_read() -> None:
    from robowire.errors import ConfigurationError

    with pytest.raises(
        ConfigurationError, match=r"^policy 'Case' cannot be used: WithoutInfer has no method"
    ):
        contract_of(WithoutInfer).test_it_has_what_a_server_uses()


def test_each_test_of_the_contract_has_found_something() -> None:
    tests = {name for name in dir(PolicyContract) if name.startswith("test_")}
    found = {f"test_{test}" for test, _, _ in TABLE}
    assert found | {"test_it_has_what_a_server_uses"} == tests


def test_five_lines_are_enough(tmp_path: Path) -> None:
    page = PolicyContract.__module__
    text = sys.modules[page].__doc__
    assert text is not None
    (lines,) = re.findall(r"^(    from my_policy .*?)\n\n^Needs", text, re.MULTILINE | re.DOTALL)
    assert lines.count("\n") == 4
    lines = "\n".join(line[4:] for line in lines.splitlines())
    (tmp_path / "my_policy.py").write_text(
        "from robowire.testing import EchoPolicy\ndef make_policy(options):\n    return EchoPolicy()\n"
    )
    (tmp_path / "test_mine.py").write_text(lines + "\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    tests = len([name for name in dir(PolicyContract) if name.startswith("test_")])
    assert run.stdout.splitlines()[-1].startswith(f"{tests} passed"), run.stdout
