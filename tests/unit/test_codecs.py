"""What each payload of the policy port asks for, and what is said about one that asks for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams
from robowire.meta import MetaAction, MetaObs
from robowire.wire.codecs import PolicyCodec
from robowire.wire.messages import Request
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.templates import TemplateReader
from robowire.wire.pickle.writer import encode

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


@dataclass
class Agreed:
    """A session, as far as a codec knows it."""

    said_hello: bool = False
    reply: str = "list"
    packed: bool = False
    layouts: dict[int, Any] = field(default_factory=dict)
    reader: TemplateReader = field(default_factory=TemplateReader)


def batch(**fields: Any) -> MetaObs:
    return MetaObs(**{"state": np.zeros((2, 3)), "timestep": np.array([[4], [5]]), **fields})


def read(value: Any, camera_names: tuple[str, ...] | None = None, max_rows: int = 256) -> Request:
    """Return the request in a payload, after its way over the wire."""
    payload = bytearray(b"".join(encode(value)))
    return PolicyCodec(camera_names, max_rows=max_rows).exchange(payload, Agreed()).read()


def observations(value: Any, camera_names: tuple[str, ...] | None = None) -> tuple[MetaObs, ...]:
    request = read(value, camera_names)
    assert request.method == "infer"
    return request.observations


def test_reset_is_one_word() -> None:
    assert read("RESET") == Request("reset")


def test_a_dict_with_a_method_is_a_call() -> None:
    assert read({"method": "hello", "reply": "chunk"}) == Request("hello", {"reply": "chunk"})


def test_a_meta_obs_is_one_observation() -> None:
    (obs,) = observations(MetaObs(state=np.zeros(3), raw_lang="lift", timestep=np.int64(4)))
    assert (obs.raw_lang, obs.timestep, type(obs.timestep)) == ("lift", 4, int)


@pytest.mark.parametrize("timestep", [4, np.array([4]), np.array([[4]]), np.array(4)])
def test_a_timestep_does_not_make_a_batch(timestep: Any) -> None:
    (obs,) = observations(MetaObs(state=np.zeros(3), timestep=timestep))
    assert obs.timestep == 4


def test_the_request_itself_is_left_as_it_was() -> None:
    value = MetaObs(state=np.zeros(3), timestep=np.array([[4]]))
    observations(value)
    assert value.timestep.shape == (1, 1)


def test_a_leading_axis_makes_a_batch_of_rows() -> None:
    value = batch(image=np.arange(96, dtype=np.uint8).reshape(2, 2, 3, 2, 4), raw_lang=["lift", "stack"])
    first, second = observations(value)
    assert read(value).batched
    assert (second.raw_lang, second.timestep) == ("stack", 5)
    assert first.state.shape == (3,)
    np.testing.assert_array_equal(second.image, value.image[1])


@pytest.mark.parametrize("raw_lang", ["lift", ["lift", "lift"], np.array(["lift", "lift"])])
def test_instructions_of_a_batch_come_as_one_or_as_many(raw_lang: Any) -> None:
    assert [obs.raw_lang for obs in observations(batch(raw_lang=raw_lang))] == ["lift", "lift"]


def test_a_batch_of_one_is_still_a_batch() -> None:
    value = MetaObs(state=np.zeros((1, 3)), timestep=np.array([[4]]))
    assert read(value).batched
    assert len(observations(value)) == 1


def test_images_alone_make_a_batch_by_their_five_axes() -> None:
    assert len(observations(MetaObs(image=np.zeros((3, 1, 3, 2, 2), np.uint8), timestep=0))) == 3


def test_the_act_dialect_becomes_a_meta_obs() -> None:
    value = {"qpos": [1, 2.5], "images": {"wrist": IMAGE, "top": IMAGE + 1}}
    (obs,) = observations(value, ("top", "wrist"))
    assert not read(value).batched
    assert obs.state.dtype == np.float32
    assert obs.state.tolist() == [1, 2.5]
    assert obs.image.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(obs.image[0], (IMAGE + 1).transpose(2, 0, 1))
    assert (obs.raw_lang, obs.timestep) == ("", -1)


def test_cameras_of_the_act_dialect_keep_their_order_where_the_policy_accepts_any() -> None:
    (obs,) = observations({"qpos": np.zeros(2), "images": {"b": IMAGE + 1, "a": IMAGE}})
    np.testing.assert_array_equal(obs.image[0], (IMAGE + 1).transpose(2, 0, 1))


def test_the_act_dialect_may_say_more() -> None:
    value = {"qpos": np.zeros(2), "raw_lang": "lift", "timestep": 3}
    (obs,) = observations(value)
    assert (obs.image, obs.raw_lang, obs.timestep) == (None, "lift", 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            42,
            "a int is no request: send a MetaObs, a dict with 'qpos' and 'images', 'RESET', "
            "or a dict with 'method'",
        ),
        (
            "reset",
            "a str is no request: send a MetaObs, a dict with 'qpos' and 'images', 'RESET', "
            "or a dict with 'method'",
        ),
        (
            MetaAction(),
            "a MetaAction is no request: send a MetaObs, a dict with 'qpos' and 'images', 'RESET', "
            "or a dict with 'method'",
        ),
        ({"method": 1}, "a request is a dict with a 'method', not a dict"),
        ({"method": "ping", 1: 2}, "the parameters of a request are named by text"),
        (MetaObs(state=[1.0]), "state is a list, expected an array of numbers or None"),
        (MetaObs(image="x"), "image is a str, expected an array of numbers or None"),
        (
            MetaObs(depth=np.array(["x"])),
            "depth is a <U1 array of shape (1,), expected an array of numbers or None",
        ),
        (MetaObs(timestep=1.5), "timestep is a float, expected an int or an int array (B, 1)"),
        (MetaObs(timestep=True), "timestep is a bool, expected an int or an int array (B, 1)"),
        (
            MetaObs(timestep=np.array([1, 2])),
            "timestep is a int64 array of shape (2,), expected an int or an int array (B, 1)",
        ),
        (MetaObs(raw_lang=3), "raw_lang is a int, expected text, or a text for each row of the batch"),
        (MetaObs(raw_lang=[3]), "raw_lang is a list, expected text, or a text for each row of the batch"),
        (batch(raw_lang=["x"]), "raw_lang has 1 entries for a batch of 2"),
        (batch(timestep=np.zeros((3, 1), int)), "timestep has 3 entries for a batch of 2"),
        (
            batch(image=np.zeros((3, 1, 3, 2, 2), np.uint8)),
            "image has shape (3, 1, 3, 2, 2), expected a leading axis of 2",
        ),
        (batch(pc=np.array(1.0)), "pc has shape (), expected a leading axis of 2"),
        (MetaObs(state=np.zeros((0, 3))), "the batch is empty"),
        ({"qpos": "x"}, "qpos is a str, expected (state_dim,) numbers"),
        ({"qpos": [[1.0]]}, "qpos is a list, expected (state_dim,) numbers"),
        (
            {"qpos": np.zeros((1, 2))},
            "qpos is a float64 array of shape (1, 2), expected (state_dim,) numbers",
        ),
        ({"qpos": np.array([1j])}, "qpos is a complex128 array of shape (1,), expected (state_dim,) numbers"),
        (
            {"qpos": np.zeros(2), "images": [IMAGE]},
            "images is a list, expected a dict of camera names to (H, W, 3) uint8",
        ),
        (
            {"qpos": np.zeros(2), "images": {"top": IMAGE.astype(float)}},
            "the image of camera 'top' is a float64 array of shape (2, 4, 3), expected uint8, "
            "0 to 255: a server with --float_images convert takes floats of 0 to 1",
        ),
        (
            {"qpos": np.zeros(2), "images": {"top": IMAGE, "wrist": IMAGE[:1]}},
            "the image of camera 'wrist' has shape (1, 4, 3), that of 'top' (2, 4, 3)",
        ),
        ({"qpos": np.zeros(2), "timestep": "x"}, "timestep is a str, expected an int or an int array (B, 1)"),
    ],
)
def test_a_request_that_means_nothing_is_told_why(value: Any, message: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        read(value)
    assert str(raised.value) == message


def test_a_missing_camera_is_named() -> None:
    with pytest.raises(InvalidParams) as raised:
        read({"qpos": np.zeros(2), "images": {"front": IMAGE}}, ("top",))
    assert (
        str(raised.value) == "no image of camera 'top': the policy needs ['top'], the request has ['front']"
    )


def test_a_batch_of_nothing_costs_nothing() -> None:
    # 4 million rows of no numbers weigh 300 bytes; they are refused before a row is made.
    value = MetaObs(state=np.zeros((4_000_000, 0)))
    with pytest.raises(
        InvalidParams, match=r"^the batch has 4000000 rows, expected at most 256: send several$"
    ):
        read(value)


def test_a_text_for_each_of_too_many_rows_is_refused_by_its_count() -> None:
    value = MetaObs(state=np.zeros((2, 3)), raw_lang=np.empty(100_000, "U1"))
    with pytest.raises(InvalidParams, match=r"^raw_lang has 100000 entries for a batch of 2$"):
        read(value)


def test_an_integer_that_no_float_represents_is_named() -> None:
    with pytest.raises(InvalidParams, match=r"^qpos holds an integer that no float can represent$"):
        read({"qpos": [10**400], "images": {}})


@pytest.mark.parametrize(
    ("value", "method"),
    [
        (MetaObs(), "infer"),
        ({"qpos": [1]}, "infer"),
        ("RESET", "reset"),
        ({"method": "ping"}, "ping"),
        ({"method": 3}, ""),
        ([1], ""),
    ],
)
def test_the_method_is_known_before_the_request_is_read(value: object, method: str) -> None:
    payload = bytearray(b"".join(encode(value)))
    assert PolicyCodec().exchange(payload, Agreed()).method == method


def test_a_number_that_float32_cannot_represent_becomes_infinite_without_a_warning() -> None:
    (observation,) = observations({"qpos": [1e300, 2.0], "images": {}})
    assert observation.state.tolist() == [np.inf, 2.0]


def test_images_of_the_act_dialect_lie_in_memory_as_those_of_a_meta_obs() -> None:
    (observation,) = observations({"qpos": [1.0], "images": {"top": IMAGE, "wrist": IMAGE[:, ::-1]}})
    assert observation.image.flags.c_contiguous
    np.testing.assert_array_equal(observation.image[1], IMAGE[:, ::-1].transpose(2, 0, 1))


def test_a_policy_that_takes_any_order_of_memory_gets_a_view_of_the_act_dialects_image() -> None:
    codec = PolicyCodec(strided_images=True)
    for images in ({"top": IMAGE}, {"top": IMAGE, "wrist": IMAGE[:, ::-1]}):
        payload = bytearray(b"".join(encode({"qpos": [1.0], "images": images})))
        (observation,) = codec.exchange(payload, Agreed()).read().observations
        assert observation.image.flags.c_contiguous == (len(images) == 2)
        expected = np.stack(list(images.values())).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(observation.image, expected)


# replies of clients that were written for other servers of this wire


ACTIONS = np.arange(6, dtype=np.float32).reshape(3, 2)


def reply(value: Any, agreed: Agreed | None = None, **options: Any) -> Any:
    """Return what the sender of a request reads, when it is answered by ACTIONS."""
    payload = value if isinstance(value, bytes) else b"".join(encode(value))
    exchange = PolicyCodec(**options).exchange(bytearray(payload), agreed or Agreed())
    batched = exchange.read().batched
    actions = np.stack([ACTIONS, ACTIONS], axis=1) if batched else ACTIONS
    _, *buffers = exchange.reply(ActionChunk(actions, "joint", "absolute"))
    return loads(b"".join(buffers))


# A MetaObs as VLAStudio pickles it: its package has no module benchmark.
VLASTUDIO = b"\x80\x04cvlastudio.benchmark.base\nMetaObs\n)\x81}\x8c\x08timestepK\x05sb."


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (MetaObs(state=np.zeros(3), timestep=7), None),
        (MetaObs(state=np.zeros(3)), None),
        (MetaObs(state=np.zeros(3), timestep=np.array([[7]])), 1),
        (VLASTUDIO, 1),
        (batch(), 2),
    ],
)
def test_clients_that_read_rows_get_object_arrays_of_dicts(value: Any, rows: int | None) -> None:
    steps = reply(value)
    assert len(steps) == 3
    if rows is None:
        assert all(isinstance(step, MetaAction) for step in steps)
        return
    assert [(step.dtype, step.shape) for step in steps] == [(np.dtype(object), (rows,))] * 3
    assert all(type(row) is dict and row["action"].shape == (2,) for step in steps for row in step)
    np.testing.assert_array_equal([step[0]["action"] for step in steps], ACTIONS)


@pytest.mark.parametrize(("said_hello", "name"), [(False, "abs"), (True, "absolute")])
def test_absolute_is_abs_to_a_client_without_hello(said_hello: bool, name: str) -> None:
    for value in (MetaObs(), {"qpos": [1.0]}):
        assert {step.ctrl_type for step in reply(value, Agreed(said_hello=said_hello))} == {name}


def test_the_act_dialect_may_be_answered_by_one_action() -> None:
    answer = reply({"qpos": [1.0]}, act_reply="action")
    assert (set(answer), answer["status"]) == ({"status", "action"}, "OK")
    np.testing.assert_array_equal(answer["action"], ACTIONS[0])
    assert len(reply(MetaObs(), act_reply="action")) == 3


FLOATS = np.linspace(0, 1, 24, dtype=np.float32).reshape(1, 3, 2, 4)


@pytest.mark.parametrize(
    "value",
    [
        MetaObs(image=FLOATS),
        batch(image=FLOATS[[0, 0]][:, None]),
        {"qpos": [1.0], "images": {"top": FLOATS[0]}},
    ],
)
def test_images_of_floats_are_refused_and_named(value: Any) -> None:
    with pytest.raises(InvalidParams, match=r"float32 array.*expected uint8.*--float_images convert takes"):
        read(value)


def test_images_of_floats_are_ignored_by_a_policy_without_cameras() -> None:
    (obs,) = observations(MetaObs(image=FLOATS), ())
    assert obs.image.dtype == np.float32


def test_images_of_floats_are_converted_where_the_server_says_so() -> None:
    expected = np.rint(FLOATS * 255).astype(np.uint8)

    def image(value: Any) -> np.ndarray:
        payload = bytearray(b"".join(encode(value)))
        codec = PolicyCodec(float_images="convert")
        return codec.exchange(payload, Agreed()).read().observations[0].image

    np.testing.assert_array_equal(image(MetaObs(image=FLOATS)), expected)
    camera = np.ascontiguousarray(FLOATS[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(image({"qpos": [1.0], "images": {"top": camera}}), expected)
    for wrong in (FLOATS * 255, FLOATS - 1, FLOATS * np.nan):
        with pytest.raises(
            InvalidParams, match=r"^image holds floats from .* to .*, and those that are conv"
        ):
            image(MetaObs(image=wrong))
