"""Specs say what a policy and a body agree on, and refuse a pair that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from robowire.errors import InvalidParams, SpecMismatch
from robowire.specs import PolicySpec, SimulatorSpec, require_match

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
        ({"ctrl_type": "abs"}, "ctrl_type is 'abs', expected 'absolute', 'relative' or 'delta'"),
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
