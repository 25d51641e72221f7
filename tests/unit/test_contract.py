"""A policy and a body are compared by name, and what a named adapter bridges is converted exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_fakes import FakePolicyServer, FakePolicySession, FakeSimulatorServer

from robowire.chunking import ActionChunk
from robowire.contract import ADAPTERS, Mismatch, bridge, compare, require_match
from robowire.errors import ConfigurationError, InvalidParams, SpecMismatch
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate
from robowire.specs import Embodiment, PolicySpec, layout_names

POLICY = PolicySpec(
    policy="arm",
    state_names=("shoulder", "elbow", "gripper"),
    action_names=("shoulder", "elbow", "gripper"),
    state_units=("rad", "rad", "closed0_open1"),
    action_units=("rad", "rad", "closed0_open1"),
    state_signs=(1, 1, 1),
    action_signs=(1, 1, 1),
    action_hold=("last", "last", "last"),
    ctrl_type="absolute",
    control_hz=10,
    chunk_size=4,
    n_action_steps=2,
)
BODY = Embodiment(
    state_names=("gripper", "elbow", "wrist", "shoulder"),
    action_names=("gripper", "elbow", "shoulder"),
    state_units=("open-1_closed1", "deg", "deg", "deg"),
    action_units=("open-1_closed1", "deg", "deg"),
    state_signs=(1, -1, 1, 1),
    action_signs=(1, -1, 1),
    action_hold=("last", "last", "last"),
    ctrl_type="absolute",
    control_hz=20,
)


def test_what_agrees_or_is_left_open_fits() -> None:
    assert compare(POLICY, POLICY) == compare(POLICY, Embodiment()) == compare(PolicySpec(), BODY) == []
    assert bridge(POLICY, Embodiment()) is None


def test_each_mismatch_is_named_with_its_adapter() -> None:
    with pytest.raises(SpecMismatch) as raised:
        require_match(POLICY, BODY)
    assert str(raised.value).split("; ") == [
        "policy 'arm' does not fit this body: state_names: the policy has shoulder, elbow, gripper, the body "
        "gripper, elbow, wrist, shoulder: a part of them (the adapter 'reorder' bridges it)",
        "state_units: shoulder, elbow: the policy has rad, the body deg (the adapter 'units' bridges it)",
        "state_units: gripper: the policy has closed0_open1, the body open-1_closed1 "
        "(the adapter 'signs' bridges it)",
        "state_signs: elbow: the policy has 1, the body -1 (the adapter 'signs' bridges it)",
        "action_names: the policy has shoulder, elbow, gripper, the body gripper, elbow, shoulder: "
        "another order (the adapter 'reorder' bridges it)",
        "action_units: shoulder, elbow: the policy has rad, the body deg (the adapter 'units' bridges it)",
        "action_units: gripper: the policy has closed0_open1, the body open-1_closed1 "
        "(the adapter 'signs' bridges it)",
        "action_signs: elbow: the policy has 1, the body -1 (the adapter 'signs' bridges it)",
        "control_hz: the policy has 10, the body 20 (the adapter 'rate' bridges it)",
    ]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_three_adapters_do_not_replace_the_fourth(adapter: str) -> None:
    with pytest.raises(SpecMismatch, match=f"the adapter '{adapter}' bridges it"):
        bridge(POLICY, BODY, [name for name in ADAPTERS if name != adapter])


@pytest.mark.parametrize(
    ("policy", "body", "expected"),
    [
        (
            {"state_names": ("a", "b")},
            {"state_names": ("a", "c")},
            Mismatch("state_names", "the policy reads b, which the body does not have"),
        ),
        (
            {"action_names": ("a", "b", "z")},
            {"action_names": ("a", "b")},
            Mismatch("action_names", "the policy commands z, which the body does not have"),
        ),
        (
            {"action_names": ("a",)},
            {"action_names": ("a", "b")},
            Mismatch("action_names", "the body takes b, which the policy does not give"),
        ),
        (
            {"action_units": ("rad", "rad")},
            {"action_units": ("rad", "m")},
            Mismatch("action_units", "number 1: the policy has rad, the body m"),
        ),
        (
            {"state_units": ("rad", "rad")},
            {"state_names": ("a", "b", "c")},
            Mismatch("state_dim", "the policy has 2 numbers, the body 3"),
        ),
        (
            {"action_names": ("a", "b"), "action_hold": ("zero", "last")},
            {"action_names": ("b", "a"), "action_hold": ("zero", "last")},
            Mismatch("action_hold", "a: the policy has 'zero', the body 'last'"),
        ),
    ],
)
def test_what_no_adapter_bridges_is_refused_with_all_of_them(
    policy: dict[str, Any], body: dict[str, Any], expected: Mismatch
) -> None:
    wanted, given = PolicySpec(**policy), Embodiment(**body)
    assert expected in compare(wanted, given)
    with pytest.raises(SpecMismatch):
        bridge(wanted, given, ADAPTERS)


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(ConfigurationError) as raised:
        bridge(POLICY, BODY, ("order",))
    assert str(raised.value) == "there is no adapter 'order'. Known: reorder, units, signs, rate"


def test_state_and_action_go_through_by_name() -> None:
    found = bridge(POLICY, replace(BODY, control_hz=None), ADAPTERS)
    assert found is not None
    assert found.adapters == ("reorder", "units", "signs")
    observation = MetaObs(state=np.array([1, 90, 7, 180], np.float32), timestep=5)
    seen = found.observation(observation)
    assert seen.state is not None
    np.testing.assert_allclose(seen.state, [math.pi, -math.pi / 2, 0], rtol=1e-6)
    assert seen.state.dtype == np.float32
    assert seen.timestep == 5
    actions = found.actions(np.array([[math.pi, -math.pi / 2, 0], [0, 0, 1]], np.float32))
    np.testing.assert_allclose(actions, [[1, 90, 180], [-1, 0, 0]], rtol=1e-6, atol=1e-6)
    # A prefix is the body's own actions again, and reaches the policy as it gave them.
    again = found.observation(replace(observation, prefix=actions, delay=2)).prefix
    np.testing.assert_allclose(again, [[math.pi, -math.pi / 2, 0], [0, 0, 1]], rtol=1e-6, atol=1e-6)


def test_a_bridged_spec_fits_the_body() -> None:
    found = bridge(POLICY, BODY, ADAPTERS)
    assert found is not None
    assert compare(found.spec(), BODY) == []
    assert (found.spec().chunk_size, found.spec().n_action_steps, found.spec().control_hz) == (8, 4, 20)


def test_another_order_alone_changes_no_bit() -> None:
    policy = PolicySpec(action_names=("a", "b"), state_names=("a", "b"))
    found = bridge(policy, Embodiment(action_names=("b", "a"), state_names=("b", "a")), ["reorder"])
    assert found is not None
    chunk = ActionChunk(np.array([[0.1, 0.2]], np.float32), "ee", "delta")
    assert found.chunk(chunk).actions.tolist() == chunk.actions[:, ::-1].tolist()


def rates(policy_hz: float, body_hz: float, **body: Any) -> Any:
    given = Embodiment(control_hz=body_hz, **body)
    return bridge(PolicySpec(control_hz=policy_hz, chunk_size=4), given, ["rate"])


def test_positions_are_interpolated_and_grippers_repeated() -> None:
    found = rates(
        10, 20, ctrl_type="absolute", action_hold=("last", "last"), action_names=("joint", "gripper")
    )
    chunk = np.array([[0, 0], [2, 1], [4, 0]], np.float32)
    assert found.actions(chunk).tolist() == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 0], [4, 0]]
    assert found.observation(MetaObs(timestep=6)).timestep == 3


def test_the_sum_of_deltas_stays() -> None:
    found = rates(20, 50, ctrl_type="delta", action_layout="dpos(1) gripper(1)")
    chunk = np.array([[1, 1], [2, 0], [0, 0], [-1, 1]], np.float32)
    actions = found.actions(chunk)
    assert len(actions) == 10
    np.testing.assert_allclose(actions[:, 0].sum(), 2, rtol=1e-6)
    np.testing.assert_allclose(actions[:2, 0], 0.4, rtol=1e-6)
    assert actions[:, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    slower = rates(20, 10, ctrl_type="delta", action_layout="dpos(1) gripper(1)")
    assert slower.actions(chunk).tolist() == [[3, 1], [-1, 0]]


def test_velocities_and_choices_are_repeated() -> None:
    found = rates(10, 20, ctrl_type="absolute", action_hold=("zero", "choice"))
    assert found.actions(np.array([[1, 3], [2, 4]], np.float32)).tolist() == [[1, 3], [1, 3], [2, 4], [2, 4]]


def test_a_rate_is_not_bridged_where_nobody_says_what_the_numbers_are() -> None:
    with pytest.raises(SpecMismatch, match="'rate' needs ctrl_type and action_hold"):
        rates(10, 20, ctrl_type="absolute")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state_names": ("a", "a")}, "state_names has 'a' twice"),
        ({"state_names": "ab"}, "state_names is 'ab', expected a list of words, or None"),
        ({"action_signs": (1, 0)}, "action_signs is (1, 0), expected a list of 1 and -1, or None"),
        ({"state_units": ("m",), "state_dim": 2}, "state_units has 1 entries, but state_dim is 2"),
    ],
)
def test_lists_that_no_body_can_have_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        PolicySpec.from_wire(fields)
    assert str(raised.value) == f"not a PolicySpec: {message}"


def test_an_older_peer_does_not_see_the_new_fields() -> None:
    assert not {key for key in PolicySpec().to_wire() if key.endswith(("_names", "_units", "_signs"))} - {
        "camera_names"
    }
    assert PolicySpec.from_wire(POLICY.to_wire()) == POLICY


def test_names_of_a_layout() -> None:
    assert layout_names("left: pos(3) quat(4) gripper(1); right: djoint_pos(2)") == (
        *("left_pos_x", "left_pos_y", "left_pos_z"),
        *("left_quat_w", "left_quat_x", "left_quat_y", "left_quat_z", "left_gripper"),
        *("right_djoint_pos_1", "right_djoint_pos_2"),
    )


# the closed loop: a point on a line, whose policy was trained in millimetres, with the gripper first


class MillimetrePolicy(FakePolicySession):
    """The fake's policy with its action as (gripper, move in mm), from a state in mm."""

    def send_meta_obs(self, obs: MetaObs) -> list[MetaAction]:
        assert obs.state is not None
        moves = super().send_meta_obs(replace(obs, state=obs.state / 1000))
        for move in moves:
            assert move.action is not None
            move.action = np.array([-1.0, move.action[0] * 1000], np.float32)
        return moves


def run(path: Path, *, adapted: bool, adapters: tuple[str, ...] = ADAPTERS) -> dict[str, Any]:
    policy, simulators = FakePolicyServer(), FakeSimulatorServer()
    simulators.spec = replace(
        simulators.spec,
        state_names=("x",),
        state_units=("m",),
        action_names=("dx", "gripper"),
        action_units=("m", "closed0_open1"),
    )
    if adapted:
        policy.session = MillimetrePolicy
        policy.info.update(
            state_names=["x"],
            state_units=["mm"],
            action_names=["gripper", "dx"],
            action_units=["open-1_closed1", "mm"],
        )
    options = EvaluateOptions(
        path, num_episodes=6, num_envs=1, record_video="off", adapters=adapters if adapted else ()
    )
    return evaluate(options, open_policy=policy.open, open_simulator=simulators.open)


def test_an_adapted_policy_does_what_the_other_does(tmp_path: Path) -> None:
    plain, adapted = run(tmp_path / "a", adapted=False), run(tmp_path / "b", adapted=True)
    assert plain["successes"] > 0
    assert [adapted[name] for name in ("episodes", "successes", "mean_steps")] == [
        plain[name] for name in ("episodes", "successes", "mean_steps")
    ]
    assert adapted["fingerprint"]["adapters"] == list(ADAPTERS)
    assert "adapters" not in plain["fingerprint"]


def test_an_evaluation_is_refused_before_an_episode(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch) as raised:
        run(tmp_path, adapted=True, adapters=("reorder", "signs"))
    assert str(raised.value) == (
        "policy 'push' does not fit task 'Push' of 'line': "
        "state_units: x: the policy has mm, the simulator m (the adapter 'units' bridges it); "
        "action_units: dx: the policy has mm, the simulator m (the adapter 'units' bridges it)"
    )
    assert list(tmp_path.iterdir()) == []
