"""Whatever a payload holds: plain data comes out, or UnsafePayload, soon and in little memory."""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.errors import UnsafePayload
from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**500), 2**500)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.binary().map(bytearray)
)
keys = st.text() | st.integers(-(2**63), 2**63 - 1)
data = st.recursive(
    scalars,
    lambda children: st.lists(children) | st.lists(children).map(tuple) | st.dictionaries(keys, children),
    max_leaves=20,
)


NEW_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FROM_BUFFER = b"cnumpy.core.numeric\n_frombuffer\n"


def short_bytes(value: bytes) -> bytes:
    return b"C" + bytes([len(value)]) + value


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def dtype(spec: str) -> bytes:
    return b"cnumpy\ndtype\n" + text(spec) + b"\x89\x88\x87R"


def array(shape: bytes, dtype_opcodes: bytes, contents: bytes, *, fortran: bytes = b"\x89") -> bytes:
    """Return the opcodes of an array as protocol 4 spells it."""
    return NEW_ARRAY + b"(K\x01" + shape + dtype_opcodes + fortran + contents + b"tb"


def behind(prepared: bytes, opcodes: bytes) -> bytes:
    """Return opcodes that find what ``prepared`` pushed in the memo, and nowhere else.

    A field that MetaObs does not have takes it away.
    """
    return b"cbenchmark.base\nMetaObs\n)\x81}" + text("x") + b"(" + prepared + b"tsb" + opcodes + b"\x86"


@given(data)
def test_plain_data_comes_out_as_it_went_in(value: Any) -> None:
    assert loads(b"".join(encode(value))) == value


@given(data, st.integers(2, 5))
def test_what_any_pickler_wrote_is_read(value: Any, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol=protocol)) == value


@given(data)
def test_what_encode_wrote_any_unpickler_reads(value: Any) -> None:
    assert pickle.loads(b"".join(encode(value))) == value


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_data(garbage: bytes) -> None:
    with contextlib.suppress(UnsafePayload):
        repr(loads(b"\x80\x04" + garbage))


def test_a_payload_cut_off_anywhere_is_refused() -> None:
    payload = b"".join(encode(MetaObs(state=np.zeros(3), raw_lang="lift", timestep=1)))
    for length in range(len(payload)):
        with pytest.raises(UnsafePayload):
            loads(payload[:length])


def test_a_large_array_views_the_payload_and_is_writable() -> None:
    payload = bytearray(b"".join(encode(np.zeros((100, 200), np.uint8))))
    value = loads(payload)
    value[0, 0] = 7
    assert payload.count(7) == bytes(b"".join(encode(np.zeros((100, 200), np.uint8)))).count(7) + 1


@pytest.mark.parametrize("size", [3, 30_000])
def test_every_array_is_writable_and_aligned(size: int) -> None:
    for protocol in (2, 3, 4, 5):
        value = loads(pickle.dumps(["x", np.arange(size, dtype=np.float64)], protocol=protocol))[1]
        assert value.flags.writeable
        assert value.flags.aligned
        assert value[-1] == size - 1


def test_one_array_in_two_places_stays_one() -> None:
    shared = [np.arange(3)]
    first, second = loads(pickle.dumps([shared, shared]))
    assert first is second
    assert first[0].tolist() == [0, 1, 2]


def test_objects_in_an_array_may_be_lists_of_one_length() -> None:
    value = np.empty(2, dtype=object)
    value[0], value[1] = [1, 2], [3, 4]
    assert loads(pickle.dumps(value)).tolist() == [[1, 2], [3, 4]]


def test_records_take_known_fields_only() -> None:
    payload = (
        b"\x80\x04cbenchmark.base\nMetaAction\n)\x81}("
        + text("ctrl_space")
        + text("ee")
        + text("new")
        + b"Nub."
    )
    assert vars(loads(payload)) == vars(MetaAction())


def test_records_of_the_other_spelling_are_read() -> None:
    assert isinstance(loads(b"\x80\x04cvlastudio.benchmark.base\nMetaObs\n)\x81."), MetaObs)


TUPLES = b"K\x01\x85\x94" + b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(40))
LISTS = b"](K\x01e\x94" + b"".join(b"](h%ch%ce\x94" % (level, level) for level in range(40))
BLOB = b"B" + (20_000).to_bytes(4, "little") + bytes(20_000)
LONGS = b"".join(
    b"\x8a\x0a" + (number * (2**61 - 1)).to_bytes(10, "little") + b"N" for number in range(10, 30_000)
)

# Opcodes, without PROTO and STOP, and the reason of the refusal.
HOSTILE = {
    "os.system by GLOBAL": (
        b"cos\nsystem\n" + text("true") + b"\x85R",
        "payload names os.system, which is not data",
    ),
    "os.system by STACK_GLOBAL": (
        text("os") + text("system") + b"\x93" + text("true") + b"\x85R",
        "payload names os.system, which is not data",
    ),
    "os.system by STACK_GLOBAL through the memo": (
        text("system") + b"\x94" + text("os") + b"h\x00\x93\x86",
        "payload names os.system, which is not data",
    ),
    "os.system by INST": (
        b"(" + text("true") + b"ios\nsystem\n",
        "opcode 0x69 at offset 9 is not one of plain data",
    ),
    "os.system by OBJ": (
        b"(cnumpy\ndtype\n" + text("true") + b"o",
        "opcode 0x6f at offset 22 is not one of plain data",
    ),
    "an attribute of a good name": (
        text("numpy") + text("dtype.__class__") + b"\x93",
        "payload names numpy.dtype.__class__, which is not data",
    ),
    "a memo bomb": (b"Nr\xff\xff\xff\x7f", "opcode 0x72 at offset 3 is not one of plain data"),
    "deep lists": (b"]" * 1000 + b"a" * 999, "payload is nested deeper than 64"),
    "deep tuples": (b")" + b"\x85" * 5000, "payload is nested deeper than 64"),
    "a list that holds itself": (b"]\x94h\x00a", "payload is nested deeper than 64"),
    "a tuple of tuples as a key": (
        behind(TUPLES, b"}h\x28Ns"),
        "a key is a tuple, not text or an int of 64 bits",
    ),
    "ints of one hash as keys": (b"}(" + LONGS + b"u", "a key is a long int, not text or an int of 64 bits"),
    "floats as keys": (b"}G" + bytes(8) + b"Ns", "a key is a float, not text or an int of 64 bits"),
    "a thousand million laughs": (behind(LISTS, b"h\x28"), "payload unfolds to more than 1054432 bytes"),
    "laughs in an object array": (
        behind(LISTS, array(b"K\x02\x85", dtype("O"), b"](h\x27h\x28e")),
        "payload unfolds to more than 1055920 bytes",
    ),
    "laughs for a dtype": (
        behind(TUPLES, b"cnumpy\ndtype\nh\x28\x89\x88\x87R"),
        "dtype is given by a tuple, not text",
    ),
    "laughs for a shape": (
        behind(TUPLES, array(b"h\x28", dtype("f4"), short_bytes(b""))),
        "array's shape holds what is no size",
    ),
    "laughs for an order": (
        behind(TUPLES, FROM_BUFFER + b"(C\x00" + dtype("f4") + b"K\x00\x85" + text("K") + b"h\x28tR"),
        "array's order of axes holds what is no size",
    ),
    "a blob copied a thousand times": (
        behind(BLOB + b"\x94cbuiltins\nbytearray\n\x94", b"](" + b"h\x01h\x00\x85R" * 1000 + b"e"),
        "payload unfolds to more than 1465664 bytes",
    ),
    "a text encoded a thousand times": (
        behind(
            b"X"
            + (10_000).to_bytes(4, "little")
            + 10_000 * b"x"
            + b"\x94"
            + text("latin1")
            + b"\x94c_codecs\nencode\n\x94",
            b"](" + b"h\x02h\x00h\x01\x86R" * 1000 + b"e",
        ),
        "payload unfolds to more than 1337744 bytes",
    ),
    "an array that claims more than it has": (
        array(b"K\x04\x85", dtype("f4"), short_bytes(bytes(4))),
        "array of shape (4,) and dtype float32 takes 16 bytes, not 4",
    ),
    "an array that claims less than it has": (
        array(b"K\x01\x85", dtype("f4"), short_bytes(bytes(5))),
        "array of shape (1,) and dtype float32 takes 4 bytes, not 5",
    ),
    "an array of a thousand million nothings": (
        array(b"J\x00\xca\x9a\x3b\x85", dtype("U0"), short_bytes(b"")),
        "array of shape (1000000000,) holds nothing",
    ),
    "an array of a negative size": (
        array(b"J\xff\xff\xff\xff\x85", dtype("f4"), short_bytes(b"")),
        "array's shape holds what is no size",
    ),
    "an array of 33 axes": (
        array(b"(" + b"K\x01" * 33 + b"t", dtype("u1"), short_bytes(b"x")),
        "array's shape is not a tuple of at most 32 sizes",
    ),
    "an object array that lies": (
        array(b"K\x03\x85", dtype("O"), b"](NNe"),
        "object array of shape (3,) does not hold that many objects",
    ),
    "pointers as bytes": (
        array(b"K\x01\x85", dtype("O"), short_bytes(bytes(8))),
        "object array of shape (1,) does not hold that many objects",
    ),
    "an array that holds itself": (
        NEW_ARRAY + b"\x94(K\x01K\x01\x85" + dtype("O") + b"\x89](h\x00etb",
        "payload is nested deeper than 64",
    ),
    "an array without data": (NEW_ARRAY, "array has no dtype"),
    "an array with the state of something else": (
        NEW_ARRAY + b"}b",
        "array state is not (1, shape, dtype, is_fortran, data)",
    ),
    "text of no characters": (
        array(b"K\x01\x85", dtype("<U1"), short_bytes(b"\xff\xff\xff\xff")),
        "array of text holds what is no character",
    ),
    "a dtype with fields": (
        dtype("f4") + b"(K\x03" + text("<") + text("x") + b"NNtb",
        "dtype has fields or a shape of its own",
    ),
    "a dtype of records": (dtype("V8"), "dtype 'V8' is not one of numbers or text"),
    "a dtype with a length of gigabytes": (
        dtype("S2000000000"),
        "dtype 'S2000000000' is not one of numbers or text",
    ),
    "ndarray called with a size": (
        b"cnumpy\nndarray\nJ\x00\xca\x9a\x3b\x85R",
        "payload calls a type that it may only name",
    ),
    "bytearray called with a size": (
        b"cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R",
        "bytearray is only for bytes",
    ),
    "bytes decompressed by a codec": (
        b"c_codecs\nencode\n" + text("x") + text("zlib") + b"\x86R",
        "_codecs.encode is only for latin-1 text",
    ),
    "BUILD on a class": (
        b"cbenchmark.base\nMetaObs\nN}(" + text("state") + b"Nu\x86b",
        "payload tries to change what is not its own",
    ),
    "BUILD on a class, by dict": (
        b"cbenchmark.base\nMetaObs\n}(" + text("state") + b"Nub",
        "payload tries to change what is not its own",
    ),
    "BUILD on a function": (
        b"cnumpy\ndtype\nN}(" + text("_call") + b"Nu\x86b",
        "payload tries to change what is not its own",
    ),
    "BUILD on the array class": (
        b"cnumpy.core.multiarray\n_reconstruct\nN}(" + text("finish") + b"Nu\x86b",
        "array state is not (1, shape, dtype, is_fortran, data)",
    ),
    "BUILD on a blob": (
        BLOB + b"N}(" + text("source") + b"J\x00\xca\x9a\x3bu\x86b",
        "payload tries to change what is not its own",
    ),
    "a class as a value": (
        b"cbenchmark.base\nMetaObs\n",
        "payload holds a type, which is not data",
    ),
    "a function as a value": (b"cnumpy\ndtype\n", "payload holds a Function, which is not data"),
    "a function inside of a record": (
        b"cbenchmark.base\nMetaObs\ncnumpy\ndtype\n\x85R",
        "payload holds a Function, which is not data",
    ),
    "a dtype as a value": (dtype("f4"), "payload holds a Dtype, which is not data"),
    "an OrderedDict of what is not pairs": (
        b"ccollections\nOrderedDict\n](K\x01K\x02e\x85R",
        "an OrderedDict is made of what is not a pair",
    ),
    "an OrderedDict of a number": (
        b"ccollections\nOrderedDict\nJ\x00\xca\x9a\x3b\x85R",
        "an OrderedDict is made of a int, not of pairs",
    ),
    "an OrderedDict whose key takes long to hash": (
        b"ccollections\nOrderedDict\n)RK\x01\x85Ns",
        "a key is a tuple, not text or an int of 64 bits",
    ),
    "BUILD on an OrderedDict": (
        b"ccollections\nOrderedDict\n)RN}(" + text("pairs") + b"Nu\x86b",
        "payload tries to change what is not its own",
    ),
    "a factory that is called": (
        b"cbuiltins\nlist\n)R",
        "payload calls a type that it may only name",
    ),
    "a factory as a value": (b"cbuiltins\nlist\n", "payload holds a Function, which is not data"),
    "a stack that is empty": (b"u", "pickle cannot be read: UnpicklingError: could not find MARK"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads_are_refused(name: str) -> None:
    opcodes, message = HOSTILE[name]
    with pytest.raises(UnsafePayload) as raised:
        loads(b"\x80\x04" + opcodes + b".")
    assert str(raised.value) == message


@pytest.mark.parametrize("protocol", [4, 5])
def test_bytes_behind_the_pickle_are_refused(protocol: int) -> None:
    with pytest.raises(UnsafePayload, match=r"^1 bytes follow the pickle$"):
        loads(pickle.dumps("RESET", protocol=protocol) + b"x")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(" + b"N" * 500_000 + b"t",
        b"](" + b"M\xff\xff" * 200_000 + b"e",
        b"](" + b"]" * 100_000 + b"e",
        b"](" + b"}" * 200_000 + b"e",
        b"](" + b"\x8c\x01a" * 60_000 + b"e",
        b"](" + BLOB + b"\x94" + b"h\x00" * 100_000 + b"e",
        b"](" + b"ccollections\nOrderedDict\n\x94" + b"h\x00)R" * 100_000 + b"e",
        b"](" + b"U\x01a" * 60_000 + b"e",
        b"("
        + b"]("
        + b"U\x01aK\x01\x86" * 1000
        + b"e\x85\x94"
        + b"ccollections\nOrderedDict\n\x94"
        + b"h\x01h\x00R" * 100_000
        + b"t",
    ],
    ids=[
        "None",
        "int",
        "list",
        "dict",
        "text",
        "one blob many times",
        "ordered",
        "old text",
        "one list of pairs",
    ],
)
def test_no_payload_takes_more_than_a_small_multiple_of_its_length(opcodes: bytes) -> None:
    payload = bytearray(b"\x80\x04" + opcodes + b".")
    tracemalloc.start()
    with contextlib.suppress(UnsafePayload):
        loads(payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 1024 * 1024 + 32 * len(payload)


def test_a_refusal_leaves_nothing_behind() -> None:
    before = set(vars(MetaObs)), set(sys.modules)
    for opcodes, _ in HOSTILE.values():
        with pytest.raises(UnsafePayload):
            loads(b"\x80\x04" + opcodes + b".")
    assert (set(vars(MetaObs)), set(sys.modules)) == before


CONTAINERS: dict[str, tuple[Any, Any]] = {
    "OrderedDict": (
        OrderedDict(qpos=[1.0], images=OrderedDict(top=2)),
        {"qpos": [1.0], "images": {"top": 2}},
    ),
    "empty OrderedDict": (OrderedDict(), {}),
    "defaultdict": (defaultdict(list, a=[1]), {"a": [1]}),
    "defaultdict without a factory": (defaultdict(None, a=1), {"a": 1}),
    "numpy scalars in a list": ([np.float32(0.5), np.int64(3)], [0.5, 3]),
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_pickle_by_name_are_read_as_plain_ones(name: str, protocol: int) -> None:
    value, expected = CONTAINERS[name]
    read = loads(pickle.dumps(value, protocol=protocol))
    assert (read, type(read)) == (expected, type(expected))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_memory_map_is_read_as_the_array_it_is(tmp_path: Path, protocol: int) -> None:
    mapped = np.memmap(tmp_path / "image", np.uint8, "w+", shape=(4, 5, 3))
    mapped[...] = np.arange(60).reshape(4, 5, 3)
    read = loads(pickle.dumps({"image": mapped}, protocol=protocol))["image"]
    assert type(read) is np.ndarray
    np.testing.assert_array_equal(read, mapped)


def old(value: bytes) -> bytes:
    """Return the opcodes of Python 2's text or bytes."""
    return (
        b"U" + bytes([len(value)]) + value
        if len(value) < 256
        else b"T" + struct.pack("<i", len(value)) + value
    )


def test_what_python_2_wrote_is_read() -> None:
    assert loads(b"\x80\x02" + old(b"RESET") + b"q\x00.") == "RESET"
    assert loads(b"\x80\x02}q\x00" + old(b"method") + b"q\x01" + old(b"ping") + b"q\x02s.") == {
        "method": "ping"
    }
    assert loads(b"\x80\x02" + old(b"a" * 300) + b".") == "a" * 300
    pairs = b"](](" + old(b"qpos") + b"K\x01e](" + old(b"images") + b"}ee"
    assert loads(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.") == {"qpos": 1, "images": {}}
    numbers = np.array([0.5, -2.0, 3e300])
    state = b"(K\x01K\x03\x85" + b"cnumpy\ndtype\n" + old(b"f8") + b"K\x00K\x01\x87R(K\x03" + old(b"<")
    state += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + old(numbers.tobytes()) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + old(b"b") + b"\x87R" + state
    np.testing.assert_array_equal(loads(b"\x80\x02" + array + b"."), numbers)
