"""An observation is compared with what the policy declared, before it costs the device anything."""

from __future__ import annotations

import numpy as np
import pytest

from robowire.errors import SpecMismatch
from robowire.meta import MetaObs
from robowire.serving.policy.validation import check_observation
from robowire.specs import PolicySpec

SPEC = PolicySpec(
    camera_names=("front", "wrist"), image_height=4, image_width=6, state_dim=3, state_layout="joint_pos(3)"
)
IMAGE = np.zeros((2, 3, 4, 6), np.uint8)
STATE = np.zeros(3, np.float32)
CAMERAS = ", expected uint8 (2, 3, 4, 6), the cameras being front, wrist"


def test_an_observation_that_fits_is_accepted() -> None:
    check_observation(MetaObs(image=IMAGE, state=STATE), SPEC)


def test_a_policy_that_leaves_everything_open_accepts_anything() -> None:
    check_observation(MetaObs(), PolicySpec())
    check_observation(MetaObs(image=np.zeros((9, 1)), state=np.zeros((2, 2))), PolicySpec())


def test_a_policy_without_cameras_accepts_any_image() -> None:
    check_observation(MetaObs(image=np.zeros(7)), PolicySpec(camera_names=(), image_height=4))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image is a NoneType" + CAMERAS),
        (IMAGE[:1], "image is a uint8 array of shape (1, 3, 4, 6)" + CAMERAS),
        (IMAGE.transpose(0, 2, 3, 1), "image is a uint8 array of shape (2, 4, 6, 3)" + CAMERAS),
        (IMAGE.astype(np.float32), "image is a float32 array of shape (2, 3, 4, 6)" + CAMERAS),
        (IMAGE[:, :, :, :5], "image is a uint8 array of shape (2, 3, 4, 5)" + CAMERAS),
        (IMAGE[0], "image is a uint8 array of shape (3, 4, 6)" + CAMERAS),
    ],
)
def test_an_image_that_does_not_fit_is_named(image: np.ndarray | None, message: str) -> None:
    with pytest.raises(SpecMismatch) as raised:
        check_observation(MetaObs(image=image, state=STATE), SPEC)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "state is a NoneType, expected (3,) numbers: joint_pos(3)"),
        (np.zeros(4), "state is a float64 array of shape (4,), expected (3,) numbers: joint_pos(3)"),
        (np.zeros((1, 3)), "state is a float64 array of shape (1, 3), expected (3,) numbers: joint_pos(3)"),
        (np.array([0, np.nan, 0]), "state[1] is nan, expected finite numbers"),
        (np.array([0, 0, -np.inf]), "state[2] is -inf, expected finite numbers"),
    ],
)
def test_a_state_that_does_not_fit_is_named(state: np.ndarray | None, message: str) -> None:
    with pytest.raises(SpecMismatch) as raised:
        check_observation(MetaObs(image=IMAGE, state=state), SPEC)
    assert str(raised.value) == message


def test_numbers_are_finite_even_where_their_count_is_open() -> None:
    with pytest.raises(SpecMismatch, match=r"^state_joint\[0\] is nan, expected finite numbers$"):
        check_observation(MetaObs(state_joint=np.array([np.nan])), PolicySpec())


def test_where_only_the_image_size_is_declared_only_that_is_looked_at() -> None:
    spec = PolicySpec(image_height=4)
    check_observation(MetaObs(), spec)
    check_observation(MetaObs(image=np.zeros((5, 3, 4, 99), np.uint8)), spec)
    with pytest.raises(SpecMismatch) as raised:
        check_observation(MetaObs(image=np.zeros((1, 3, 5, 5), np.uint8)), spec)
    assert (
        str(raised.value)
        == "image is a uint8 array of shape (1, 3, 5, 5), expected uint8 (cameras, 3, 4, width)"
    )
