"""What each request means, and what is said about one that means nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robowire.errors import InternalError, InvalidParams, RequestError, TaskNotFound, UnknownMethod
from robowire.meta import MetaAction, MetaObs
from robowire.wire.messages import (
    Call,
    Infer,
    Reset,
    error_reply,
    ok,
    parse_call,
    parse_policy_request,
    raise_for_status,
)

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def batch(**fields: Any) -> MetaObs:
    return MetaObs(**{"state": np.zeros((2, 3)), "timestep": np.array([[4], [5]]), **fields})


def observations(value: Any, camera_names: tuple[str, ...] | None = None) -> tuple[MetaObs, ...]:
    request = parse_policy_request(value, camera_names)
    assert isinstance(request, Infer)
    return request.observations


def dialect(value: Any) -> str:
    request = parse_policy_request(value)
    assert isinstance(request, Infer)
    return request.dialect


def test_reset_is_one_word() -> None:
    assert parse_policy_request("RESET") == Reset()


def test_a_dict_with_a_method_is_a_call() -> None:
    assert parse_policy_request({"method": "hello", "reply": "chunk"}) == Call("hello", {"reply": "chunk"})


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
    assert dialect(value) == "batch"
    assert (second.raw_lang, second.timestep) == ("stack", 5)
    assert first.state.shape == (3,)
    np.testing.assert_array_equal(second.image, value.image[1])


@pytest.mark.parametrize("raw_lang", ["lift", ["lift", "lift"], np.array(["lift", "lift"])])
def test_instructions_of_a_batch_come_as_one_or_as_many(raw_lang: Any) -> None:
    assert [obs.raw_lang for obs in observations(batch(raw_lang=raw_lang))] == ["lift", "lift"]


def test_a_batch_of_one_is_still_a_batch() -> None:
    value = MetaObs(state=np.zeros((1, 3)), timestep=np.array([[4]]))
    assert dialect(value) == "batch"
    assert len(observations(value)) == 1


def test_images_alone_make_a_batch_by_their_five_axes() -> None:
    assert len(observations(MetaObs(image=np.zeros((3, 1, 3, 2, 2), np.uint8), timestep=0))) == 3


def test_the_act_dialect_becomes_a_meta_obs() -> None:
    value = {"qpos": [1, 2.5], "images": {"wrist": IMAGE, "top": IMAGE + 1}}
    (obs,) = observations(value, ("top", "wrist"))
    assert dialect(value) == "act"
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
            batch(image=np.zeros((3, 1, 3, 2, 2))),
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
            "the image of camera 'top' is a float64 array of shape (2, 4, 3), expected (H, W, 3) uint8",
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
        parse_policy_request(value)
    assert str(raised.value) == message


def test_a_missing_camera_is_named() -> None:
    with pytest.raises(InvalidParams) as raised:
        parse_policy_request({"qpos": np.zeros(2), "images": {"front": IMAGE}}, ("top",))
    assert (
        str(raised.value) == "no image of camera 'top': the policy needs ['top'], the request has ['front']"
    )


def test_the_simulator_port_takes_calls_only() -> None:
    assert parse_call({"method": "reset", "seed": 1}) == Call("reset", {"seed": 1})
    with pytest.raises(InvalidParams, match=r"^a request is a dict with a 'method', not a MetaObs$"):
        parse_call(MetaObs())


def test_an_error_crosses_the_wire_as_itself() -> None:
    reply = error_reply(TaskNotFound("no task is called 'Lfit'"))
    assert reply == {"status": "error", "error_type": "task_not_found", "message": "no task is called 'Lfit'"}
    with pytest.raises(TaskNotFound, match=r"^no task is called 'Lfit'$"):
        raise_for_status(reply)


def test_an_error_type_of_a_newer_server_is_kept() -> None:
    with pytest.raises(RequestError, match=r"^too hot$") as raised:
        raise_for_status({"status": "error", "error_type": "overheated", "message": "too hot"})
    assert (type(raised.value), raised.value.error_type) == (RequestError, "overheated")


@pytest.mark.parametrize("reply", [ok(session=1), {"status": "OK"}])
def test_a_reply_that_says_ok_is_returned(reply: dict[str, Any]) -> None:
    assert raise_for_status(reply) is reply


@pytest.mark.parametrize(("reply", "what"), [([], "a list"), ({"state": 1}, "a dict")])
def test_a_reply_without_a_status_is_the_servers_bug(reply: Any, what: str) -> None:
    with pytest.raises(InternalError) as raised:
        raise_for_status(reply)
    assert str(raised.value) == f"the reply is {what}, not a dict with a 'status'"


def test_the_error_of_an_old_dialect_is_raised() -> None:
    with pytest.raises(InternalError, match=r"^out of memory$"):
        raise_for_status({"status": "ERROR", "message": "out of memory"})


def test_every_error_type_is_its_class() -> None:
    assert isinstance(raise_and_catch(UnknownMethod("x")), UnknownMethod)


def raise_and_catch(error: RequestError) -> RequestError:
    with pytest.raises(RequestError) as raised:
        raise_for_status(error_reply(error))
    return raised.value
