"""Layouts in words convert where rotations and grippers are the same thing in another notation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robowire.frontends.layouts import ROTATIONS, GripperScale, Word, layout_converter, parse_layout

# Axis-angle vectors: none, tiny, ordinary, half a turn about each axis and about a slanted one.
VECTORS = np.array(
    [
        [0, 0, 0],
        [1e-9, 0, 0],
        [0.3, -0.2, 0.5],
        [-2.0, 1.0, 0.5],
        [np.pi - 1e-6, 0, 0],
        [0, np.pi - 1e-6, 0],
        [0, 0, np.pi - 1e-6],
        [0, np.pi / 2, 0],
        [0.7, -1.1, 2.0],
    ]
)


def convert(array: np.ndarray, given: str, wanted: str) -> np.ndarray:
    converter = layout_converter(
        (Word("ee_" + given, ROTATIONS[given]),), (Word("ee_" + wanted, ROTATIONS[wanted]),)
    )
    assert converter is not None
    return converter(array)


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(ROTATIONS, 2)])
def test_a_rotation_comes_back_from_every_notation(one: str, other: str) -> None:
    first = convert(VECTORS, "axisangle", one)
    back = convert(convert(first, one, other), other, "axisangle")
    np.testing.assert_allclose(back, VECTORS, atol=1e-7)


def test_notations_agree_with_their_definitions() -> None:
    turn = np.array([[0.0, 0.0, np.pi / 2]])  # x becomes y
    half = np.sqrt(0.5)
    np.testing.assert_allclose(convert(turn, "axisangle", "quat_xyzw"), [[0, 0, half, half]], atol=1e-12)
    np.testing.assert_allclose(convert(turn, "axisangle", "quat_wxyz"), [[half, 0, 0, half]], atol=1e-12)
    np.testing.assert_allclose(convert(turn, "axisangle", "rot6d"), [[0, 1, 0, -1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(convert(turn, "axisangle", "euler_xyz"), [[0, 0, np.pi / 2]], atol=1e-12)
    # First about x, then about the fixed z: as the product Rz @ Rx.
    both = convert(np.array([[np.pi / 2, 0, np.pi / 2]]), "euler_xyz", "rot6d")
    np.testing.assert_allclose(both, [[0, 1, 0, 0, 0, 1]], atol=1e-12)


def test_layouts_fit_word_by_word_only() -> None:
    def fits(given: str, wanted: str) -> bool:
        words = parse_layout(given), parse_layout(wanted)
        assert words[0] is not None
        assert words[1] is not None
        return layout_converter(words[0], words[1]) is not None

    assert fits("a(3) gripper_open(1)", "a(3) gripper_close(1)")
    assert fits("right: a(3); left: a(3)", "a(3) a(3)")
    assert not fits("ee_pos(3) ee_axisangle(3) gripper_qpos(2)", "joint_pos(7) gripper_open(1)")
    assert not fits("a(3) b(1)", "b(1) a(3)")
    assert not fits("ee_axisangle(3)", "hand_euler_xyz(3)")  # another rotation
    assert parse_layout("steer(1) in -1..1") is None


@pytest.mark.parametrize("text", ["-1 open, 1 closed", "-1.0 open 1 closed", " -1 open,+1 close"])
def test_a_gripper_scale_is_written_in_words(text: str) -> None:
    scale = GripperScale.parse(text)
    assert str(scale) == "-1 open, 1 closed"
    np.testing.assert_array_equal(scale.from_opening(np.array([0, 0.5, 1], np.float32)), [1, 0, -1])
