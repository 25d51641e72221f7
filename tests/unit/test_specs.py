"""Specs say what a policy and a body agree on, and refuse a pair that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from robowire.contract import require_match
from robowire.errors import InvalidParams, SpecMismatch
from robowire.specs import PolicySpec, SimulatorSpec, declared_hold

POLICY = PolicySpec(policy="act", camera_names=("top", "wrist"), action_dim=7, ctrl_space="ee", chunk_size=64)


def test_a_spec_crosses_the_wire_and_comes_back() -> None:
    wire = POLICY.to_wire()
    assert wire["camera_names"] == ["top", "wrist"]
    assert PolicySpec.from_wire({**wire, "status": "ok", "smell": "burnt"}) == POLICY


def test_fields_that_both_leave_open_or_share_fit() -> None:
    require_match(POLICY, SimulatorSpec(camera_names=("top", "wrist"), action_dim=7, control_hz=20))


def test_every_field_that_differs_is_named() -> None:
    simulator = SimulatorSpec(
        simulator="robosuite", task="Lift", camera_names=("wrist", "top"), action_dim=7, ctrl_space="joint"
    )
    with pytest.raises(SpecMismatch) as raised:
        require_match(POLICY, simulator)
    assert str(raised.value) == (
        "policy 'act' does not fit task 'Lift' of 'robosuite': "
        "camera_names: the policy has ('top', 'wrist'), the simulator ('wrist', 'top'); "
        "ctrl_space: the policy has 'ee', the simulator 'joint'"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ctrl_space": "cartesian"}, "ctrl_space is 'cartesian', expected 'ee' or 'joint'"),
        ({"ctrl_type": "rel"}, "ctrl_type is 'rel', expected 'absolute', 'relative' or 'delta'"),
        ({"image_height": 0}, "image_height is 0, expected a positive number or None"),
        ({"control_hz": -1.0}, "control_hz is -1.0, expected a positive number or None"),
        ({"camera_names": "top"}, "camera_names is 'top', expected a list of names or None"),
        ({"camera_names": [1]}, "camera_names is [1], expected a list of names or None"),
    ],
)
def test_a_value_no_spec_can_have_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        PolicySpec(**fields)
    assert str(raised.value) == message
    with pytest.raises(InvalidParams) as refused:
        PolicySpec.from_wire(fields)
    assert str(refused.value) == f"not a PolicySpec: {message}"


def test_abs_is_absolute() -> None:
    assert PolicySpec(ctrl_type="abs") == PolicySpec(ctrl_type="absolute")
    require_match(PolicySpec.from_wire({"ctrl_type": "abs"}), SimulatorSpec(ctrl_type="absolute"))


# what stands still


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (PolicySpec(action_hold=("zero", "last")), ("zero", "last")),
        (PolicySpec(action_hold=("unknown", "last")), None),
        (PolicySpec(), None),
        (PolicySpec(ctrl_space="ee", ctrl_type="delta", action_dim=7), None),
        (PolicySpec(ctrl_space="joint", ctrl_type="absolute", action_dim=7), None),
        (
            PolicySpec(
                ctrl_type="delta",
                action_dim=8,
                action_layout="robot0: dpos(3) gripper(1); robot1: dpos(3) gripper(1)",
            ),
            ("zero", "zero", "zero", "last") * 2,
        ),
        (PolicySpec(ctrl_type="absolute", action_layout="joint_vel(2) gripper(1)"), ("zero", "zero", "last")),
        (PolicySpec(ctrl_type="absolute", action_layout="joint_pos(2) gripper(1)"), ("last",) * 3),
        (PolicySpec(ctrl_type="absolute", action_layout="joint_pos(2)", action_dim=3), None),
        (PolicySpec(action_layout="joint_pos(2)"), None),
        (PolicySpec(ctrl_type="absolute", action_layout="box(4) in -1..1, beyond is cut off"), None),
    ],
)
def test_what_stands_still_is_declared_and_not_guessed(
    spec: PolicySpec, expected: tuple[str, ...] | None
) -> None:
    assert declared_hold(spec) == expected


def test_a_declaration_crosses_the_wire_and_none_is_left_out() -> None:
    spec = SimulatorSpec(action_dim=2, action_hold=("zero", "last"))
    assert spec.to_wire()["action_hold"] == ["zero", "last"]
    assert SimulatorSpec.from_wire(spec.to_wire()) == spec
    assert "action_hold" not in SimulatorSpec().to_wire()


def test_a_declaration_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^action_hold has 2 entries, but action_dim is 3$"):
        SimulatorSpec(action_dim=3, action_hold=("zero", "last"))
    with pytest.raises(ValueError, match=r"^action_hold is \['stop'\], expected a list of zero, last"):
        SimulatorSpec(action_hold=["stop"])  # type: ignore[arg-type]
