#!/usr/bin/env python
"""The client program: ask a server how it is, send it observations, measure it, take its replies apart.

A command is a row of ``COMMANDS``, imported when it is chosen. Exit codes: 0, done; 1, the server could not
be reached or answered with an error; 2, the program was called wrongly.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from robowire import MetaObs, PolicyClient, SimulatorClient, __version__
from robowire.address import parse_address
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MissingDependency,
    RobowireError,
    UnknownMethod,
    UnknownName,
    UnsafePayload,
)
from robowire.registry import Entry, load, nearest
from robowire.specs import PolicySpec
from robowire.wire.framing import frame_header
from robowire.wire.inspection import describe, hex_dump
from robowire.wire.pickle.reader import loads

__all__ = ["COMMANDS", "Command", "PolicyClient", "SimulatorClient", "main", "random_observation"]


@dataclass(frozen=True)
class Command:
    """What a row of ``COMMANDS`` leads to.

    Attributes:
        add_options: Adds the command's flags to an argparse parser that has those of the connection already:
            address, host, port, timeout_s, token. ``main`` has put host and port right when it calls ``run``,
            and added ``simulator_server``, a function from changed flags to a simulator server: programs know
            each other, what lies below them does not.
        run: Does the work, writes to standard output and returns the exit code. A ``RobowireError`` that
            leaves it is told in one line.
    """

    add_options: Callable[[Any], None]
    run: Callable[[Any], int]


COMMANDS: dict[str, Entry] = {
    "ping": Entry("client:PING", summary="measure round trips to a server"),
    "info": Entry("client:INFO", summary="show what a policy server says of its policy and itself"),
    "infer": Entry(
        "client:INFER", summary="send random observations that fit the policy, and time the answers"
    ),
    "bench": Entry("client:BENCH", summary="measure latency and throughput with several clients"),
    "evaluate": Entry(
        "robowire.cli.evaluate:EVALUATE", extra="evaluate", summary="run a policy on a simulator, count, film"
    ),
    "lerobot-eval": Entry(
        "robowire.cli.lerobot_eval:LEROBOT_EVAL", extra="evaluate", summary="evaluate under LeRobot's flags"
    ),
    "compare": Entry(
        "robowire.cli.compare:COMPARE", extra="evaluate", summary="compare two folders of results by episode"
    ),
    "sweep": Entry(
        "robowire.cli.sweep:SWEEP", extra="plots", summary="plot success against latency, for each way to act"
    ),
    "debug": Entry("client:DEBUG", summary="send any bytes, whole or in pieces, and take the reply apart"),
}


class Parser(ArgumentParser):
    """Says what is wrong in one line, and names the flag that was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with code 2."""
        known = [option for action in self._actions for option in action.option_strings]
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        hint = nearest(unknown.group(1), known) if unknown else ""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}{'.' + hint if hint else ' (see --help)'}\n")
        raise AssertionError("exit does not return")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        code = _run_command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads our output has enough, as ``head`` has; a connection that breaks is a RobowireError. What
        # is left in the buffer goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run_command(arguments: Sequence[str] | None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        rows = "".join(f"  {name:<12} {entry.summary}\n" for name, entry in COMMANDS.items())
        print(f"usage: client.py COMMAND [flags]\n\n{rows}\nclient.py COMMAND --help shows its flags.")
        return 0
    if name == "--version":
        print(f"robowire {__version__}")
        return 0
    try:
        command: Command = load("command", name, COMMANDS)  # type: ignore[assignment]
    except (UnknownName, MissingDependency) as exc:
        print(f"client.py: {exc}", file=sys.stderr)
        return 2
    parser = Parser(
        prog=f"client.py {name}",
        description=COMMANDS[name].summary if name in COMMANDS else None,
        default_env=True,
        env_prefix="ROBOWIRE_CLIENT",
        allow_abbrev=False,
    )
    _add_connection_options(parser)
    command.add_options(parser)
    options = parser.parse_args(rest)
    try:
        if options.address is not None:
            options.host, options.port = parse_address(
                "address", options.address, example="localhost:5000", default_port=options.port
            )
        options.simulator_server = _simulator_server
        return command.run(options)
    except ConfigurationError as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 2
    except RobowireError as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _add_connection_options(parser: Any) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--address", type=str, help="host:port of the server, instead of --host and --port")
    parser.add_argument("--host", type=str, default="localhost", help="name or address of the server")
    parser.add_argument("--port", type=int, default=5000, help="its TCP port")
    parser.add_argument("--timeout_s", type=float, default=30.0, help="seconds to wait for a reply")
    parser.add_argument("--token", type=str, help="shown to the server, where it wants one")


def _simulator_server(**changes: Any) -> Any:
    from server import simulator_server_of_environment  # only who needs it waits for its imports

    return simulator_server_of_environment(**changes)


def _open_client(options: Namespace) -> PolicyClient:
    """Return a client that fails at the first failure: a person is watching, and measures what is."""
    if options.timeout_s <= 0:
        raise ConfigurationError(f"timeout_s is {options.timeout_s:g}, expected a positive number of seconds")
    return PolicyClient(
        options.host,
        options.port,
        timeout_s=options.timeout_s,
        connect_timeout_s=min(5.0, options.timeout_s),
        retries=0,
        token=options.token,
    )


def _at_least(lowest: int, **values: float) -> None:
    for name, value in values.items():
        if value < lowest:
            raise ConfigurationError(f"{name} is {value:g}, expected at least {lowest}")


def _quantiles(seconds: Sequence[float], *shares: int) -> str:
    values = np.percentile(seconds, shares) * 1e3
    return ", ".join(f"p{share} {value:.2f} ms" for share, value in zip(shares, values, strict=True))


# ping and info


def _add_ping(parser: Any) -> None:
    parser.add_argument("--count", type=int, default=4, help="round trips")


def _ping(options: Namespace) -> int:
    _at_least(1, count=options.count)
    with _open_client(options) as client:
        times = []
        for _ in range(options.count):
            times.append(client.ping())
            print(f"reply from {options.host}:{options.port} in {times[-1] * 1e3:.3f} ms")
    print(f"{len(times)} round trips: min {min(times) * 1e3:.3f} ms, {_quantiles(times, 50, 99)}")
    return 0


def _add_info(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _info(options: Namespace) -> int:
    with _open_client(options) as client:
        info = client.get_info()
    if options.json:
        print(json.dumps(info, default=str))
        return 0
    print("\n".join(_aligned(info)))
    return 0


def _aligned(info: dict[str, Any], indent: str = "") -> list[str]:
    lines, width = [], max(map(len, info), default=0)
    for name, value in info.items():
        if isinstance(value, dict):
            lines += [indent + name, *_aligned(value, indent + "  ")]
        else:
            shown = (
                ", ".join(map(str, value)) if isinstance(value, list) else "any" if value is None else value
            )
            lines.append(f"{indent}{name:<{width}}  {shown}")
    return lines


# infer


def random_observation(
    spec: PolicySpec, rng: np.random.Generator, image_size: tuple[int, int] | None = None
) -> MetaObs:
    """Return an observation that fits the policy. What it leaves open: one camera, 224x224 pixels, 14 joints.

    Args:
        spec: The policy's.
        rng: Draws the values.
        image_size: Height and width in pixels, where the spec leaves them open.
    """
    height, width = image_size or (spec.image_height or 224, spec.image_width or 224)
    cameras = 1 if spec.camera_names is None else len(spec.camera_names)
    image = rng.integers(0, 256, (cameras, 3, height, width), np.uint8) if cameras else None
    state = rng.standard_normal(spec.state_dim or 14, np.float32)
    return MetaObs(state=state, image=image, raw_lang="do nothing in particular", timestep=0)


def _spec(client: PolicyClient) -> PolicySpec:
    try:
        return client.spec
    except UnknownMethod:  # an older server, which can't be asked
        return PolicySpec()


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if found is None or "0" in (found[1], found[2]):
        raise ConfigurationError(
            f"image_size is {text!r}, expected pixels: 224, or height x width as in 480x640"
        )
    return int(found[1]), int(found[2] or found[1])


def _add_infer(parser: Any) -> None:
    parser.add_argument("--num_requests", type=int, default=5, help="observations to send")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds between two of them")
    parser.add_argument(
        "--image_size", type=str, help="pixels, 224 or 480x640 (height x width); default: the policy's"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random observations")


def _infer(options: Namespace) -> int:
    _at_least(1, num_requests=options.num_requests)
    _at_least(0, delay=options.delay, seed=options.seed)
    size = _image_size(options.image_size)
    rng, times = np.random.default_rng(options.seed), []
    with _open_client(options) as client:
        spec = _spec(client)
        for number in range(options.num_requests):
            if number:
                time.sleep(options.delay)
            observation = random_observation(spec, rng, size)
            observation.timestep = number
            begun = time.perf_counter()
            actions = client.infer(observation)
            times.append(time.perf_counter() - begun)
            if not number:
                first = actions[0]
            count, length = actions.shape
            print(f"request {number + 1}: {count} actions of {length} in {times[-1] * 1e3:.2f} ms")
    print(f"{len(times)} requests: {_quantiles(times, 50, 99)}")
    print(f"first action: {np.array2string(first, precision=4, max_line_width=100)}")
    return 0


# bench

# Cameras, height, width: 150 KB, 393 KB, 2.76 MB and 6.4 MB, as in the wire's benchmark.
SIZES = {"S": (1, 224, 224), "M": (2, 256, 256), "L": (3, 480, 640), "XL": (7, 480, 640)}

# Requests before the clock starts: connections, caches, lazy imports and the allocator settle in a few.
_WARM_UP = 10


def _add_bench(parser: Any) -> None:
    parser.add_argument("--duration_s", type=float, default=5.0, help="seconds to measure, after a warm-up")
    parser.add_argument("--clients", type=int, default=1, help="clients at one time, a process each")
    parser.add_argument(
        "--observation",
        choices=["spec", *SIZES],
        default="spec",
        help="what fits the policy, or images of 150 KB, 393 KB, 2.76 MB, 6.4 MB",
    )


def _bench(options: Namespace) -> int:
    _at_least(1, clients=options.clients)
    if options.duration_s <= 0:
        raise ConfigurationError(
            f"duration_s is {options.duration_s:g}, expected a positive number of seconds"
        )
    with _open_client(options) as client:
        spec = _spec(client)
        observation = _bench_observation(spec, options.observation)
        client.infer(observation)  # an observation that the policy refuses is told here, once
    measured = _in_processes(options, spec)
    times = [seconds for one in measured for seconds in one]
    rate = len(times) / max(sum(one) for one in measured)
    size = sum(array.nbytes for array in vars(observation).values() if isinstance(array, np.ndarray))
    print(f"{options.clients} client(s), {size / 1e6:.3f} MB an observation, {len(times)} requests measured")
    print(f"latency: {_quantiles(times, 50, 95, 99)}, max {max(times) * 1e3:.2f} ms")
    print(f"throughput: {rate:.1f} requests/s, {rate * size / 1e6:.1f} MB/s; each client asks when answered")
    return 0


def _in_processes(options: Namespace, spec: PolicySpec) -> list[list[float]]:
    """Return the seconds of each request of each client: processes, as threads would wait for each other."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for _ in range(options.clients):
        pipe, theirs = context.Pipe()
        processes.append(
            context.Process(target=_bench_client, args=(options.as_dict(), spec, theirs), daemon=True)
        )
        processes[-1].start()
        theirs.close()  # so that a client that dies ends the pipe
        pipes.append(pipe)
    try:
        for pipe in pipes:
            _answer(pipe)  # warmed up
        for pipe in pipes:
            pipe.send("go")
        return [_answer(pipe) for pipe in pipes]
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            pipe.close()
            process.terminate()
            process.join()


def _answer(pipe: Any) -> Any:
    try:
        answer = pipe.recv()
    except EOFError as exc:
        raise ConnectionLost("a client's process died") from exc
    if isinstance(answer, RobowireError):
        raise answer
    return answer


def _bench_client(options: dict[str, Any], spec: PolicySpec, pipe: Any) -> None:
    """Be one client: say that it is warm, wait for the start, send each request's seconds, or the error."""
    observation = _bench_observation(spec, options["observation"])
    times: list[float] = []
    try:
        with _open_client(Namespace(**options)) as client:
            for _ in range(_WARM_UP):
                client.infer(observation)
            pipe.send("warm")
            pipe.recv()
            before = time.perf_counter()
            end = before + options["duration_s"]
            while before < end:
                client.infer(observation)
                now = time.perf_counter()
                times.append(now - before)
                before = now
        pipe.send(times)
    except RobowireError as exc:
        pipe.send(exc)
    except EOFError:  # another client failed, and the program gave up
        return


def _bench_observation(spec: PolicySpec, size: str) -> MetaObs:
    rng = np.random.default_rng(0)
    observation = random_observation(spec, rng)
    if size in SIZES:
        cameras, height, width = SIZES[size]
        observation.image = rng.integers(0, 256, (cameras, 3, height, width), np.uint8)
    return observation


# debug

# After a line of text, and after bytes sent raw, nobody says how much is to come: so long is waited for more.
_QUIET_S = 0.2

# Of a text reply: more than INFO says, less than a screen.
_MAX_TEXT = 2000


def _add_debug(parser: Any) -> None:
    parser.add_argument("--file", type=str, help="send what is in this file; without it, standard input")
    parser.add_argument("--hex", type=str, help='send these bytes: "00 00 00 04 80 05 4e 2e"')
    parser.add_argument("--text", type=str, help="send this line of text: INFO, PING, STATS, HELP")
    parser.add_argument(
        "--raw", action="store_true", help="send the bytes as they are, without a length before them"
    )
    parser.add_argument("--cut", type=str, help="send in pieces, cut after these bytes: 1,3,5")
    parser.add_argument("--pause_s", type=float, default=0.5, help="seconds between two pieces")
    parser.add_argument("--count", type=int, default=1, help="times to send it, one after the other")


def _debug(options: Namespace) -> int:
    _at_least(1, count=options.count)
    _at_least(0, pause_s=options.pause_s)
    pieces = _pieces(_debug_bytes(options), options.cut)
    begun = time.perf_counter()
    try:
        sock = socket.create_connection((options.host, options.port), timeout=options.timeout_s)
    except OSError as exc:
        raise ConnectFailed(
            f"cannot connect to {options.host}:{options.port}: {exc.strerror or exc}"
        ) from exc
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"connected to {options.host}:{options.port} in {(time.perf_counter() - begun) * 1e3:.2f} ms")
        for number in range(options.count):
            print(f"#{number + 1}: {sum(map(len, pieces))} bytes in {len(pieces)} piece(s)")
            print(hex_dump(b"".join(pieces), limit=64))
            exchange = _exchange(sock, pieces, options)
            _print_reply(exchange)
            if exchange.ending:
                break
    print(f"connection: {exchange.ending or 'still open; closed by us'}")
    return 0


def _debug_bytes(options: Namespace) -> bytes:
    """Return what goes over the wire."""
    named = [name for name in ("file", "hex", "text") if options[name] is not None]
    if len(named) > 1:
        raise ConfigurationError(f"--{named[0]} and --{named[1]} are both given: one of them")
    if named == ["text"]:
        return options.text.encode() + b"\n"
    if named == ["hex"]:
        try:
            data = bytes.fromhex(options.hex)
        except ValueError as exc:
            raise ConfigurationError(
                f"hex is {options.hex[:40]!r}, expected pairs of 0-9 and a-f: {exc}"
            ) from exc
    elif named == ["file"]:
        try:
            data = Path(options.file).read_bytes()
        except OSError as exc:
            raise ConfigurationError(f"cannot read {options.file}: {exc.strerror}") from exc
    else:
        data = sys.stdin.buffer.read()
    return data if options.raw else frame_header(len(data)) + data


def _pieces(data: bytes, cut: str | None) -> list[bytes]:
    if cut is None:
        return [data]
    if not re.fullmatch(r"\d+(,\d+)*", cut):
        raise ConfigurationError(f"cut is {cut!r}, expected numbers of bytes: 1,3,5")
    places = [0, *sorted(int(place) for place in cut.split(",")), len(data)]
    return [data[start:end] for start, end in pairwise(places) if start < end]


@dataclass
class _Exchange:
    """What came back, in seconds after the last piece was sent. ``ending`` is empty while it is open."""

    data: bytearray
    first_s: float = 0.0
    last_s: float = 0.0
    ending: str = ""


def _exchange(sock: socket.socket, pieces: Sequence[bytes], options: Namespace) -> _Exchange:
    """Send the pieces and read one frame; after raw bytes and text, read until nothing more comes."""
    exchange, several = _Exchange(bytearray()), options.raw or options.text is not None
    try:
        for index, piece in enumerate(pieces):
            if index:
                time.sleep(options.pause_s)
            sock.settimeout(options.timeout_s)
            sock.sendall(piece)
        sent = time.perf_counter()
        while not (whole := _is_whole(exchange.data)) or several:
            sock.settimeout(_QUIET_S if whole else max(sent + options.timeout_s - time.perf_counter(), 1e-3))
            received = sock.recv(1 << 16)
            if not received:
                exchange.ending = "closed by the server"
                break
            exchange.last_s = time.perf_counter() - sent
            exchange.first_s = exchange.first_s or exchange.last_s
            exchange.data += received
    except TimeoutError:
        if not _is_whole(exchange.data):
            exchange.ending = f"closed by us: no complete reply within {options.timeout_s:g} s"
    except OSError as exc:
        exchange.ending = f"lost: {exc.strerror or exc}"
    return exchange


def _is_text(data: bytearray) -> bool:
    return bool(data) and data[0] >= 0x20  # as a length it would announce half a gigabyte


def _is_whole(data: bytearray) -> bool:
    """Whether the bytes end where a frame or a line ends."""
    return data.endswith(b"\n") if _is_text(data) else bool(data) and _frame_ends(data)[-1] == len(data)


def _frame_ends(data: bytearray) -> list[int]:
    """Return where the whole frames at the start of the bytes end, after a 0."""
    ends = [0]
    while len(data) >= ends[-1] + 4:
        end = ends[-1] + 4 + int.from_bytes(data[ends[-1] : ends[-1] + 4], "big")
        if end > len(data):
            break
        ends.append(end)
    return ends


def _print_reply(exchange: _Exchange) -> None:
    data = exchange.data
    if not data:
        print("no reply")
        return
    times = f"first after {exchange.first_s * 1e3:.2f} ms, last after {exchange.last_s * 1e3:.2f} ms"
    print(f"reply: {len(data)} bytes, {times}")
    print(hex_dump(data))
    if _is_text(data):
        print(f"text: {data[:_MAX_TEXT].decode('ascii', 'replace').rstrip()}")
        return
    ends = _frame_ends(data)
    for start, end in pairwise(ends):
        payload = data[start + 4 : end]
        print(f"payload of {len(payload)} bytes:")
        try:
            print(describe(loads(payload)))
        except UnsafePayload as exc:
            print(f"not plain data: {exc}")
    if ends[-1] < len(data):
        print(f"{len(data) - ends[-1]} bytes of a frame that is not complete")


PING = Command(_add_ping, _ping)
INFO = Command(_add_info, _info)
INFER = Command(_add_infer, _infer)
BENCH = Command(_add_bench, _bench)
DEBUG = Command(_add_debug, _debug)


if __name__ == "__main__":
    # By its own name, so that the commands in the table are found in this module and not in a second copy.
    from client import main as _main

    sys.exit(_main())
