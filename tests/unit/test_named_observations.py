"""Named images and state parts become a MetaObs of the policy's spec, or an error that lists both sides."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from robowire import images
from robowire.errors import ConfigurationError, InvalidParams, RequestError, SpecMismatch
from robowire.frontends.key_map import KeyMap
from robowire.frontends.named_observations import (
    ArrayPlace,
    NamedObservation,
    ObservationAdapter,
    make_adapter,
)
from robowire.specs import PolicySpec

LIFT = PolicySpec(
    policy="act",
    camera_names=("agentview", "robot0_eye_in_hand"),
    image_height=6,
    image_width=8,
    state_dim=8,
    state_layout="joint_pos(7) gripper_open(1)",
    action_dim=7,
    action_layout="dpos(3) daxisangle(3) gripper(1)",
    ctrl_type="delta",
    chunk_size=4,
)
STATE = np.arange(8.0)
RNG = np.random.default_rng(0)
FRONT = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
WRIST = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
LIBERO = NamedObservation(
    {"observation/image": FRONT, "observation/wrist_image": WRIST}, {"observation/state": STATE}, "lift", 3
)


@dataclass(frozen=True)
class Options:
    key_map: str | None = None


def adapter(
    spec: PolicySpec = LIFT, key_map: str | None = None, preset: str | None = "libero", **options: bool
) -> ObservationAdapter:
    return make_adapter(spec, Options(key_map), preset=preset, **options)


def table(tmp_path: Path, text: str) -> str:
    path = tmp_path / "table.yaml"
    path.write_text(text)
    return str(path)


def test_liberos_names_are_the_default() -> None:
    obs = adapter().observation(LIBERO)
    assert obs.image is not None
    assert obs.state is not None
    assert obs.image.flags.c_contiguous
    np.testing.assert_array_equal(obs.image, np.stack([FRONT, WRIST]).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(obs.state, STATE.astype(np.float32))
    assert (obs.raw_lang, obs.timestep, obs.state.dtype) == ("lift", 3, np.float32)


def test_the_pose_of_liberos_hand_is_not_taken_for_joints_because_it_is_as_long() -> None:
    """Its last number, the place of the second finger, is negative where the hand is open."""
    pose = np.array([-0.05, 0.02, 1.17, 3.13, 0.01, -0.02, 0.0388, -0.0388])
    named = replace(LIBERO, state={"observation/state": pose})
    with pytest.raises(SpecMismatch) as failure:
        adapter().observation(named)
    assert str(failure.value) == (
        "state[7] is -0.0388, and the policy takes there an opening, 0 closed to 1 open (joint_pos(7) "
        "gripper_open(1)): the client's state has another layout, such as LIBERO's pose of the hand. Start "
        "the server with --key_map libero, or a file with 'state_layout: ...'"
    )
    # Nor from a second client, whose names and lengths are those of one that was right.
    known = adapter()
    known.observation(LIBERO)
    with pytest.raises(SpecMismatch) as second:
        known.observation(named)
    assert str(second.value) == str(failure.value)
    # A policy that declares no layout takes it, and so does one for this pose.
    for layout in (None, "ee_pos(3) ee_axisangle(3) gripper_qpos(2)"):
        assert adapter(replace(LIFT, state_layout=layout)).observation(named).state is not None


def test_an_opening_below_zero_is_taken_from_a_client_that_says_that_it_is_one(tmp_path: Path) -> None:
    state = np.array([*range(7), -0.05])
    by_name = {"state.gripper_open": state[7], "state.joint_pos": state[:7]}
    for key_map, given in (
        (None, by_name),
        (table(tmp_path, "preset: libero\nstate_layout: joint_pos(7) gripper_open(1)\n"), None),
    ):
        named = replace(LIBERO, state=given or {"observation/state": state})
        taken = adapter(key_map=key_map).observation(named).state
        np.testing.assert_array_equal(taken, state.astype(np.float32))


@pytest.mark.parametrize("prefix", ["", "images/", "observation.images.", "video."])
@pytest.mark.parametrize("preset", ["libero", None])
def test_the_policys_own_names_are_known_behind_any_path(prefix: str, preset: str | None) -> None:
    named = NamedObservation(
        {prefix + "robot0_eye_in_hand": WRIST, prefix + "agentview": FRONT},
        {"state.gripper_open": 7.0, "state.joint_pos": STATE[:7]},
    )
    obs = adapter(preset=preset).observation(named)
    wanted = adapter().observation(replace(LIBERO, instruction=""))
    np.testing.assert_array_equal(obs.image, wanted.image)
    np.testing.assert_array_equal(obs.state, wanted.state)


def test_without_a_preset_parts_of_the_state_are_in_the_order_of_the_wire() -> None:
    named = NamedObservation(
        {"agentview": FRONT, "robot0_eye_in_hand": WRIST}, {"b": STATE[:7], "a": np.float64(7)}
    )
    np.testing.assert_array_equal(adapter(preset=None).observation(named).state, STATE)


def test_images_are_the_same_bytes_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = adapter().observation(LIBERO).image
    monkeypatch.setattr(images, "opencv_split", lambda: None)
    without = adapter().observation(LIBERO).image
    assert with_it is not None
    assert without is not None
    assert with_it.tobytes() == without.tobytes()


@pytest.mark.parametrize("chw", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("fortran", [False, True])
def test_every_form_of_an_image_gives_the_same_bytes(chw: bool, dtype: type, fortran: bool) -> None:
    def form(image: np.ndarray) -> np.ndarray:
        image = image if dtype == np.uint8 else (image / 255).astype(dtype)
        image = image.transpose(2, 0, 1) if chw else image
        return np.asfortranarray(image) if fortran else np.ascontiguousarray(image)

    images = {name: form(image) for name, image in LIBERO.images.items()}
    obs = adapter().observation(replace(LIBERO, images=images))
    assert obs.image is not None
    assert obs.image.flags.c_contiguous
    np.testing.assert_array_equal(obs.image, adapter().observation(LIBERO).image)


FLOATS = np.zeros((6, 8, 3), np.float32)
BAD_IMAGES: list[tuple[object, type[RequestError], str]] = [
    (FLOATS + 2, InvalidParams, "is float32 from 2 to 2, expected 0 to 1"),
    (FLOATS - 0.1, InvalidParams, "expected 0 to 1"),
    (FLOATS * np.nan, InvalidParams, "from nan to nan"),
    (FLOATS.astype(np.int64), InvalidParams, "is a int64 array of shape (6, 8, 3), expected uint8 or float"),
    (np.zeros((6, 8, 4), np.uint8), InvalidParams, "(height, width, 3) or (3, height, width)"),
    (np.zeros((6, 8), np.uint8), InvalidParams, "of shape (6, 8)"),
    (np.zeros((0, 8, 3), np.uint8), InvalidParams, "of shape (0, 8, 3)"),
    (np.zeros((3, 8, 3), np.uint8), InvalidParams, "as well as"),
    ("text", InvalidParams, "is a str"),
    (np.array([FRONT, None], object), InvalidParams, "object array"),
    (np.zeros((12, 16, 3), np.uint8), SpecMismatch, "is 12x16, the policy takes 6x8"),
]


@pytest.mark.parametrize(("image", "error", "message"), BAD_IMAGES)
def test_an_image_that_is_none_is_refused(image: object, error: type[RequestError], message: str) -> None:
    images = {**LIBERO.images, "observation/image": image}
    with pytest.raises(error) as raised:
        adapter().observation(replace(LIBERO, images=images))
    assert message in str(raised.value)
    assert "'observation/image'" in str(raised.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"observation/image": FRONT}, "there is no image for the camera 'robot0_eye_in_hand'"),
        ({**LIBERO.images, "front": FRONT}, "the image 'front' is unknown"),
        (
            {**LIBERO.images, "agentview": FRONT},
            "the images ['observation/image', 'agentview'] are all for the camera 'agentview'",
        ),
    ],
)
def test_names_of_images_that_do_not_fit_are_listed_with_the_policys(
    images: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InvalidParams) as raised:
        adapter().observation(replace(LIBERO, images=images))
    assert str(raised.value).startswith(message)
    assert str(list(images)) in str(raised.value)
    assert "the policy the cameras ['agentview', 'robot0_eye_in_hand']" in str(raised.value)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({}, InvalidParams, "there is no part 'observation/state' or 'states' or 'state'"),
        (
            {"qpos": STATE},
            InvalidParams,
            "the part 'qpos' is unknown. The observation has the parts ['qpos']",
        ),
        ({"state": STATE, "states": STATE}, InvalidParams, "the parts ['states', 'state'] are the same"),
        ({"state": STATE[:7]}, SpecMismatch, "has 7 numbers ('state' 7), expected 8: joint_pos(7)"),
        ({"state": STATE * np.nan}, SpecMismatch, "state[0] is nan"),
        ({"state": STATE[np.newaxis]}, InvalidParams, "'state' is a float64 array of shape (1, 8)"),
        ({"state": ["1"] * 8}, InvalidParams, "'state' is a list"),
        ({"state": [10**400] * 8}, InvalidParams, "an integer that no float can represent"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    state: dict[str, object], error: type[RequestError], message: str
) -> None:
    with pytest.raises(error) as raised:
        adapter().observation(replace(LIBERO, state=state))
    assert message in str(raised.value)


def test_text_of_a_peer_is_bounded_in_messages() -> None:
    with pytest.raises(InvalidParams) as raised:
        adapter().observation(replace(LIBERO, images={"\x1b" + "x" * 100_000: FRONT}))
    assert len(str(raised.value)) < 1200
    assert str(raised.value).isprintable()


def test_a_declared_layout_that_differs_is_refused_with_what_to_set() -> None:
    with pytest.raises(ConfigurationError) as raised:
        adapter(key_map="libero")
    assert "ee_pos(3) ee_axisangle(3) gripper_qpos(2)" in str(raised.value)
    assert "'state_layout: joint_pos(7) gripper_open(1)'" in str(raised.value)


def test_droids_gripper_is_turned_round_both_ways() -> None:
    spec = replace(LIFT, camera_names=("exterior_image_1_left", "wrist_image_left"))
    named = NamedObservation(
        {"observation/exterior_image_1_left": FRONT, "observation/wrist_image_left": WRIST},
        {"observation/joint_position": STATE[:7], "observation/gripper_position": np.array([0.25])},
    )
    droid = adapter(spec, "droid")
    state = droid.observation(named).state
    assert state is not None
    np.testing.assert_array_equal(state, [*STATE[:7], 0.75])
    actions = droid.actions(np.full((2, 7), 0.25, np.float32))
    np.testing.assert_array_equal(actions, [[0.25] * 6 + [0.75]] * 2)
    assert actions.dtype == np.float32


def test_liberos_gripper_is_that_of_robosuite_and_said_in_the_description() -> None:
    libero = adapter()
    chunk = RNG.random((2, 4, 7)).astype(np.float32)
    converted = libero.actions(chunk)
    np.testing.assert_array_equal(converted[..., :6], chunk[..., :6])
    np.testing.assert_array_equal(converted[..., 6], 1 - 2 * chunk[..., 6])
    assert libero.describe()["action_gripper"] == "-1 open, 1 closed"


def test_actions_without_a_declared_layout_stay_as_they_are() -> None:
    chunk = np.ones((4, 7), np.float32)
    plain = adapter(replace(LIFT, action_layout=None))
    assert plain.actions(chunk) is chunk
    assert plain.describe()["action_gripper"] is None
    assert adapter(preset=None).actions(chunk) is chunk
    assert adapter(preset=None).describe()["action_gripper"] == "1 open, 0 closed"


def test_a_table_of_ones_own_is_used_and_nothing_else(tmp_path: Path) -> None:
    key_map = table(
        tmp_path,
        "front: image.agentview\nhand: image[1]\ndepth: ignore\nextra: ignore\n"
        "state[0:7]: arm[1:8]\nstate[7:8]: fingers\nresize: pad\naction_gripper: -1 open, 1 closed\n",
    )
    named = NamedObservation(
        {"front": np.repeat(np.repeat(FRONT, 2, 0), 2, 1), "hand": WRIST, "depth": FRONT},
        {"fingers": 7, "arm": np.arange(-1.0, 7), "extra": 5},
    )
    mine = adapter(key_map=key_map)
    obs = mine.observation(named)
    assert obs.image is not None
    np.testing.assert_array_equal(obs.image[1], WRIST.transpose(2, 0, 1))
    np.testing.assert_array_equal(obs.state, STATE)
    with pytest.raises(InvalidParams, match="'agentview' is unknown"):
        mine.observation(replace(named, images={"agentview": FRONT, "hand": WRIST}))


def test_a_table_can_begin_with_a_preset(tmp_path: Path) -> None:
    key_map = table(tmp_path, "preset: libero\nresize: pad\nstate: joints\n")
    big = np.zeros((60, 30, 3), np.uint8)
    named = replace(LIBERO, images={**LIBERO.images, "observation/image": big}, state={"joints": STATE})
    obs = adapter(key_map=key_map).observation(named)
    np.testing.assert_array_equal(obs.state, STATE)


def test_rotations_are_written_as_the_table_says(tmp_path: Path) -> None:
    key_map = table(
        tmp_path,
        "preset: libero\nstate: s\nstate_layout: ee_pos(3) ee_quat_xyzw(4)\naction_rotation: euler_xyz\n",
    )
    spec = replace(LIFT, state_dim=6, state_layout="ee_pos(3) ee_axisangle(3)")
    mine = adapter(spec, key_map)
    half = np.sqrt(0.5)
    state = mine.observation(replace(LIBERO, state={"s": [1, 2, 3, half, 0, 0, half]})).state
    np.testing.assert_allclose(state, [1, 2, 3, np.pi / 2, 0, 0], atol=1e-6)
    assert mine.describe()["action_layout"] == "dpos(3) deuler_xyz(3) gripper(1)"
    chunk = np.zeros((1, 7), np.float32)
    chunk[0, 3:6] = 0, 0.5, 0
    np.testing.assert_allclose(mine.actions(chunk), [[0, 0, 0, 0, 0.5, 0, 1]], atol=1e-6)


def test_a_policy_without_a_declaration_takes_what_comes() -> None:
    spec = PolicySpec(chunk_size=4)
    obs = adapter(spec, preset=None).observation(NamedObservation({"b": FRONT, "a": WRIST}, {"q": STATE}))
    assert obs.image is not None
    np.testing.assert_array_equal(obs.image[0], FRONT.transpose(2, 0, 1))
    assert adapter(spec).observation(NamedObservation()).image is None
    with pytest.raises(SpecMismatch, match="'a' is 5x8, another image is 6x8"):
        adapter(spec, preset=None).observation(NamedObservation({"b": FRONT, "a": WRIST[:5]}))


def test_a_policy_without_cameras_ignores_images() -> None:
    obs = adapter(replace(LIFT, camera_names=())).observation(LIBERO)
    assert obs.image is None


def test_a_camera_of_a_preset_that_the_policy_lacks_is_left_out() -> None:
    obs = adapter(replace(LIFT, camera_names=("agentview",))).observation(LIBERO)
    assert obs.image is not None
    np.testing.assert_array_equal(obs.image[0], FRONT.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "front: image.top",
            "has the camera 'top' for 'front', the policy has agentview, robot0_eye_in_hand",
        ),
        ("front: picture.agentview", "line 'front' is 'picture.agentview', expected image.CAMERA or ignore"),
        ("state[0:3]: a\nstate[4:8]: b", "the entries 3:4 of the state have no line"),
        ("state[0:3]: a\nstate[2:8]: b", "the entries 2:3 of the state have two lines"),
        ("state[0:3]: a\nstate[0:3]: b", "has 2 lines for 'state[0:3]'"),
        ("state[0:3]: a[0:4]", "takes 4 entries for 3 of the state"),
        ("state: a\nstate[0:3]: b", "has a line 'state' and lines of its entries"),
        ("resize: crop", "resize is 'crop', expected pad"),
        ("action_gripper: open", "write it as '-1 open, 1 closed'"),
        ("action_rotation: rpy", "action_rotation is 'rpy', expected axisangle or"),
        ("state_layout: seven joints", "expected words with lengths"),
        ("preset: libro", "Did you mean 'libero'?"),
        ("- a\n- b", "holds a list, expected lines"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_table_is_refused_at_the_start(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        adapter(key_map=table(tmp_path, text))
    assert message in str(raised.value)


def test_a_name_that_is_no_preset_and_no_file_is_refused_with_the_presets() -> None:
    with pytest.raises(ConfigurationError, match=r"Did you mean 'libero'.*Presets: libero, droid, aloha"):
        adapter(key_map="libro")


def test_conversions_that_a_policy_cannot_have_are_refused_at_the_start(tmp_path: Path) -> None:
    spec = replace(LIFT, action_layout=None)
    with pytest.raises(ConfigurationError, match="does not declare what its own are"):
        adapter(spec, table(tmp_path, "action_gripper: -1 open, 1 closed"))


def test_the_table_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "key_maps.md"
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    mine = adapter(key_map=table(tmp_path, shown))
    named = NamedObservation(
        {"observation/image": np.repeat(FRONT, 2, 0), "observation/wrist_image": WRIST},
        {
            "observation/joint_position": STATE[:7],
            "observation/gripper_position": 0.25,
            "observation/depth": 1,
        },
    )
    state = mine.observation(named).state
    assert state is not None
    np.testing.assert_array_equal(state, [*STATE[:7], 0.75])
    assert mine.describe()["action_layout"] == "dpos(3) deuler_xyz(3) gripper(1)"


# -- observations of a signature that was seen before --------------------------------------------------------


def same(a: NamedObservation, known: ObservationAdapter) -> None:
    """Compare a second reading with that of an adapter that sees its first observation."""
    known.request([a])
    first, again = adapter().request([a]), known.request([a])
    assert first.kind is None
    assert again.kind is not None
    for name, value in vars(first.observations[0]).items():
        other = getattr(again.observations[0], name)
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.strides) == (other.dtype, other.strides)
            assert value.tobytes() == other.tobytes()
        else:
            assert value == other


@pytest.mark.parametrize("chw", [False, True])
def test_a_second_observation_is_read_as_the_first_to_the_last_bit(chw: bool) -> None:
    images = {name: image.transpose(2, 0, 1) if chw else image for name, image in LIBERO.images.items()}
    known = adapter()
    same(replace(LIBERO, images=images), known)
    state = {name: np.asarray(value, np.float64) / 3 for name, value in LIBERO.state.items()}
    same(replace(LIBERO, images=images, state=state, instruction="another", timestep=7), known)


def test_a_second_observation_is_a_fresh_array() -> None:
    known = adapter()
    first, second, third = (known.request([LIBERO]).observations[0] for _ in range(3))
    for name in ("image", "state"):
        values = [getattr(obs, name) for obs in (first, second, third)]
        assert not any(np.shares_memory(*pair) for pair in zip(values, values[1:]))
        sources = (LIBERO.images if name == "image" else LIBERO.state).values()
        assert not any(np.shares_memory(values[2], np.asarray(source)) for source in sources)


def test_what_differs_from_a_known_observation_is_checked_again() -> None:
    known = adapter()
    for _ in range(2):
        known.request([LIBERO])
    name, image = next(iter(LIBERO.images.items()))
    for other in (image[:-1], image.astype(np.float32), image[..., :2], image.astype(np.int16)):
        with pytest.raises(RequestError):
            known.request([replace(LIBERO, images={**LIBERO.images, name: other})])
    part, values = next(iter(LIBERO.state.items()))
    for wrong in (np.zeros(len(values) + 1), values.astype(np.complex64), values[np.newaxis], "text"):
        with pytest.raises(RequestError):
            known.request([replace(LIBERO, state={**LIBERO.state, part: wrong})])


def test_a_number_that_is_not_finite_is_refused_whether_or_not_its_observation_is_known() -> None:
    known = adapter()
    part, values = next(iter(LIBERO.state.items()))
    broken = replace(LIBERO, state={**LIBERO.state, part: np.full_like(values, np.nan)})
    messages = []
    for _ in range(2):
        with pytest.raises(SpecMismatch) as caught:
            known.observation(broken)
        messages.append(str(caught.value))
        known.observation(LIBERO)
    assert messages[0] == messages[1]


def in_message(named: NamedObservation, skip: int) -> tuple[bytes, dict[str, ArrayPlace]]:
    """Return a message that has the arrays behind ``skip`` bytes each, and where they are."""
    message, places = b"", {}
    for name, value in {**named.images, **named.state}.items():
        array = np.ascontiguousarray(value)
        message += bytes(skip)
        places[name] = ArrayPlace(array.shape, array.dtype, len(message))
        message += array.tobytes()
    return message, places


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f8", "<f2"])
@pytest.mark.parametrize("chw", [False, True])
def test_a_message_of_a_known_form_is_read_as_its_observation(chw: bool, dtype: str) -> None:
    images = {name: image.transpose(2, 0, 1) if chw else image for name, image in LIBERO.images.items()}
    state = {name: (np.asarray(value) / 3).astype(dtype) for name, value in LIBERO.state.items()}
    first = replace(LIBERO, images=images, state=state, timestep=7, episode_seed=3)
    known = adapter()
    expected = [known.request([first]) for _ in range(2)][1]
    message, places = in_message(first, skip=3)
    reader = known.reader(replace(first, images={name: image * 0 for name, image in images.items()}), places)
    found = reader.request(message)
    assert (found.kind, found.method, found.batched) == (expected.kind, "infer", False)
    for name, value in vars(expected.observations[0]).items():
        other = getattr(found.observations[0], name)
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape, value.strides) == (other.dtype, other.shape, other.strides)
            assert value.tobytes() == other.tobytes()
            assert other.flags.writeable
        else:
            assert value == other
    assert not np.shares_memory(found.observations[0].image, reader.request(message).observations[0].image)


@pytest.mark.parametrize("chw", [False, True])
@pytest.mark.parametrize("cameras", [1, 2, 3])
def test_a_policy_that_takes_any_order_of_memory_gets_a_view_of_the_message(cameras: int, chw: bool) -> None:
    names = [f"camera{number}" for number in range(cameras)]
    images = {name: RNG.integers(0, 256, (3, 6, 8) if chw else (6, 8, 3)).astype(np.uint8) for name in names}
    named = NamedObservation(images, {"state": np.zeros(2, np.float32)})
    spec = PolicySpec(camera_names=tuple(names), state_dim=2)
    known = adapter(spec, preset=None, strided_images=True)
    first = known.request([named]).observations[0].image
    again = known.request([named]).observations[0].image
    message, places = in_message(named, skip=5)
    held = bytearray(message)
    found = known.reader(named, places).request(memoryview(held)).observations[0].image
    for image in (again, found):
        np.testing.assert_array_equal(image, first)
    assert first.flags.c_contiguous
    assert np.shares_memory(found, np.frombuffer(held, np.uint8))
    assert np.shares_memory(again, images["camera0"]) == (cameras == 1)


def test_a_policy_without_cameras_may_take_any_order_of_memory() -> None:
    known = adapter(PolicySpec(camera_names=(), state_dim=2), preset=None, strided_images=True)
    named = NamedObservation({}, {"state": np.ones(2, np.float32)})
    known.request([named])
    message, places = in_message(named, skip=1)
    (observation,) = known.reader(named, places).request(message).observations
    assert observation.image is None
    assert observation.state.tolist() == [1, 1]


def test_images_at_unequal_distances_or_of_two_orders_are_copied() -> None:
    names = ["a", "b", "c"]
    spec = PolicySpec(camera_names=tuple(names), state_dim=None)
    images = {name: FRONT for name in names}
    for order in ((0, 1, 5), (0, 7, 5)):
        named = NamedObservation(images, {})
        known = adapter(spec, preset=None, strided_images=True)
        expected = known.request([named]).observations[0].image
        held = bytearray(8 * FRONT.size)
        places = {}
        for name, place in zip(names, order):
            places[name] = ArrayPlace(FRONT.shape, FRONT.dtype, place * FRONT.size)
            held[place * FRONT.size : (place + 1) * FRONT.size] = FRONT.tobytes()
        found = known.reader(named, places).request(held).observations[0].image
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous
    named = NamedObservation({"a": FRONT, "b": FRONT.transpose(2, 0, 1)}, {})
    known = adapter(PolicySpec(camera_names=("a", "b"), state_dim=None), preset=None, strided_images=True)
    expected = known.request([named]).observations[0].image
    message, places = in_message(named, skip=0)
    found = known.reader(named, places).request(message).observations[0].image
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous


def test_the_memory_of_an_image_is_used_again_when_nobody_refers_to_it() -> None:
    known = adapter()
    known.request([LIBERO])
    message, places = in_message(LIBERO, skip=0)
    reader = known.reader(LIBERO, places)
    held = reader.request(message).observations[0].image[0, 1, :2]
    other = reader.request(message).observations[0].image
    assert not np.shares_memory(held, other)
    where = other.ctypes.data
    del other
    assert reader.request(message).observations[0].image.ctypes.data == where
    assert len(known.kept_images) == 1


def test_a_number_that_no_float32_can_hold_is_infinite_however_it_is_read() -> None:
    known = ObservationAdapter(PolicySpec(camera_names=(), state_dim=3), KeyMap("none"))
    named = NamedObservation({}, {"q": np.array([1e300, -1e300, 0.1])})
    with pytest.raises(SpecMismatch, match=r"^state\[0\] is inf, expected finite numbers$"):
        known.observation(named)
    known.observation(replace(named, state={"q": np.zeros(3)}))
    message, places = in_message(named, skip=1)
    (observation,) = known.reader(named, places).request(message).observations
    np.testing.assert_array_equal(observation.state, np.array([np.inf, -np.inf, 0.1], np.float32))


def test_an_observation_that_was_not_read_before_has_no_reader() -> None:
    with pytest.raises(ValueError, match=r"^the values decide how the observation is read$"):
        adapter().reader(LIBERO, {})


def test_names_that_a_client_invents_are_not_remembered_without_end() -> None:
    known = ObservationAdapter(PolicySpec(camera_names=None, state_dim=None), KeyMap("none"))
    for number in range(200):
        known.request([NamedObservation({f"camera{number}": FRONT})])
    assert len(known._plans) == 64
    known = ObservationAdapter(PolicySpec(camera_names=None, state_dim=None), KeyMap("none"))
    known.request([NamedObservation({"camera" * 1000: FRONT})])
    assert not known._plans


def test_a_batch_has_a_kind_where_all_rows_were_seen_before() -> None:
    known = adapter()
    assert known.request([LIBERO, LIBERO]).kind is None
    assert known.request([LIBERO, LIBERO], batched=True).kind is not None
    images = {name: image.astype(np.float32) / 255 for name, image in LIBERO.images.items()}
    assert known.request([LIBERO, replace(LIBERO, images=images)]).kind is None
