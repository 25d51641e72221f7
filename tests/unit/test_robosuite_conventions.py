"""The mapping between robosuite's numbers and MetaObs and MetaAction, and the expert's view of it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.robosuite.conventions import gripper_opening
from benchmark.robosuite.expert import ConveyorExpert, Disturbance, LiftExpert

PANDA = {"closed": np.array([0.0, 0.0]), "opened": np.array([0.04, -0.04])}


def seen(*, hand: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """Return an observation of Lift with the cube in the middle of the table."""
    return {"robot0_eef_pos": np.array(hand), "cube_pos": np.array([0.0, 0.0, 0.82])}


@pytest.mark.parametrize(("metres", "opening"), [(0.04, 1.0), (0.01, 0.25), (0.0, 0.0)])
def test_the_opening_of_a_gripper_goes_from_0_closed_to_1_open(metres: float, opening: float) -> None:
    assert gripper_opening(np.array([metres, -metres]), **PANDA) == pytest.approx(opening)


def test_fingers_pressed_beyond_their_range_are_no_more_than_closed() -> None:
    assert gripper_opening(np.array([-0.001, 0.001]), **PANDA) == 0.0


def test_a_gripper_whose_joints_turn_the_other_way_is_open_at_their_low_end() -> None:
    robotiq = {"closed": np.array([0.8, 0.8]), "opened": np.array([0.0, 0.0])}
    assert gripper_opening(np.array([0.2, 0.2]), **robotiq) == pytest.approx(0.75)


def test_the_expert_goes_to_the_cube_with_open_fingers() -> None:
    action = LiftExpert().action(seen(hand=(-0.1, 0.0, 1.0)))
    assert action[0] > 0
    assert action[2] < 0
    assert action[6] == 1.0


def test_the_expert_stays_above_the_cube_until_it_is_over_it() -> None:
    assert LiftExpert().action(seen(hand=(-0.03, 0.0, 0.85)))[2] > 0
    assert LiftExpert().action(seen(hand=(0.0, 0.005, 0.85)))[2] < 0


def test_the_expert_closes_its_fingers_around_the_cube_and_then_lifts() -> None:
    expert = LiftExpert()
    actions = np.stack([expert.action(seen(hand=(0.0, 0.0, 0.82))) for _ in range(7)])
    assert actions[:, 6].tolist() == [0.0] * 7
    assert actions[:, 2].tolist() == pytest.approx([0.0] * 6 + [0.6])


def test_the_expert_of_the_belt_aims_ahead_of_the_cube_and_goes_along_with_it() -> None:
    over = seen(hand=(0.0, 0.0, 0.9))
    assert ConveyorExpert().action(over)[1] > 0 == LiftExpert().action(over)[1]
    closing = ConveyorExpert().action(seen(hand=(0.0, 0.0, 0.82)))
    assert closing[6] == 0.0
    assert closing[1] == pytest.approx(0.336, abs=0.01)


def test_a_disturbance_strays_in_the_hands_motion_and_leaves_the_rest_alone() -> None:
    disturbance = Disturbance(1, noise=0.15, stray=0.3)
    action = np.array([0.5, 0, 0, 0, 0, 0, 1], np.float32)
    executed = np.stack([disturbance(action) for _ in range(50)])
    assert np.array_equal(executed[:, 3:], np.tile(action[3:], (50, 1)))
    assert np.all(np.ptp(executed[:, :3], axis=0) > 0)
    assert np.abs(executed).max() <= 1


def test_a_disturbance_repeats_with_its_seed() -> None:
    action = np.zeros(7, np.float32)
    one, same = (Disturbance(5, noise=0.15, stray=0.3) for _ in range(2))
    assert np.array_equal(one.start(), same.start())
    assert all(np.array_equal(one(action), same(action)) for _ in range(20))


def test_one_episode_in_four_shows_the_experts_own_actions() -> None:
    still = Disturbance(1_000_004, noise=0.15, stray=0.3)
    action = np.linspace(-1, 1, 7, dtype=np.float32)
    assert len(still.start()) == 0
    assert np.array_equal(still(action), action)
