"""Bodies of VLAStudio's wire: golden bytes, both directions, and bodies that lie."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RemoteProtocolError
from robowire.frontends.vlastudio.codec import encode_call, encode_chunk, read_actions, read_call
from robowire.meta import MetaObs
from robowire.wire.codecs import PolicyCodec
from robowire.wire.messages import Request

# As vlastudio 0.2.2's client sends it: MetaObs(state=[0.5, 1], timestep=[[3]]).
GOLDEN_CALL = (
    b'{"meta_obs": {"state": {"__type__": "ndarray", "dtype": "float32", "shape": [2], '
    b'"data": "AAAAPwAAgD8="}, '
    b'"state_ee": null, "state_joint": null, "state_obj": null, "image": null, "depth": null, "pc": null, '
    b'"raw_lang": "lift", "timestep": {"__type__": "ndarray", "dtype": "int64", "shape": [1, 1], '
    b'"data": "AwAAAAAAAAA="}}, "client_id": "robot", "episode_id": 7, "__index__": 1, '
    b'"reasoning": {"why": []}}'
)


def read(body: bytes, *, max_rows: int = 8, max_bytes: int = 1 << 20) -> Request:
    return read_call(body).request(PolicyCodec(max_rows=max_rows), max_bytes=max_bytes)


def body(**observation: Any) -> bytes:
    return json.dumps({"meta_obs": observation}).encode()


def array(dtype: str = "float32", shape: Any = (2,), data: bytes | str = b"\0" * 8) -> dict[str, Any]:
    text = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"__type__": "ndarray", "dtype": dtype, "shape": shape, "data": text}


def jpeg(shape: Any = (1, 3, 8, 16), **changes: Any) -> dict[str, Any]:
    image = np.zeros((1, 3, 8, 16), np.uint8)
    encoded = json.loads(encode_call(MetaObs(image=image), jpeg_quality=85))["meta_obs"]["image"]
    return {**encoded, "shape": shape, **changes}


def test_a_call_is_read_as_the_client_writes_it() -> None:
    call = read_call(GOLDEN_CALL)
    assert (call.client, call.episode, call.timestep) == ("robot", "int 7", None)
    request = call.request(PolicyCodec(), max_bytes=0)
    (observation,) = request.observations
    assert request.method == "infer"
    assert not request.batched
    assert observation.state.tolist() == [0.5, 1.0]
    assert observation.state.dtype == np.float32
    assert observation.state.flags.writeable
    assert (observation.raw_lang, observation.timestep) == ("lift", 3)


def test_a_reply_is_what_the_client_reads() -> None:
    chunk = ActionChunk(np.float32([[0.5, 1]]), "joint", "absolute")
    assert json.loads(encode_chunk(chunk)) == {
        "mact_list": [
            [
                {
                    "ctrl_space": "joint",
                    "ctrl_type": "abs",
                    "action": {
                        "__type__": "ndarray",
                        "dtype": "float32",
                        "shape": [2],
                        "data": "AAAAPwAAgD8=",
                    },
                    "gripper_continuous": False,
                }
            ]
        ]
    }


def test_calls_and_replies_go_round() -> None:
    observation = MetaObs(
        state=np.arange(3, dtype=">f8"), image=np.arange(96, dtype=np.uint8).reshape(1, 3, 4, 8), timestep=2
    )
    (again,) = read(encode_call(observation, client="a", episode="b")).observations
    assert np.array_equal(again.state, observation.state)
    assert again.state.dtype == np.dtype("<f8")
    assert np.array_equal(again.image, observation.image)
    assert again.timestep == 2
    actions = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    steps = read_actions(encode_chunk(ActionChunk(actions, "ee", "delta")))
    assert np.array_equal([[row.action for row in step] for step in steps], actions)
    with pytest.raises(RemoteProtocolError):
        read_actions(b'{"mact_list": [[{}]]}')


def test_jpeg_keeps_the_shape_and_nearly_the_pixels() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (2, 3, 48, 64))
    (again,) = read(encode_call(MetaObs(image=ramp), jpeg_quality=95)).observations
    assert again.image.shape == ramp.shape
    assert np.abs(again.image.astype(int) - ramp).max() < 16


@pytest.mark.parametrize(
    ("state", "image", "rows"),
    [
        ((2,), (3, 3, 4, 4), [((2,), (3, 3, 4, 4))]),
        ((1, 2), (3, 3, 4, 4), [((2,), (3, 3, 4, 4))]),  # the client's images never have a batch axis
        ((2, 2), (2, 3, 4, 4), [((2,), (1, 3, 4, 4))] * 2),  # one camera for each row
        ((2, 2), (2, 3, 3, 4, 4), [((2,), (3, 3, 4, 4))] * 2),
    ],
)
def test_images_get_the_batch_axis_of_the_state(state: Any, image: Any, rows: Any) -> None:
    request = read(encode_call(MetaObs(state=np.zeros(state), image=np.zeros(image, np.uint8))))
    assert [(row.state.shape, row.image.shape) for row in request.observations] == rows
    assert request.batched == (len(state) == 2)


@pytest.mark.parametrize("timestamp", [4, 4.0])
def test_a_timestamp_replaces_the_timestep(timestamp: float) -> None:
    call = read_call(json.dumps({"meta_obs": {"timestep": 1}, "timestamp": timestamp}).encode())
    assert call.request(PolicyCodec(), max_bytes=0).observations[0].timestep == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (b"", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "more than 32768 lists and objects"),
        (b"[" * 30_000, "the body is not JSON"),
        (b'{"meta_obs": ' + b'{"a":' * 10_000, "the body is not JSON"),
        (b"[" + b"0," * 70_000 + b"0]", "more than 65536 entries"),
        (b"[1" + b"0" * 5000 + b"]", "the body is not JSON"),
        (b"[]", "an object with 'meta_obs'"),
        (b'{"meta_obs": []}', "an object with 'meta_obs'"),
        (b'{"meta_obs": {}, "client_id": ["a"]}', "client_id is ['a'], expected text of at most 200"),
        (b'{"meta_obs": {}, "client_id": "' + b"a" * 201 + b'"}', "expected text of at most 200 characters"),
        (b'{"meta_obs": {}, "episode_id": 1' + b"0" * 30 + b"}", "episode_id is 1000"),
        (b'{"meta_obs": {}, "timestamp": 1.5}', "timestamp is 1.5, expected the number of the step"),
        (b'{"meta_obs": {}, "timestamp": NaN}', "timestamp is nan, expected the number of the step"),
        (b'{"meta_obs": {}, "timestamp": true}', "timestamp is True"),
        (body(state=[1, 2]), "state is a list, expected an array of numbers or None"),
        (body(state="1"), "state is a str"),
        (body(state={"__type__": "object"}), "state is {'__type__': 'object'}, expected an array"),
        (body(state=array("object")), "state: dtype is 'object', expected numbers"),
        (body(state=array("V8")), "state: dtype is 'V8'"),
        (body(state=array("f4,f4")), "state: dtype is 'f4,f4'"),
        (body(state=array(("f4", 2))), "state: dtype is ['f4', 2]"),
        (body(state=array(shape=(3,))), "state: 8 bytes are not float32 of shape (3,)"),
        (body(state=array(shape=(10**12,))), "state: 8 bytes are not float32"),
        (body(state=array(shape=[10**9] * 100)), "shape': list of at most 8 sizes"),
        (body(state=array(shape=(-2, -1))), "shape': list of at most 8 sizes"),
        (body(state=array(shape="2")), "shape': list of at most 8 sizes"),
        (body(state=array(data="?")), "state: data is '?', which is not Base64"),
        (body(state=array(data="é")), "which is not Base64"),
        (body(state={"__type__": "ndarray", "dtype": "f4"}), "state has no 'shape'"),
        (body(state=array(shape=(0, 2), data=b"")), "the batch is empty"),
        (body(state=array("uint8", (9, 1), b"\0" * 9)), "the batch has 9 rows, expected at most 8"),
        (body(state=array("uint8", (10**7, 0), b"")), "the batch has 10000000 rows, expected at most 8"),
        (body(state=jpeg()), "state is {"),  # only images are JPEG
        (body(image=jpeg(shape=(1, 8, 16, 3))), "expected [cameras, 3, height, width]"),
        (body(image=jpeg(shape=(1, 3, 10**6, 16))), "expected [cameras, 3, height, width]"),
        (body(image=jpeg(shape=(1, 3, 8.0, 16))), "expected [cameras, 3, height, width]"),
        (body(image=jpeg(shape=(2, 3, 8, 16))), "image has 1 frames for 2 cameras"),
        (body(image=jpeg(frames=None)), "image has no frames for 1 cameras"),
        (body(image=jpeg(frames=[1])), "data is 1, expected Base64"),
        (body(image=jpeg(frames=["AAAA"])), "an image cannot be decoded"),
        (body(image=jpeg(shape=(1, 3, 4096, 4096))), "announce 50331648 bytes, this server accepts 1048576"),
        (body(image=jpeg(shape=(1, 3, 16, 16))), "an image is (8, 16, 3), expected (16, 16, 3)"),
    ],
)
def test_a_body_that_lies_is_refused(wrong: bytes, told: str) -> None:
    with pytest.raises(InvalidParams, match=r"(?s)^.{1,500}$") as refused:
        read(wrong)
    assert told in str(refused.value)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    file = base64.b64decode(jpeg()["frames"][0])
    scan = file.index(b"\xff\xda")
    bomb = file[:scan] + b"\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0" * 100 + file[scan:]
    with pytest.raises(InvalidParams, match="a JPEG has more than 64 scans"):
        read(body(image=jpeg(frames=[base64.b64encode(bomb).decode()])))


def test_a_file_that_announces_more_pixels_than_its_request_is_not_decoded() -> None:
    """A JPEG of 631 bytes that says it is 65500 x 65500."""
    file = bytearray(base64.b64decode(jpeg()["frames"][0]))
    start = file.index(b"\xff\xc0") + 5
    file[start : start + 4] = b"\xff\xdc\xff\xdc"
    wrong = body(image=jpeg(frames=[base64.b64encode(bytes(file)).decode()]))
    tracemalloc.start()
    with pytest.raises(InvalidParams, match="an image"):
        read(wrong)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
