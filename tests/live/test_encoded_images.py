"""Images sent as JPEG or PNG, or in the policy's size, on a real server; hostile ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image
from raw_client import RawClient

from robowire.client.policy_client import PolicyClient
from robowire.errors import ConfigurationError
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.specs import PolicySpec
from robowire.testing import running_server
from robowire.wire.packed import Layout, LayoutField

SPEC = PolicySpec(
    policy="seeing",
    camera_names=("front", "wrist"),
    image_height=48,
    image_width=64,
    state_dim=7,
    action_dim=7,
    chunk_size=5,
)
Y, X = np.mgrid[:96, :128]
LARGE = np.stack([X * 2, Y * 2, X + Y]).astype(np.uint8)[np.newaxis].repeat(2, axis=0)
IMAGE = np.ascontiguousarray(LARGE[:, :, ::2, ::2])
STATE = np.zeros(7, np.float32)


class SeeingPolicy:
    """Keeps the images that it was given."""

    def __init__(self, spec: PolicySpec = SPEC) -> None:
        self.spec = spec
        self.seen: list[np.ndarray] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.seen.extend(obs.image for obs in observations if obs.image is not None)
        return np.zeros((len(observations), 5, 7), np.float32)


@pytest.fixture
def policy() -> SeeingPolicy:
    return SeeingPolicy()


@pytest.fixture
def server(policy: SeeingPolicy) -> Iterator[PolicyServer]:
    with running_server(policy) as running:
        yield running


@pytest.mark.parametrize(("encoding", "error"), [("jpeg", 8), ("png", 0)])
@pytest.mark.parametrize("rows", [None, 3])
def test_the_policy_sees_the_images(
    server: PolicyServer, policy: SeeingPolicy, encoding: str, error: int, rows: int | None
) -> None:
    obs = MetaObs(image=IMAGE, state=STATE)
    if rows is not None:
        obs = MetaObs(image=np.stack([IMAGE] * rows), state=np.stack([STATE] * rows))
    with PolicyClient(*server.address, image_encoding=encoding) as client:
        for _ in range(2):
            client.infer(obs)
    assert len(policy.seen) == 2 * (rows or 1)
    for seen in policy.seen:
        assert (seen.shape, seen.dtype) == (IMAGE.shape, np.uint8)
        assert seen.flags.c_contiguous
        assert np.abs(seen.astype(int) - IMAGE).max() <= error


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_images_are_sent_in_the_size_of_the_policy(
    server: PolicyServer, policy: SeeingPolicy, encoding: str
) -> None:
    with PolicyClient(*server.address, image_encoding=encoding, resize=True) as client:
        client.infer(MetaObs(image=LARGE, state=STATE))
    expected = [
        np.asarray(Image.fromarray(view.transpose(1, 2, 0)).resize((64, 48), Image.Resampling.BILINEAR))
        for view in LARGE
    ]
    np.testing.assert_array_equal(policy.seen[0], np.stack(expected).transpose(0, 3, 1, 2))


def test_a_server_that_names_no_encoding_or_size_is_refused() -> None:
    with running_server(SeeingPolicy(PolicySpec(policy="any", action_dim=7, chunk_size=5))) as server:
        with pytest.raises(ConfigurationError, match="does not say which size"):
            PolicyClient(*server.address, resize=True).connect()
        client = PolicyClient(*server.address, image_encoding="jpeg")
        with pytest.raises(ConfigurationError, match="does not decode jpeg"):
            client._images.require_server({"version": "0.1"}, "robot:5000")


def encoded(size: tuple[int, int] = (64, 48), mode: str = "RGB", form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def bomb() -> bytes:
    """Return a PNG of a few bytes that says it has 60000 by 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def turned() -> bytes:
    """Return a JPEG of 64 by 48 whose EXIF says that it is to be turned."""
    image = Image.new("RGB", (64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


LAYOUT = Layout(0, [LayoutField("state", "<f4", (7,)), LayoutField("image", "png", IMAGE.shape)])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "cannot be decoded"),
        (b"\x80\x04K\x01.", "cannot be decoded"),
        (encoded()[:60], "cannot be decoded"),
        (encoded(form="JPEG"), "cannot be decoded"),
        (encoded((65, 48)), "expected"),
        (encoded(mode="RGBA"), "expected"),
        (encoded(mode="L"), "expected"),
        (bomb(), "image 1 of 2"),
    ],
    ids=["empty", "pickle", "truncated", "another encoding", "wider", "alpha", "gray", "bomb"],
)
def test_a_file_that_is_no_such_image_is_refused(
    server: PolicyServer, policy: SeeingPolicy, file: bytes, message: str
) -> None:
    with RawClient(server.address) as raw:
        raw.hello(reply="chunk", packed=1)
        assert raw.ask({"method": "layout", **LAYOUT.to_wire()})["status"] == "ok"
        raw.sock.sendall(b"".join(LAYOUT.request_frame({"state": STATE, "image": [encoded(), file]})))
        reply = raw.receive()
        assert reply["error_type"] == "invalid_params", reply
        assert message in reply["message"]
        assert raw.ask({"method": "ping"})["status"] == "ok"
    assert not policy.seen


def test_exif_does_not_turn_an_image(server: PolicyServer, policy: SeeingPolicy) -> None:
    layout = Layout(0, [LayoutField("state", "<f4", (7,)), LayoutField("image", "jpeg", IMAGE.shape)])
    with RawClient(server.address) as raw:
        raw.hello(reply="chunk", packed=1)
        raw.ask({"method": "layout", **layout.to_wire()})
        raw.sock.sendall(b"".join(layout.request_frame({"state": STATE, "image": [turned()] * 2})))
        raw.sock.recv(4)
    assert policy.seen[0].shape == IMAGE.shape


@pytest.mark.parametrize(
    ("name", "shape", "error_type"),
    [
        ("image", [2, 3, 60000, 60000], "invalid_params"),
        ("image", [2, 3, 49, 64], "spec_mismatch"),
        ("depth", [2, 3, 48, 64], "invalid_params"),
    ],
)
def test_sizes_are_refused_when_they_are_declared(
    server: PolicyServer, name: str, shape: list[int], error_type: str
) -> None:
    with RawClient(server.address) as raw:
        raw.hello(reply="chunk", packed=1)
        fields = [["state", "<f4", [7]], [name, "jpeg", shape]]
        assert raw.ask({"method": "layout", "layout": 0, "fields": fields})["error_type"] == error_type
