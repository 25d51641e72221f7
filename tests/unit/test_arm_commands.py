"""What a command to an arm means, and what becomes of a MetaAction."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.arms.commands import ARM_COMMANDS, control_rate, own_action, to_gripper_command, upright
from robowire.errors import InvalidParams, SpecMismatch
from robowire.meta import MetaAction
from robowire.specs import SimulatorSpec

SPEC = SimulatorSpec(action_dim=4, action_layout="dpos(3) gripper(1)", ctrl_space="ee", ctrl_type="delta")


def test_the_first_row_of_robosuites_picture_is_the_last_of_ours_and_columns_stay() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 1] = (255, 7, 0)
    assert upright(image)[3, 1].tolist() == [255, 7, 0]


def test_an_open_gripper_is_1_for_us_and_minus_1_for_robosuite() -> None:
    assert [to_gripper_command(opening) for opening in (1.0, 0.5, 0.0)] == [-1.0, 0.0, 1.0]


def test_every_controller_names_its_space_and_type() -> None:
    assert {name: (command.ctrl_space, command.ctrl_type) for name, command in ARM_COMMANDS.items()} == {
        "OSC_POSE": ("ee", "delta"),
        "OSC_POSITION": ("ee", "delta"),
        "IK_POSE": ("ee", "delta"),
        "JOINT_POSITION": ("joint", "delta"),
        "JOINT_VELOCITY": ("joint", "absolute"),
        "JOINT_TORQUE": ("joint", "absolute"),
    }


def test_only_the_grippers_entries_of_an_action_change() -> None:
    action = MetaAction("ee", "delta", np.array([0.5, 1.0, -0.5, 0.25]))
    assert own_action(action, SPEC, [-1]).tolist() == [0.5, 1.0, -0.5, 0.5]
    assert own_action(action, SPEC, [1, 3]).tolist() == [0.5, -1.0, -0.5, 0.5]
    assert own_action(action, SPEC, []).tolist() == [0.5, 1.0, -0.5, 0.25]
    assert action.action is not None
    assert action.action[-1] == 0.25


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            MetaAction("joint", "delta", np.zeros(4)),
            "ctrl_space of the action is 'joint', expected 'ee'",
        ),
        (
            MetaAction("ee", "absolute", np.zeros(4)),
            "ctrl_type of the action is 'absolute', expected 'delta'",
        ),
        (
            MetaAction("ee", "delta", np.zeros(3)),
            "the action has shape (3,), expected (4,): dpos(3) gripper(1)",
        ),
        (MetaAction("ee", "delta"), "the action has shape None, expected (4,): dpos(3) gripper(1)"),
    ],
    ids=["space", "type", "shape", "none"],
)
def test_an_action_of_another_body_is_refused(action: MetaAction, message: str) -> None:
    with pytest.raises(SpecMismatch) as caught:
        own_action(action, SPEC, [-1])
    assert str(caught.value) == message


@pytest.mark.parametrize(("given", "rate"), [(None, 20.0), (20.0, 20.0), (500, 500.0), (31.25, 31.25)])
def test_a_rate_is_a_whole_number_of_physics_steps(given: float | None, rate: float) -> None:
    assert control_rate(given) == rate


def test_a_rate_that_robosuite_would_round_is_refused_with_its_neighbours() -> None:
    with pytest.raises(InvalidParams) as caught:
        control_rate(30.0)
    assert str(caught.value) == (
        "control_hz is 30.0, expected 500 divided by a whole number: 29.4118 or 31.25 for example"
    )


@pytest.mark.parametrize("rate", [501.0, 0.0, -1.0])
def test_a_rate_that_physics_does_not_have_is_refused(rate: float) -> None:
    with pytest.raises(InvalidParams) as caught:
        control_rate(rate)
    assert str(caught.value) == f"control_hz is {rate}, expected more than 0 and at most 500"
