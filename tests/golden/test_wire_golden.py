"""The bytes of protocol version 1: what other programs send, and what we send, to the byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_values import FOLDER, same, values

from robowire.chunking import ActionChunk
from robowire.errors import UnknownMethod
from robowire.meta import MetaAction, MetaObs
from robowire.wire.auth import client_proof, server_proof
from robowire.wire.framing import FrameDecoder, frame_header
from robowire.wire.messages import error_reply, ok
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode, encode_frame

VALUES = values(MetaObs, MetaAction)
CHUNK = np.arange(9, dtype=np.float32).reshape(3, 3)
BATCH = np.arange(12, dtype=np.float32).reshape(2, 2, 3)

HELLO = {"method": "hello", "protocol_version": 1, "client": "robowire 0.1.0", "reply": "chunk"}
NONCES = bytes(range(32)), bytes(range(32, 64))

# What goes into ``encode`` for each file that it wrote.
ENCODED: dict[str, Any] = {
    **VALUES,
    "reset": "RESET",
    "hello": HELLO,
    # The token is "sesame".
    "hello_challenge": {**HELLO, "challenge": bytes(range(32))},
    "challenge_reply": {"status": "challenge", "challenge": bytes(range(32, 64))},
    "hello_response": {**HELLO, "response": client_proof("sesame", *NONCES)},
    "proof_reply": ok(
        protocol_version=1,
        version="0.1.0",
        server="policy",
        session=1,
        proof=server_proof("sesame", *NONCES),
    ),
    "error_reply": error_reply(UnknownMethod("no method is called 'pnig'. Did you mean 'ping'?")),
    "chunk_reply": ok(actions=CHUNK, ctrl_space="joint", ctrl_type="absolute", timestep=7, infer_ms=1.5),
    "list_reply": ActionChunk(CHUNK, "joint", "absolute"),
    "list_reply_of_one_number": ActionChunk(CHUNK[:, :1], "joint", "absolute"),
    "list_reply_batch": ActionChunk(BATCH, "joint", "absolute"),
}

PICKLES = sorted(path.name for path in FOLDER.glob("*_protocol*.bin"))
FILES = sorted(path.name for path in FOLDER.glob("*.bin"))


def encoded(name: str) -> bytes:
    return b"".join(encode(ENCODED[name]))


def test_the_files_are_all_there() -> None:
    assert len(PICKLES) == 36
    assert set(FILES) - set(PICKLES) == {f"{name}_encoded.bin" for name in ENCODED}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_old_and_new_pythons_and_numpys_are_read(name: str) -> None:
    assert same(loads((FOLDER / name).read_bytes()), VALUES[name.split("_protocol")[0]])


@pytest.mark.parametrize("name", ENCODED)
def test_encode_still_writes_exactly_these_bytes(name: str) -> None:
    assert encoded(name) == (FOLDER / f"{name}_encoded.bin").read_bytes()


@pytest.mark.parametrize("name", VALUES)
def test_what_encode_wrote_is_read(name: str) -> None:
    assert same(loads((FOLDER / f"{name}_encoded.bin").read_bytes()), VALUES[name])


@given(st.sampled_from(FILES), st.lists(st.integers(1, 400), max_size=12))
def test_any_cut_of_the_stream_gives_the_same_payload(name: str, cuts: list[int]) -> None:
    payload = (FOLDER / name).read_bytes()
    stream = memoryview(frame_header(len(payload)) + payload)
    decoder, sizes, event = FrameDecoder(), iter(cuts), None
    while stream:
        buffer = decoder.get_buffer()
        n = min(len(buffer), len(stream), next(sizes, len(stream)))
        buffer[:n], stream = stream[:n], stream[n:]
        event = decoder.buffer_updated(n)
    assert event == payload


def test_plain_pickle_reads_what_encode_wrote_without_a_warning() -> None:
    program = (
        "import pickle; from wire_values import *; from wire_values import _Obs, _Action\n"
        "become_a_third_party()\n"
        "for name, value in values(_Obs, _Action).items():\n"
        "    assert same(pickle.loads((FOLDER / f'{name}_encoded.bin').read_bytes()), value), name\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_list_reply_is_one_meta_action_a_step() -> None:
    actions = [MetaAction("joint", "absolute", row) for row in CHUNK]
    assert same(loads((FOLDER / "list_reply_encoded.bin").read_bytes()), actions)


def test_a_list_reply_of_one_number_holds_that_number() -> None:
    actions = [MetaAction("joint", "absolute", row[:1]) for row in CHUNK]
    assert same(loads((FOLDER / "list_reply_of_one_number_encoded.bin").read_bytes()), actions)


def test_a_batched_list_reply_is_one_object_array_of_dicts_a_step() -> None:
    steps = loads((FOLDER / "list_reply_batch_encoded.bin").read_bytes())
    assert [(step.shape, step.dtype) for step in steps] == [((2,), np.dtype(object))] * 2
    assert same(steps[1][0], vars(MetaAction("joint", "absolute", BATCH[1, 0])))


def test_a_frame_is_the_payload_behind_its_length() -> None:
    assert b"".join(encode_frame("RESET")) == b"\x00\x00\x00\x0b\x80\x05\x8c\x05RESET\x94."
