"""Spaces as named arrays and rows of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from benchmark.environments.spaces import ActionNumbers, ObservationNames, rgb
from robowire.errors import BackendError, InvalidParams

NESTED = spaces.Dict(
    {
        "goal": spaces.Dict({"door": spaces.Box(0, 1, (2,)), "light": spaces.Discrete(3, start=1)}),
        "pair": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([3, 4]))),
        "pixels": spaces.Box(0, 255, (4, 6, 3), np.uint8),
        "speed": spaces.Box(-1, 1, ()),
    }
)


def test_nested_parts_are_named_by_where_they_are() -> None:
    names = ObservationNames(NESTED)
    assert names.numbers == {"goal.door": 2, "goal.light": 1, "pair.0": 2, "pair.1": 2, "speed": 1}
    assert names.images == ("pixels",)


def test_each_part_becomes_an_array_of_its_own() -> None:
    observation = NESTED.sample()
    arrays = ObservationNames(NESTED).arrays(observation)
    assert arrays.keys() == {"goal.door", "goal.light", "pair.0", "pair.1", "pixels", "speed"}
    assert arrays["goal.light"].tolist() == [observation["goal"]["light"]]
    assert (arrays["goal.light"].dtype, arrays["speed"].shape) == (np.int64, (1,))
    assert arrays["pair.1"].tolist() == observation["pair"][1].tolist()
    arrays["goal.door"][:] = 9
    assert (observation["goal"]["door"] <= 1).all()


def test_the_state_is_all_numbers_in_order_and_no_image() -> None:
    names = ObservationNames(NESTED)
    arrays = names.arrays(NESTED.sample())
    state = names.state(arrays)
    assert state is not None
    assert (state.shape, state.dtype) == ((8,), np.float32)
    assert state[:3].tolist() == [*arrays["goal.door"].tolist(), float(arrays["goal.light"][0])]
    assert ObservationNames(NESTED["pixels"]).state({}) is None


def test_what_has_no_name_is_the_observation() -> None:
    arrays = ObservationNames(spaces.Discrete(5)).arrays(3)
    assert arrays.keys() == {"observation"}
    assert (arrays["observation"].tolist(), arrays["observation"].dtype) == ([3], np.int64)


def test_a_space_that_is_no_array_is_refused() -> None:
    with pytest.raises(InvalidParams) as caught:
        ObservationNames(spaces.Dict({"said": spaces.Sequence(spaces.Discrete(5))}))
    assert str(caught.value) == (
        "'said' is a Sequence space, expected Box, Discrete, MultiDiscrete, MultiBinary, "
        "or Dict and Tuple of them"
    )


def test_a_box_is_cut_off_at_its_bounds_and_keeps_shape_and_type() -> None:
    numbers = ActionNumbers(spaces.Box(np.array([[-1, 0]], np.float32), np.array([[1, 2]], np.float32)))
    assert (numbers.dim, numbers.layout) == (2, "box(2) in -1..1 0..2, beyond is cut off")
    action = numbers.action(np.array([-5.0, 1.5]))
    assert (action.tolist(), action.shape, action.dtype) == ([[-1.0, 1.5]], (1, 2), np.float32)


@pytest.mark.parametrize(
    ("space", "layout", "good", "bad", "message"),
    [
        (
            spaces.Discrete(3, start=-1),
            "choice(1) in -1..1",
            [-1.0],
            [2.0],
            "action is [2.0], expected whole numbers in -1..1",
        ),
        (
            spaces.MultiDiscrete([2, 3]),
            "choice(2) in 0..1 0..2",
            [1.0, 2.0],
            [2.0, 2.0],
            "action is [2.0, 2.0], expected whole numbers in 0..1 0..2",
        ),
        (
            spaces.MultiBinary(2),
            "choice(2) in 0..1",
            [1.0, 0.0],
            [0.5, 0.0],
            "action is [0.5, 0.0], expected whole numbers in 0..1 0..1",
        ),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_a_choice_is_checked_and_becomes_what_the_space_contains(
    space: spaces.Space[object], layout: str, good: list[float], bad: list[float], message: str
) -> None:
    numbers = ActionNumbers(space)
    assert (numbers.dim, numbers.layout) == (len(good), layout)
    assert space.contains(numbers.action(np.array(good)))
    with pytest.raises(InvalidParams) as caught:
        numbers.action(np.array(bad))
    assert str(caught.value) == message


def test_a_nested_action_is_put_together_again() -> None:
    space = spaces.Dict(
        {
            "arm": spaces.Box(-1, 1, (2,)),
            "hand": spaces.Dict({"open": spaces.MultiBinary(1), "tool": spaces.Discrete(4)}),
            "both": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,)))),
        }
    )
    numbers = ActionNumbers(space)
    assert numbers.layout == (
        "arm: box(2) in -1..1, beyond is cut off, both.0: choice(1) in 0..1, "
        "both.1: box(1) in 0..1, beyond is cut off, "
        "hand.open: choice(1) in 0..1, hand.tool: choice(1) in 0..3"
    )
    action = numbers.action(np.array([0.5, -0.5, 1, 0.25, 1, 3]))
    assert space.contains(action)
    assert (action["hand"]["tool"], action["both"][0], action["both"][1].tolist()) == (3, 1, [0.25])
    with pytest.raises(InvalidParams, match=r"^hand\.tool is \[4\.0\], expected whole numbers in 0\.\.3$"):
        numbers.action(np.array([0.5, -0.5, 1, 0.25, 1, 4]))


def test_text_beside_an_image_is_the_instruction_and_not_part_of_the_arrays() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "mission": spaces.Text(100)})
    names = ObservationNames(space)
    observation = {"image": np.zeros((8, 8, 3), np.uint8), "mission": "go to the red ball"}
    assert names.instruction(observation) == "go to the red ball"
    assert names.arrays(observation).keys() == {"image"}
    assert (names.images, names.numbers) == (("image",), {})


def test_text_is_no_action() -> None:
    with pytest.raises(InvalidParams, match=r"^'action' is a Text space, expected Box"):
        ActionNumbers(spaces.Text(5))


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 1), (16, 24, 3), (16, 24, 4), (1, 16, 24), (3, 16, 24)])
def test_images_in_any_layout_are_cameras_and_never_part_of_the_state(shape: tuple[int, ...]) -> None:
    names = ObservationNames(spaces.Box(0, 255, shape, np.uint8))
    assert (names.images, names.numbers) == (("observation",), {})
    image = rgb(np.full(shape, 7, np.uint8))
    assert (image.shape, image.dtype) == ((16, 24, 3), np.uint8)
    assert (image == 7).all()


def test_a_small_table_of_bytes_is_no_camera() -> None:
    assert ObservationNames(spaces.Box(0, 255, (4, 24), np.uint8)).numbers == {"observation": 96}
    assert ObservationNames(spaces.Box(0, 9, (16, 24), np.uint8)).numbers == {"observation": 384}


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (
            spaces.Box(-1, 1, (2,), np.float32),
            np.array([5, -5], np.float32),
            "holds 5 (float32), outside of its space: -1 to 1 (float32)",
        ),
        (
            spaces.Box(-1, 1, (2,), np.float32),
            np.array([np.nan, 0]),
            "holds nan (float64), outside of its space: -1 to 1 (float32)",
        ),
        (
            spaces.Box(0, 255, (8, 8, 3), np.uint8),
            np.full((8, 8, 3), 0.9),
            "holds 0.9 (float64), outside of its space: 0 to 255 (uint8)",
        ),
        (spaces.Discrete(4), 4, "holds 4 (int64), outside of its space: 0 to 3 (int64)"),
        (
            spaces.Box(-9, 9, (2,), np.float32),
            np.zeros(3),
            "has shape (3,) and dtype float64, its space has (2,) and float32",
        ),
        (
            spaces.Box(-9, 9, (1,), np.float32),
            None,
            "has shape () and dtype object, its space has (1,) and float32",
        ),
    ],
)
def test_a_value_outside_of_its_space_is_an_error_that_names_the_part(
    space: spaces.Space[object], value: object, message: str
) -> None:
    with pytest.raises(BackendError) as caught:
        ObservationNames(spaces.Dict({"part": space})).arrays({"part": value})
    assert str(caught.value) == f"'part' of the observation {message}"


def test_a_value_that_is_on_its_bounds_but_for_rounding_is_in_its_space() -> None:
    space = spaces.Box(-0.1, 0.1, (1,), np.float32)
    arrays = ObservationNames(space).arrays(np.array([0.1 + 1e-9]))
    np.testing.assert_allclose(arrays["observation"], [0.1], rtol=1e-6)


def test_an_action_says_which_numbers_are_choices_and_what_a_box_does_at_rest() -> None:
    space = spaces.Dict({"arm": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3)})
    assert ActionNumbers(space).hold == ("unknown", "unknown", "choice")
    assert ActionNumbers(space, box_hold="zero").hold == ("zero", "zero", "choice")
    assert ActionNumbers(spaces.Box(-1, 1, (2,)), box_hold=("zero", "last")).hold == ("zero", "last")


def test_names_that_hold_the_separator_arrive_as_sent() -> None:
    picture = spaces.Box(0, 255, (4, 4, 3), np.uint8)
    number = spaces.Box(-9, 9, (1,))
    space = spaces.Dict(
        {
            "pixels": picture,
            "pixels.wrist": picture,
            "state": number,
            "state.vel": number,
            "a": spaces.Dict({"b": number}),
            "a.c": number,
        }
    )
    sent = {
        "pixels": np.full((4, 4, 3), 10, np.uint8),
        "pixels.wrist": np.full((4, 4, 3), 99, np.uint8),
        "state": np.array([1], np.float32),
        "state.vel": np.array([2], np.float32),
        "a": {"b": np.array([3], np.float32)},
        "a.c": np.array([4], np.float32),
    }
    got = ObservationNames(space).arrays(sent)
    assert {name: float(array.flat[0]) for name, array in got.items()} == {
        "pixels": 10,
        "pixels.wrist": 99,
        "state": 1,
        "state.vel": 2,
        "a.b": 3,
        "a.c": 4,
    }
    action_space = spaces.Dict({"a": spaces.Dict({"b": number}), "a.c": number})
    action = ActionNumbers(action_space).action(np.array([3.0, 4.0]))
    assert (float(action["a"]["b"][0]), float(action["a.c"][0])) == (3, 4)


@pytest.mark.parametrize("names", [ObservationNames, ActionNumbers])
def test_two_parts_of_one_name_are_refused(
    names: type[ObservationNames] | type[ActionNumbers],
) -> None:
    number = spaces.Box(-9, 9, (1,))
    space = spaces.Dict({"a": spaces.Dict({"b": number}), "a.b": number})
    with pytest.raises(InvalidParams) as raised:
        names(space)
    assert str(raised.value) == (
        "two parts of the space are called 'a.b': nested names are joined by a dot, so call one "
        "of them otherwise"
    )
