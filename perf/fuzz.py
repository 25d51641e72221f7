#!/usr/bin/env python
"""Send mutated requests to codecs and servers, and look for anything but a typed error.

    python perf/fuzz.py --seconds 60 --seed 0
    python perf/fuzz.py --targets openpi gr00t

The targets share the time: ``codec`` (payloads in process), ``replies`` (what clients read, in process) and,
over sockets, each row of :data:`TARGETS`: the native ports of a policy server, a simulator server and a
fleet, the Unix sockets of the first two, with descriptors, and each further frontend. A row whose frontend is
not in the checkout is left out and named. Prints one line of figures and returns 0; or 1, with
each offending input saved in ``--output_dir``, where a codec raised what is not an error of the wire, a
server stopped serving an honest client of the native port or accepting connections on the target's, an HTTP
status was 500, a frontend logged a bug, or memory grew by more than ``--max_growth_mb``. The same seed sends
the same inputs in the same order.
"""

from __future__ import annotations

import argparse
import array
import base64
import ctypes
import io
import json
import logging
import math
import os
import pickle
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from robowire.chunking import ActionChunk
from robowire.client.shared_replies import SharedReplies
from robowire.errors import RemoteProtocolError, RequestError
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.options import FleetOptions
from robowire.frontends.policy_frontends import (
    POLICY_FRONTENDS,
    PolicyFrontendOptions,
    make_policy_frontends,
)
from robowire.frontends.simulator_frontends import (
    SIMULATOR_FRONTENDS,
    SimulatorFrontendOptions,
    make_simulator_frontends,
)
from robowire.images import encode_image
from robowire.meta import MetaAction, MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.serving.simulator.server import SimulatorServer
from robowire.serving.tcp import TcpOptions
from robowire.testing import FAKE_SIMULATORS, EchoPolicy
from robowire.transport.shared_memory import SharedRegion, shared_memory_works
from robowire.wire.codecs import CallCodec, PolicyCodec
from robowire.wire.messages import ok
from robowire.wire.methods import METHODS
from robowire.wire.packed import (
    IN_SHARED_MEMORY,
    LENT,
    Layout,
    chunk_reply_frame,
    read_chunk_reply,
    read_layout,
    share_memory,
)
from robowire.wire.packed_exchange import SimulatorCodec
from robowire.wire.packed_simulator import StepReplies, StepReplyWriter, step_request
from robowire.wire.pickle.templates import TemplateReader
from robowire.wire.pickle.writer import encode
from robowire.wire.shared_reply import SharedReply

# Inputs between two looks at whether an honest client is served.
_CHECK_EVERY = 50

# Values that other programs got wrong: limits, signs, numbers of another kind, text that is not Unicode.
_NASTY = [
    None,
    True,
    -1,
    2**31,
    2**63,
    10**40,
    0.0,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\ud800",
    "a" * 300,
]


# Declarations of a layout: fields that observations have, and such that are refused.
_FIELDS = [
    ["state", "<f4", [3]],
    ["state", "<f8", [2, 3]],
    ["state", "|b1", [3]],
    ["state", "<f4", [5_000_000, 0]],
    ["state", "<f4", [2**26, 2**26]],
    ["image", "|u1", [1, 3, 4, 4]],
    ["image", "|u1", [2, 1, 3, 4, 4]],
    ["image", "jpeg", [1, 3, 4, 4]],
    ["image", "png", [2, 3, 4, 4]],
    ["raw_lang", "utf8", []],
    ["raw_lang", "utf8", [2]],
    ["raw_lang", "utf8", [4097]],
    ["timestep", "<i8", [2, 1]],
    ["odd", "<f2", [0, 7]],
    ["state", "O", [3]],
    ["state", "<f4", -1],
]


# Files of the size that the layouts declare, and of another one.
_IMAGES = [
    bytes(encode_image(np.full((*size, 3), 120, np.uint8), kind, quality=90)["data"])
    for kind in ("jpeg", "png")
    for size in ((4, 4), (4, 4), (8, 4))
]


@dataclass
class Session:
    """What a codec knows of a client."""

    said_hello: bool = True
    packed: bool = False
    layouts: dict[int, Any] = field(default_factory=dict)
    reply: str = "chunk"
    reader: TemplateReader = field(default_factory=TemplateReader)


class Fuzzer:
    """Counts inputs and failures, and saves what failed.

    Args:
        seed: Seed of every choice.
        output_dir: Folder for offending inputs.
    """

    def __init__(self, seed: int, output_dir: Path) -> None:
        self.rng = random.Random(seed)
        self.inputs: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._output_dir = output_dir

    def fail(self, target: str, data: bytes, reason: str) -> None:
        """Count a failure and save its input."""
        self.failures[target] += 1
        self._output_dir.mkdir(parents=True, exist_ok=True)
        path = self._output_dir / f"{target}_{self.inputs[target]}.bin"
        path.write_bytes(data)
        sys.stderr.write(f"{target}: {reason}; the input is in {path}\n")

    def value(self, depth: int = 0) -> object:
        """Return a request, valid or nearly so."""
        rng, kind = self.rng, self.rng.randrange(8)
        if kind == 0:
            state = np.zeros(
                rng.choice([(3,), (2, 3), (0,), (1, 0), (5000, 0)]), rng.choice(["f4", "f8", "i8"])
            )
            return MetaObs(state=state, timestep=rng.choice([0, -1, np.zeros((2, 1), np.int64)]))
        if kind == 1:
            return {"qpos": rng.choice([[1.0, 2.0, 3.0], np.zeros(3), *_NASTY]), "images": {}}
        if kind == 2:
            return "RESET"
        if kind == 3 and depth < 3:
            return [self.value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 4:
            return rng.choice([value for value in _NASTY if value != "\ud800"])
        method = rng.choice([*METHODS, "hello", "infer", "nothing"])
        names = [*METHODS[method].parameters] if method in METHODS else ["token", "reply"]
        return {"method": method, **{name: rng.choice(_NASTY[:-2]) for name in names if rng.random() < 0.7}}

    def payload(self) -> bytes:
        """Return the pickle of a request, mutated in most cases."""
        try:
            value = self.value()
            data = b"".join(map(bytes, encode(value))) if self.rng.random() < 0.5 else pickle.dumps(value)
        except Exception:  # what can't be written is no input
            data = b"\x80\x05N."
        return self.mutated(data)

    def layout(self) -> dict[str, Any]:
        """Return the declaration of a layout, in most cases one that is read."""
        rng = self.rng
        fields = rng.sample(_FIELDS, rng.randrange(1, 5)) if rng.random() < 0.5 else [_FIELDS[0], _FIELDS[8]]
        number = rng.choice([0, 0, 0, 1, 15, 16, -1, *_NASTY[:3]])
        return {"layout": number, "fields": fields if rng.random() < 0.95 else rng.choice(_NASTY)}

    def packed(self, declared: dict[str, Any]) -> bytes:
        """Return a packed request, mutated in most cases, of a layout where it is one."""
        rng = self.rng
        try:
            layout = read_layout(declared["layout"], declared["fields"])
        except RequestError:
            return self.mutated(b"\x01" + rng.randbytes(47))
        if layout.variable and rng.random() < 0.7:
            return self._packed_items(layout)
        lengths = [rng.choice([0, 1, 5]) for _ in range(layout.items)]
        size = min(layout.fixed_size, 4096)
        head = struct.pack("<BBHIq", 1, rng.choice([0, 0, 0, 1, 255]), layout.number, 0, rng.choice([0, -1]))
        head += struct.pack(f"<{layout.items}I", *lengths)
        body = bytes(size - len(head)) if rng.random() < 0.5 else rng.randbytes(max(size - len(head), 0))
        data = head + body + b"lift!" * layout.items
        data = data[: layout.fixed_size + sum(lengths)]
        return self.mutated(data) if rng.random() < 0.7 else data

    def _packed_items(self, layout: Layout) -> bytes:
        """Return a request whose texts and images can be decoded, or nearly so."""
        rng = self.rng
        items: list[bytes] = []
        for variable in layout.variable:
            for _ in range(variable.items):
                item = rng.choice(_IMAGES) if variable.kind != "utf8" else rng.choice([b"lift", b"", b"\xff"])
                items.append(self.mutated(item) if rng.random() < 0.5 else item)
        if layout.items > 16 or layout.fixed_size > 4096:
            return self.mutated(b"".join(items[:16]))
        head = struct.pack("<BBHIq", 1, 0, layout.number, 0, 3)
        head += struct.pack(f"<{len(items)}I", *map(len, items))
        data = head + bytes(layout.fixed_size - len(head)) + b"".join(items)
        return self.mutated(data) if rng.random() < 0.2 else data

    def reply(self) -> bytes:
        """Return a packed reply of a policy or a simulator, mutated in most cases."""
        rng = self.rng
        if rng.random() < 0.4:
            actions = np.zeros(rng.choice([(2, 3), (2, 1, 3)]), np.float32)
            timestep = 3 if actions.ndim == 2 else np.zeros((1, 1), np.int64)
            raw = actions if rng.random() < 0.3 else None
            frame = chunk_reply_frame(0, ActionChunk(actions, "ee", "delta", raw, timestep, 1.0))
            data = b"".join(map(bytes, frame or []))[4:]
        else:
            seen: dict[str, Any] = {
                "pos": np.zeros(3),
                "image": np.zeros((8, 8, 3), np.uint8),
                "text": "lift",
            }
            seen["odd"] = rng.choice([None, 1, 2.0, [1], "x"])
            step = ok(observation=seen, terminated=False, truncated=True, info={"success": False})
            step.update({"reward": 1.0} if rng.random() < 0.5 else {"rewards": [1.0] * 3, "steps": 3})
            packed = StepReplyWriter().write(step, 0, lambda size: memoryview(bytearray(size)))
            data = bytes(packed or b"\x04")
        return self.mutated(data) if rng.random() < 0.9 else data

    def descriptor(self, size: int) -> int:
        """Return a descriptor that may be passed: sealed memory of that size, or what is none."""
        rng = self.rng
        kind = rng.randrange(8)
        if kind < 4:
            with SharedRegion(size if kind else rng.choice([1, size + 1])) as region:
                region.memory[: min(64, region.size)] = rng.randbytes(min(64, region.size))
                return os.dup(region.descriptor)
        if kind == 4:
            descriptor = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, size)
            return descriptor
        if kind == 5:
            reader, writer = os.pipe()
            os.close(writer)
            return reader
        return os.open(rng.choice(["/dev/zero", "/dev/null", "/"]), os.O_RDONLY)

    def packed_step(self) -> bytes:
        """Return a packed step or chunk, mutated in most cases."""
        rng = self.rng
        if rng.random() < 0.2:  # counts that nothing follows
            head = (3, rng.choice([1, 9, 63, 64]), 0, 0, 2**32 - 1, 1, 0, rng.choice([0, 1, 2**32 - 1]), 0)
            return struct.pack("<BBBBIqQII", *head) + rng.randbytes(rng.choice([0, 16]))
        array = np.zeros(rng.choice([(3,), (0,), (5000,), (2, 3), (0, 3)]), rng.choice(["<f4", "<f8", ">f4"]))
        method = "step_chunk" if array.ndim == 2 else "step"
        action = MetaAction("ee", "delta", array) if rng.random() < 0.3 else array
        params: dict[str, Any] = {"actions" if method == "step_chunk" else "action": action}
        if rng.random() < 0.5:
            params["number"] = rng.choice([0, 1, 2**62])
        data = step_request(method, params, rng.choice([0, 1, 2**64 - 1]))
        return self.mutated(data) if rng.random() < 0.7 else data

    def mutated(self, data: bytes) -> bytes:
        """Return bytes with some of them changed, inserted, left out, repeated or cut off."""
        rng, mutated = self.rng, bytearray(data)
        for _ in range(rng.choice([0, 1, 1, 2, 4, 16])):
            place = rng.randrange(len(mutated) + 1)
            choice = rng.randrange(5)
            if choice == 0 and place < len(mutated):
                mutated[place] = rng.randrange(256)
            elif choice == 1:
                mutated[place:place] = rng.randbytes(rng.choice([1, 4, 8]))
            elif choice == 2:
                del mutated[place : place + rng.choice([1, 2, 8])]
            elif choice == 3:
                mutated[place:place] = mutated[place : place + rng.randrange(64)] * rng.choice([1, 2, 50])
            else:
                del mutated[place:]
        return bytes(mutated)


def fuzz_codecs(fuzzer: Fuzzer, until: float) -> None:
    """Read payloads in process; only errors of the wire may be raised."""
    codecs: list[Any] = [PolicyCodec(("front",)), PolicyCodec(None), CallCodec(), SimulatorCodec()]
    while time.monotonic() < until:
        session, payload = Session(), fuzzer.payload()
        if fuzzer.rng.random() < 0.3:
            declared = fuzzer.layout()
            session.packed, payload = True, fuzzer.packed(declared)
            try:
                call = bytearray(b"".join(map(bytes, encode({"method": "layout", **declared}))))
                layout = codecs[1].exchange(call, session).read().params["layout"]
                session.layouts[layout.layout.number] = layout
            except (RemoteProtocolError, RequestError):
                pass
            except Exception as exc:
                fuzzer.fail("codec", bytes(call), f"layout raised {type(exc).__name__}: {exc}"[:300])
        elif fuzzer.rng.random() < 0.3:
            session.packed, payload = True, fuzzer.packed_step()
        fuzzer.inputs["codec"] += 1
        for codec in codecs:
            try:
                codec.exchange(bytearray(payload), session).read()
            except (RemoteProtocolError, RequestError):
                continue
            except Exception as exc:
                fuzzer.fail(
                    "codec", payload, f"{type(codec).__name__} raised {type(exc).__name__}: {exc}"[:300]
                )


def fuzz_replies(fuzzer: Fuzzer, until: float) -> None:
    """Read replies in process as clients do; only errors of the wire may be raised, and none stays open."""
    shared = SharedReplies(1 << 20)
    opened = len(os.listdir("/proc/self/fd")) if shared_memory_works() else 0
    while time.monotonic() < until:
        fuzzer.inputs["replies"] += 1
        payload = fuzzer.reply()
        readers: list[Callable[[bytearray], Any]] = [
            StepReplies().read,
            lambda payload: read_chunk_reply(payload, "ee", "delta"),
        ]
        if shared_memory_works() and fuzzer.rng.random() < 0.3:
            size = fuzzer.rng.choice([100, 5000])
            said = SharedReply(
                fuzzer.rng.randrange(3), fuzzer.rng.random() < 0.7, fuzzer.rng.choice([1, 100, size]), size
            )
            payload = said.payload() if fuzzer.rng.random() < 0.7 else fuzzer.mutated(said.payload())
            descriptor = fuzzer.descriptor(size) if fuzzer.rng.random() < 0.7 else None
            readers = [lambda payload, passed=descriptor: shared.whole(payload, passed)]  # type: ignore[misc]
        for reader in readers:
            try:
                reader(bytearray(payload))
            except RemoteProtocolError:
                continue
            except Exception as exc:
                fuzzer.fail("replies", payload, f"a client raised {type(exc).__name__}: {exc}"[:300])
    shared.close()
    if shared_memory_works() and len(os.listdir("/proc/self/fd")) > opened:
        fuzzer.fail("replies", b"", "descriptors were left open")


_IN_PROCESS = {"codec": fuzz_codecs, "replies": fuzz_replies}


@dataclass(frozen=True)
class Target:
    """One wire of one service: a row of :data:`TARGETS`.

    Attributes:
        service: ``"policy"``, ``"simulator"`` or ``"fleet"``.
        wire: Sender in :data:`_SENDERS`.
        names: Keys, methods and texts of this wire, from which requests are made.
        paths: Paths of HTTP and WebSocket, methods of gRPC.
        text_keys: Whether arrays are maps with text as keys, not bytes.
        native: Whether the service's own port is meant, and no further frontend.
    """

    service: str
    wire: str
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ("/",)
    text_keys: bool = False
    native: bool = False


# By the name of the frontend, as in the flag of its port. A frontend is added by a row.
TARGETS: dict[str, Target] = {
    "tcp_policy": Target("policy", "frames", native=True),
    "tcp_simulator": Target("simulator", "frames", native=True),
    "tcp_fleet": Target("fleet", "frames", native=True),
    "unix_policy": Target("policy", "descriptors", native=True),
    "unix_simulator": Target("simulator", "descriptors", native=True),
    "http": Target(
        "simulator", "json", paths=("/reset", "/step", "/step_chunk", "/fork", "/tasks", "/snapshot/restore")
    ),
    "openpi": Target(
        "policy",
        "websocket",
        ("observation/image", "observation/wrist_image", "observation/state", "prompt", "state", "images"),
    ),
    "vla_eval": Target(
        "policy",
        "websocket",
        (
            *("type", "payload", "seq", "timestamp", "hello", "observation", "episode_start", "episode_end"),
            *("images", "states", "task_description", "protocol_version", "harness_version", "task"),
        ),
        text_keys=True,
    ),
    "gr00t": Target(
        "policy",
        "zmq",
        (
            *("endpoint", "data", "api_token", "get_action", "reset", "ping", "kill", "observation"),
            *("get_modality_config", "video", "state", "language", "options"),
        ),
    ),
    "act_zmq": Target("policy", "zmq_pickle"),
    "lerobot": Target(
        "policy",
        "grpc",
        paths=tuple(
            f"/transport.AsyncInference/{name}"
            for name in ("Ready", "SendPolicyInstructions", "SendObservations", "GetActions", "Nothing")
        ),
    ),
    "center": Target(
        "simulator",
        "zmq",
        (
            *("method", "simulator", "suite", "task_name", "action", "joint_positions", "gripper", "fake"),
            *("list_simulators", "select_simulator", "list_tasks", "load_task", "reset", "step", "get_info"),
            *("disconnect", "reach"),
        ),
        text_keys=True,
    ),
    "vlastudio": Target(
        "policy", "json", ("meta_obs", "client_id", "state", "image", "raw_lang"), ("/inference", "/health")
    ),
}


# Where to connect: host and port, or the path of a Unix socket and 0.
Address = tuple[str, int]


@contextmanager
def served(name: str, target: Target) -> Iterator[tuple[Address, Address]]:
    """Serve one target; yield its address and the native one."""
    if target.wire == "descriptors":
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/socket"
            with _native(target.service, {"unix_socket": path}) as native:
                yield (path, 0), native
        return
    limits: dict[str, Any] = {"frame_timeout_s": 1.0, "send_timeout_s": 1.0, "drain_s": 1.0}
    limits |= {"host": "127.0.0.1", "port": 0, "max_connections": 16}
    if target.service == "fleet":
        command = [sys.executable, "server.py", "simulator", "--host", "127.0.0.1"]
        fleet_options = TcpOptions(**limits)
        with FleetServer(FleetOptions(num_services=0), fleet_options, command) as fleet:
            yield fleet.address, fleet.address
        return
    if target.service == "policy":
        ports = {} if target.native else {f"{name}_port": 0}
        policy_options = PolicyFrontendOptions(**limits, **ports)
        further = make_policy_frontends(policy_options)
        with PolicyServer(EchoPolicy(), policy_options, frontends=further) as server:
            yield server.frontends[-1].address, server.address
        return
    ports = {} if target.native else {f"{name}_port": 0}
    options = SimulatorFrontendOptions(**limits, **ports)
    frontends = make_simulator_frontends(options)
    with SimulatorServer(FAKE_SIMULATORS, options, frontends=frontends) as simulators:
        yield simulators.frontends[-1].address, simulators.address


@contextmanager
def _native(service: str, more: dict[str, Any]) -> Iterator[Address]:
    """Serve the native port of a policy or a simulator."""
    limits: dict[str, Any] = {"frame_timeout_s": 1.0, "send_timeout_s": 1.0, "drain_s": 1.0}
    limits |= {"host": "127.0.0.1", "port": 0, "max_connections": 16, **more}
    if service == "policy":
        with PolicyServer(EchoPolicy(), PolicyFrontendOptions(**limits)) as server:
            yield server.address
    else:
        with SimulatorServer(FAKE_SIMULATORS, SimulatorFrontendOptions(**limits)) as simulators:
            yield simulators.address


def _is_there(name: str) -> bool:
    """Return whether a target's frontend is in the checkout, and this platform has what it needs."""
    target = TARGETS[name]
    if target.wire == "descriptors":
        return shared_memory_works()
    return target.native or name in POLICY_FRONTENDS or name in SIMULATOR_FRONTENDS


def fuzz_target(fuzzer: Fuzzer, name: str, until: float) -> None:
    """Send requests to one target until then, and one at least: its server may take that long to start."""
    target = TARGETS[name]
    send = _SENDERS[target.wire]
    with served(name, target) as (address, native):
        opened = _descriptors(address)
        while not fuzzer.inputs[name] or time.monotonic() < until:
            fuzzer.inputs[name] += 1
            send(fuzzer, name, target, address)
            if fuzzer.inputs[name] % _CHECK_EVERY == 0:
                if not _send(native, b"PING\n").startswith(b"PONG"):
                    fuzzer.fail(name, b"", "an honest client was not served")
                if not _accepts(address):
                    fuzzer.fail(name, b"", "the port takes no connection any more")
        if not _settles(lambda: _descriptors(address) <= opened):
            fuzzer.fail(name, b"", f"{_descriptors(address) - opened} descriptors were left open")


def _descriptors(address: Address) -> int:
    """Return how many descriptors this process has, which serves a Unix socket; 0 for other addresses."""
    return len(os.listdir("/proc/self/fd")) if address[1] == 0 else 0


def _settles(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _connect(address: Address) -> socket.socket:
    if address[1]:
        return socket.create_connection(address, timeout=5)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(5)
        sock.connect(address[0])
    except BaseException:
        sock.close()
        raise
    return sock


def _accepts(address: Address) -> bool:
    try:
        _connect(address).close()
    except OSError:
        return False
    return True


# -- senders: one for each kind of wire ----------------------------------------------------------------------


def _send_frames(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    data = b""
    declared: dict[str, Any] | None = None
    if target.service == "policy" and fuzzer.rng.random() < 0.5:
        declared = fuzzer.layout()
        for call in ({"method": "hello", "packed": 1}, {"method": "layout", **declared}):
            payload = b"".join(map(bytes, encode(call)))
            data += struct.pack("!I", len(payload)) + payload
    steps = target.service == "simulator" and fuzzer.rng.random() < 0.5
    if steps:
        calls: list[dict[str, Any]] = [{"method": "hello", "packed": 1}]
        if fuzzer.rng.random() < 0.05:  # it starts a process
            calls += [
                {"method": "select_simulator", "simulator": "fake"},
                {"method": "load_task", "task_name": "reach"},
            ]
            calls += [{"method": "reset", "seed": 0}]
        for call in calls:
            payload = b"".join(map(bytes, encode(call)))
            data += struct.pack("!I", len(payload)) + payload
    for _ in range(fuzzer.rng.randrange(1, 4)):
        if steps:
            payload = fuzzer.packed_step()
        else:
            payload = fuzzer.payload() if declared is None else fuzzer.packed(declared)
        data += struct.pack("!I", len(payload)) + payload
    if fuzzer.rng.random() < 0.3:
        data = fuzzer.mutated(data)
    _send(address, data)


def _framed(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def _send_descriptors(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    """Send requests over a Unix socket, some of them with descriptors; close all that come back."""
    rng = fuzzer.rng
    calls: list[dict[str, Any]] = [{"method": "hello", "packed": 1, "shared_memory": 1}]
    declared = {"layout": 0, "fields": [["state", "<f4", [3]], ["image", "|u1", [1, 3, 40, 40]]]}
    if rng.random() < 0.3:
        declared = fuzzer.layout()
    if target.service == "policy":
        calls.append({"method": "layout", **declared})
    elif rng.random() < 0.05:  # it starts a process
        size: dict[str, Any] = {"image_height": 320, "image_width": 320, "camera_names": ["front"]}
        calls += [
            {"method": "select_simulator", "simulator": "fake"},
            {"method": "load_task", "task_name": "reach", **size},
            {"method": "reset", "seed": 0},
        ]
    parts = [(_framed(b"".join(map(bytes, encode(call)))), 0) for call in calls]
    for _ in range(rng.randrange(1, 6)):
        size_said = rng.choice([4848, 4848, 16, 0, 2**40])
        payload = rng.choice([share_memory(size_said), fuzzer.payload(), fuzzer.packed_step()])
        if target.service == "policy" and rng.random() < 0.6:
            payload = fuzzer.packed(declared)
            if rng.random() < 0.7 and len(payload) > 16:
                flags = payload[1] | IN_SHARED_MEMORY | rng.choice((0, LENT))
                payload = bytes([payload[0], flags]) + payload[2:16]
        if rng.random() < 0.2:
            payload = fuzzer.mutated(payload)
        parts.append((_framed(payload), rng.choice([0, 1, 1, 3]) if rng.random() < 0.6 else 0))
    received: list[int] = []
    with suppress(OSError), _connect(address) as sock:
        for data, count in parts:
            passed = [fuzzer.descriptor(4848) for _ in range(count)]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))] if passed else []
            try:
                sent = sock.sendmsg([data], rights)
                sock.sendall(data[sent:])
            finally:
                for descriptor in passed:
                    os.close(descriptor)
        sock.shutdown(socket.SHUT_WR)
        try:
            while True:
                data, descriptors, _, _ = socket.recv_fds(sock, 65536, 8)
                received += descriptors
                if not data:
                    break
        finally:
            for descriptor in received:
                os.close(descriptor)


def _send_json(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    body = _body(fuzzer) if not target.names else json.dumps(_tree(fuzzer, target, json_only=True)).encode()
    if fuzzer.rng.random() < 0.5:
        body = fuzzer.mutated(body)
    head = f"POST {fuzzer.rng.choice(target.paths)} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(body)}\r\n"
    head += fuzzer.rng.choice(
        [
            "",
            "X-Robowire-Session: x\r\n",
            "Content-Type: application/msgpack\r\n",
            "Content-Type: application/json\r\n",
        ]
    )
    data = head.encode() + b"\r\n" + body
    if fuzzer.rng.random() < 0.3:
        data = fuzzer.mutated(data)
    if _send(address, data).startswith(b"HTTP/1.1 500"):
        fuzzer.fail(name, data, "status 500")
    if fuzzer.inputs[name] % _CHECK_EVERY == 0:
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        if not _send(address, health).startswith(b"HTTP/1.1 200"):
            fuzzer.fail(name, data, "/health was not answered")


def _send_websocket(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    rng = fuzzer.rng
    key = base64.b64encode(rng.randbytes(16)).decode()
    head = (
        f"GET {rng.choice(target.paths)} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    if rng.random() < 0.1:
        _send(address, fuzzer.mutated(head))
        return
    data = b""
    for _ in range(rng.randrange(1, 4)):
        payload = _packed(fuzzer, target)
        # 2 is a binary message; the others are text, continuations, closes, pings and what is none.
        opcode = rng.choice([2] * 12 + [0, 1, 8, 9, 10, 3])
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else b"\xfe" + struct.pack("!H", length & 0xFFFF)
        if length > 0xFFFF:
            size = b"\xff" + struct.pack("!Q", length)
        # A mask of zeros changes nothing.
        data += bytes([0x80 | opcode]) + size + bytes(4) + payload
    if rng.random() < 0.3:
        data = fuzzer.mutated(data)
    # A server keeps the half of a connection that it may still write to.
    _send(address, head, data, last_wait_s=0.05)


def _send_zmq(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    _zmq_message(fuzzer, address, _packed(fuzzer, target))


def _send_zmq_pickle(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    _zmq_message(fuzzer, address, fuzzer.payload())


def _zmq_message(fuzzer: Fuzzer, address: Address, payload: bytes) -> None:
    """Send a message as libzmq does, byte by byte in hand so that the framing can be mutated too."""
    rng = fuzzer.rng
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    kind = rng.choice([b"REQ", b"DEALER", b"DEALER", b"PUB"])
    ready = b"\x05READY\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind
    ready += b"\x08Identity" + struct.pack("!I", 0)
    data = greeting + b"\x04" + bytes([len(ready)]) + ready
    for _ in range(rng.randrange(1, 4)):
        parts = [b"", payload] if rng.random() < 0.8 else [payload] * rng.randrange(1, 4)
        for number, part in enumerate(parts):
            more = int(number + 1 < len(parts))
            if len(part) < 256:
                data += bytes([more, len(part)]) + part
            else:
                data += bytes([more | 2]) + struct.pack("!Q", len(part)) + part
    if rng.random() < 0.2:
        data = fuzzer.mutated(data)
    _send(address, data, last_wait_s=0.05)  # libzmq does not close at the end of our half


def _send_grpc(fuzzer: Fuzzer, name: str, target: Target, address: Address) -> None:
    import grpc  # an extra; the others need none

    rng = fuzzer.rng
    if rng.random() < 0.2:
        _send(address, fuzzer.mutated(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)), last_wait_s=0.2)
        return
    messages = []
    for _ in range(rng.randrange(1, 4)):
        payload = fuzzer.payload()
        # A protobuf of an enum and bytes, the shape of every message of this wire.
        varint, left = b"", len(payload)
        while left > 127:
            varint, left = varint + bytes([left & 127 | 128]), left >> 7
        message = rng.choice([b"", b"\x08" + bytes([rng.randrange(5)])]) + rng.choice([b"\x0a", b"\x12"])
        message += varint + bytes([left]) + payload
        messages.append(fuzzer.mutated(message) if rng.random() < 0.3 else message)
    with grpc.insecure_channel(f"{address[0]}:{address[1]}") as channel:
        method = rng.choice(target.paths)
        kept: dict[str, Any] = {"request_serializer": bytes, "response_deserializer": bytes}
        try:
            if method.endswith("SendObservations"):
                channel.stream_unary(method, **kept)(iter(messages), timeout=2)
            else:
                channel.unary_unary(method, **kept)(messages[0], timeout=2)
        except grpc.RpcError as exc:
            if exc.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
                fuzzer.fail(name, messages[0], f"{exc.code()}: {exc.details()}"[:300])


_SENDERS: dict[str, Callable[[Fuzzer, str, Target, Address], None]] = {
    "frames": _send_frames,
    "descriptors": _send_descriptors,
    "json": _send_json,
    "websocket": _send_websocket,
    "zmq": _send_zmq,
    "zmq_pickle": _send_zmq_pickle,
    "grpc": _send_grpc,
}


def _tree(fuzzer: Fuzzer, target: Target, *, json_only: bool = False, depth: int = 0) -> Any:
    """Return nested maps, lists, arrays and odd values under this wire's names."""
    rng = fuzzer.rng
    if depth == 0 or (depth < 4 and rng.random() < 0.35):
        names = rng.sample(target.names, rng.randrange(1, len(target.names) + 1))
        return {key: _tree(fuzzer, target, json_only=json_only, depth=depth + 1) for key in names}
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(target.names)
    if kind == 1:
        return [_tree(fuzzer, target, json_only=json_only, depth=depth + 1) for _ in range(rng.randrange(3))]
    if kind < 4 and not json_only:
        return _array(fuzzer, target)
    if kind < 4:
        array = {"__type__": "ndarray", "dtype": rng.choice(["float32", "object", "uint8"]), "shape": [2, 3]}
        return {**array, "data": rng.choice(["AAAA" * 8, "!", "A" * 100_000, 7])}
    return rng.choice([value for value in _NASTY if value != "\ud800" and value != 10**40])


def _array(fuzzer: Fuzzer, target: Target) -> dict[Any, Any]:
    """Return an array as these wires write one, or nearly so."""
    rng = fuzzer.rng
    shape = rng.choice([[3], [8], [1, 8], [0], [224, 224, 3], [2**31, 2**31], [-1], [2**40]])
    dtype = rng.choice(["<f4", "<f8", "|u1", "|O", "<U9", "float64", "uint8", "object", "V8", 7])
    wanted = math.prod(shape) * 4 if all(0 <= size < 300 for size in shape) else 12
    data = bytes(rng.choice([wanted, wanted, wanted // 4, 0, wanted + 1]))
    style = rng.randrange(4)
    if style == 0:
        array: dict[Any, Any] = {"__ndarray__": True, "data": data, "dtype": dtype, "shape": shape}
    elif style == 1:
        array = {"__ndarray_class__": True, "as_npy": fuzzer.mutated(_NPY)}
    elif style == 2:
        array = {
            "nd": True,
            "type": dtype,
            "kind": rng.choice([b"", b"O", b"V"]),
            "shape": shape,
            "data": data,
        }
    else:
        array = {"__type__": "ndarray", "dtype": dtype, "shape": shape, "data": data}
    if target.text_keys or style in (1, 3):
        return array
    return {key.encode(): value for key, value in array.items()}


_M_MMAP_THRESHOLD = -3  # of malloc.h

_FILE = io.BytesIO()
np.save(_FILE, np.zeros((1, 1, 8), np.float32))
_NPY = _FILE.getvalue()


def _packed(fuzzer: Fuzzer, target: Target) -> bytes:
    import msgpack  # of the extras of these wires; the others need none

    data: bytes = msgpack.packb(_tree(fuzzer, target))
    return fuzzer.mutated(data) if fuzzer.rng.random() < 0.5 else data


def _body(fuzzer: Fuzzer) -> bytes:
    names = ["simulator", "task", "seed", "action", "actions", "session", "n", "number", "snapshot_id"]
    values = [*_NASTY[:11], "fake", "reach", [0, 0, 0], [[0] * 3] * 2, [["a"] * 9] * 9, {"a": 1}]
    return json.dumps(
        {name: fuzzer.rng.choice(values) for name in names if fuzzer.rng.random() < 0.4}
    ).encode()


def _send(address: Address, data: bytes, more: bytes = b"", *, last_wait_s: float = 5.0) -> bytes:
    """Return what came back for some bytes, until the server closed or a moment passed.

    Args:
        address: Where to connect.
        data: Sent first.
        more: Sent after the first bytes came back.
        last_wait_s: Seconds without a byte, once all is sent, after which it is given up.
    """
    answer = b""
    try:
        with _connect(address) as sock:
            sock.sendall(data)
            if more:
                answer += sock.recv(65536)
                sock.sendall(more)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(last_wait_s)
            while part := sock.recv(65536):
                answer += part
    except OSError:  # it was closed while we were sending
        pass
    return answer


class _Bugs(logging.Handler):
    """Counts what a server logs with a traceback: its own bugs, which no input may cause."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.texts[f"{record.getMessage()}: {record.exc_info[1]!r}"[:300]] += 1


def _give_back_what_is_freed() -> None:
    """Make glibc return blocks above 128 KiB to the system when they are freed, so that growth is use.

    It raises that limit by itself, up to 32 MiB, once such a block was freed; each thread's arena then keeps
    as much. With the threads of a server for GR00T this was 100 MB or more that nothing used any more.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of every choice")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/fuzz"), help="folder for offending inputs"
    )
    parser.add_argument("--max_growth_mb", type=float, default=120.0, help="memory this process may gain")
    parser.add_argument(
        "--targets", nargs="+", choices=[*_IN_PROCESS, *TARGETS], help="some only; default: every one"
    )
    flags = parser.parse_args(arguments)
    _give_back_what_is_freed()
    # Each input is a warning; what is no error of a peer's counts.
    bugs = _Bugs()
    root = logging.getLogger()
    root.handlers = [bugs]
    root.setLevel(logging.ERROR)
    fuzzer, process = Fuzzer(flags.seed, flags.output_dir), psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    names = flags.targets or [*_IN_PROCESS, *TARGETS]
    missing = [name for name in names if name not in _IN_PROCESS and not _is_there(name)]
    names = [name for name in names if name not in missing]
    for number, name in enumerate(names, 1):
        until = started + flags.seconds * number / len(names)
        if name in _IN_PROCESS:
            _IN_PROCESS[name](fuzzer, until)
        else:
            fuzz_target(fuzzer, name, until)
    growth_mb = (process.memory_info().rss - before) / 1e6
    figures = ", ".join(
        f"{name} {fuzzer.inputs[name]} inputs {fuzzer.failures[name]} failures" for name in fuzzer.inputs
    )
    for text, count in bugs.texts.most_common(20):
        sys.stderr.write(f"{count} times logged: {text}\n")
    seconds = time.monotonic() - started
    left_out = f"; not in this checkout: {', '.join(missing)}" if missing else ""
    sys.stdout.write(
        f"fuzz: seed {flags.seed}, {seconds:.0f} s: {figures}; {bugs.texts.total()} bugs logged; "
        f"memory {growth_mb:+.0f} MB{left_out}\n"
    )
    return int(bool(fuzzer.failures) or bool(bugs.texts) or growth_mb > flags.max_growth_mb)


if __name__ == "__main__":
    sys.exit(main())
