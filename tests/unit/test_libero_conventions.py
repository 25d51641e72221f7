"""The mapping between LIBERO's numbers and images and MetaObs and MetaAction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.libero.conventions import (
    CENTER_NAMES,
    axis_angle,
    center_named,
    dummy_action,
    gripper_opening,
    libero_named,
    policy_state,
    turned,
)


def marked() -> np.ndarray:
    """Return an image of 4 rows and 6 columns, red in the first row, second column."""
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 1] = (255, 7, 0)
    return image


def test_for_policies_a_picture_is_turned_by_180_degrees() -> None:
    assert turned(marked())[3, 4].tolist() == [255, 7, 0]
    np.testing.assert_array_equal(turned(marked()), np.rot90(marked(), 2))


def test_waiting_is_six_zeros_and_an_open_gripper() -> None:
    assert dummy_action(7).tolist() == [0.0] * 6 + [-1.0]


@pytest.mark.parametrize(
    ("fingers", "opening"), [((0.04, -0.04), 1.0), ((0.0, 0.0), 0.0), ((0.01, -0.01), 0.25)]
)
def test_the_opening_is_the_distance_between_the_fingers(
    fingers: tuple[float, float], opening: float
) -> None:
    assert gripper_opening(np.array(fingers)) == pytest.approx(opening)


def test_fingers_that_are_pressed_beyond_their_range_are_open_or_closed() -> None:
    assert gripper_opening(np.array([0.041, -0.041])) == 1.0
    assert gripper_opening(np.array([-0.001, 0.001])) == 0.0


def test_no_rotation_is_three_zeros() -> None:
    assert axis_angle(np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0.0, 0.0, 0.0]


@given(
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: math.hypot(*axis) > 0.1),
    angle=st.floats(0.01, 2 * math.pi - 0.01),
)
def test_a_rotation_is_its_axis_times_its_angle(axis: tuple[float, float, float], angle: float) -> None:
    unit = np.array(axis) / math.hypot(*axis)
    quaternion = np.array([*(unit * math.sin(angle / 2)), math.cos(angle / 2)])
    np.testing.assert_allclose(axis_angle(quaternion), unit * angle, atol=1e-6)


def test_a_hand_that_points_down_does_not_jump_when_it_passes_half_a_turn() -> None:
    below, above = (axis_angle(np.array([math.sqrt(1 - w * w), 0, 0, w])) for w in (0.001, -0.001))
    np.testing.assert_allclose(below, above, atol=0.005)


def test_a_quaternion_that_rounding_made_too_long_is_no_rotation() -> None:
    assert axis_angle(np.array([0.0, 0.0, 0.0, 1.0 + 1e-12])).tolist() == [0.0, 0.0, 0.0]


def test_an_older_servers_names_are_those_eight_and_the_pictures_of_other_cameras() -> None:
    own = {name: np.array([float(i)]) for i, name in enumerate(CENTER_NAMES.values())}
    others = {"bowl_pos": np.zeros(3), "frontview_image": np.ones(2)}
    named = center_named({**own, **others}, ["agentview", "frontview"])
    assert sorted(named) == [
        "agentview_image",
        "ee_pos",
        "ee_quat",
        "eye_in_hand_image",
        "frontview_image",
        "gripper_position",
        "gripper_velocity",
        "joint_positions",
        "joint_velocities",
    ]
    assert named["joint_positions"] is own["robot0_joint_pos"]
    assert libero_named(named) == {**own, "frontview_image": others["frontview_image"]}


def test_the_state_is_position_axis_angle_and_both_fingers() -> None:
    observation = {
        "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
        "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
    }
    state = policy_state(observation)
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [0.1, 0.2, 0.3, math.pi, 0, 0, 0.04, -0.04], rtol=1e-6)
