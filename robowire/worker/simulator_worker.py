"""The process of one simulator: it executes requests from an inherited socket, one at a time.

``python -m robowire.worker.simulator_worker`` is started by :mod:`robowire.serving.simulator.process`, with
the Python of that simulator family, which may be as old as 3.8.

The protocol between the two processes stands in :mod:`robowire.worker.process_frames`: a call, answered by an
error, or by the bytes of a reply, ready for the client, in the frame or in one of two regions of shared
memory, so that the server only has to send them. The first answer comes without a call: whether the simulator
could be imported.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import sys
import time
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from robowire.errors import (
    BackendError,
    InvalidParams,
    MissingDependency,
    RequestError,
    RobowireError,
    SnapshotMismatch,
    TransportError,
    TruncatedFrame,
)
from robowire.images import encode_images, require_pillow
from robowire.interfaces import Chunked, Named, Simulator, StepResult
from robowire.meta import MetaAction
from robowire.registry import Entry, load_simulator, nearest
from robowire.specs import SimulatorSpec, ctrl_type_name
from robowire.transport.connection import Connection
from robowire.wire.framing import MAX_MAX_PAYLOAD
from robowire.wire.messages import Request, error_reply, ok, parse_call
from robowire.wire.methods import LoadTask, handlers, worker_parameters
from robowire.wire.packed_simulator import STEP_REQUEST, StepReplyWriter, read_step_request
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode, encode_frame
from robowire.wire.text_safety import quoted
from robowire.worker.fingerprint import fingerprint, imported_packages, versions
from robowire.worker.mujoco_probe import probe
from robowire.worker.parent_process import end_with_parent
from robowire.worker.process_frames import NO_REGION, answer_frame, split_call
from robowire.worker.refused_start import SEND_TIMEOUT_S, message_of, refuse_start
from robowire.worker.shared_memory import SharedMemory
from robowire.worker.snapshots import (
    Continuations,
    fingerprint_of,
    first_difference,
    pack,
    restorable,
    unpack,
)

__all__ = ["SimulatorWorker", "main", "read_start", "run"]

logger = logging.getLogger(__name__)

# Through the socket a reply is copied twice more. Measured for one call: 0.17 ms shared and 0.19 ms through
# the socket at 64 KiB, 0.40 and 1.00 ms at 3 MiB; far below 64 KiB there is no difference.
SHARED_MIN = 64 * 1024

_PACKED_STEP = bytes((STEP_REQUEST,))


class SimulatorWorker:
    """Executes the methods of one simulator. The server has checked their order and their parameters.

    Args:
        name: Name of the simulator in the server's table.
        entry: Its row.
        simulator: The simulator, without a task.
    """

    def __init__(self, name: str, entry: Entry, simulator: Simulator) -> None:
        self._name = name
        self._entry = entry
        self._simulator = simulator
        self._spec: SimulatorSpec | None = None
        self._meta = False  # whether observations are sent as MetaObs
        self._keys: tuple[str, ...] | None = None  # keys of an observation that are sent; None: all
        self._image_encoding, self._jpeg_quality = "raw", 0
        self._steps = 0
        self._begun = False  # whether there is an episode, running or ended
        self._fingerprint: dict[str, str] | None = None  # of the loaded task, once it was needed
        self._continuations = Continuations()  # of the loaded task
        # What the simulator and its task imported. Later imports, such as an encoder, do not affect results.
        self._packages = imported_packages()
        self._methods: Mapping[str, Callable[..., dict[str, Any]]] = handlers(
            self, (*worker_parameters(), "probe")
        )

    def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to one method.

        Raises:
            RequestError: The method's own error; an exception of the simulator becomes ``BackendError``.
        """
        try:
            return ok(**self._methods[method](**params))
        except RequestError:
            raise
        except Exception as exc:  # a simulator may raise anything, and the next method may work
            logger.exception("%r failed", method)
            raise BackendError(f"{method} failed in {self._name}: {message_of(exc)}") from exc

    def _list_tasks(self, suite: str | None) -> dict[str, Any]:
        return {"tasks": list(self._simulator.list_tasks(suite))}

    def _load_task(self, **params: Any) -> dict[str, Any]:
        task = LoadTask(**params)
        assert task.task_name is not None, "the server filled it in"
        known = tuple(self._simulator.names) if isinstance(self._simulator, Named) else ("raw",)
        if task.names is not None and task.names not in known:
            offered = " or ".join(map(repr, known))
            raise InvalidParams(f"names is {quoted(task.names)}, but {self._name} offers {offered}")
        self._meta = task.observation_format == "meta"
        self._keys = task.observation_keys
        self._image_encoding, self._jpeg_quality = task.image_encoding, task.jpeg_quality
        self._require_raw()
        self._begun, self._fingerprint, self._continuations = False, None, Continuations()
        self._spec = self._simulator.load_task(task.task_name, task.options())
        self._packages = imported_packages()
        if self._image_encoding != "raw":
            self._require_encoder()
        if self._keys is not None:
            # Only an observation shows which keys there are. A seed, so that nothing is drawn.
            _check_keys(self._keys, self._simulator.reset(seed=0))
        return self._spec.to_wire()

    def _require_raw(self) -> None:
        """Refuse options of raw observations for a MetaObs."""
        for name, wanted in (
            ("observation_keys", self._keys is not None),
            ("image_encoding", self._image_encoding != "raw"),
        ):
            if wanted and self._meta:
                raise InvalidParams(
                    f"{name} is for observation_format 'raw': a MetaObs has its own fields and one array of "
                    "images, which camera_names, image_height and image_width make smaller"
                )

    def _require_encoder(self) -> None:
        try:
            require_pillow(f"image_encoding {self._image_encoding!r} in the process of {self._name}")
        except MissingDependency as exc:
            raise BackendError(str(exc)) from exc

    def _reset(self, seed: int | None, init_state: int | None) -> dict[str, Any]:
        self._continuations.end()
        observation = self._simulator.reset(seed=seed, init_state=init_state)
        self._steps, self._begun = 0, True
        return {"observation": self._outgoing(observation)}

    def _step(self, action: np.ndarray | MetaAction) -> dict[str, Any]:
        result = self._advance(self._own(action))
        return {
            "observation": self._outgoing(result.observation),
            "reward": float(result.reward),
            "terminated": bool(result.terminated),
            "truncated": bool(result.truncated),
            "info": dict(result.info),
        }

    def _step_chunk(self, actions: Sequence[np.ndarray | MetaAction]) -> dict[str, Any]:
        # All are converted before any is executed: a chunk that does not fit changes nothing.
        rewards, result = self._advance_chunk([self._own(action) for action in actions])
        return {
            "observation": self._outgoing(result.observation),
            "rewards": rewards,
            "terminated": bool(result.terminated),
            "truncated": bool(result.truncated),
            "info": dict(result.info),
            "steps": len(rewards),
        }

    def _render(self, camera_name: str | None) -> dict[str, Any]:
        return {"image": self._simulator.render(camera_name)}

    def _snapshot(self) -> dict[str, Any]:
        payload = pack(restorable(self._simulator), self._own_fingerprint(), self._steps)
        try:
            unpack(payload, self._own_fingerprint())  # before an id is given out for it
        except SnapshotMismatch as exc:
            raise BackendError(f"{self._name} saves a state that cannot be restored: {exc}") from exc
        self._continuations.begin(payload)
        return {"payload": payload}

    def _restore(self, payload: bytes) -> dict[str, Any]:
        state, steps = unpack(payload, self._own_fingerprint())
        self._continuations.end()
        observation = restorable(self._simulator).restore_state(state)
        self._steps, self._begun = steps, True
        return {"observation": self._outgoing(observation)}

    def _verify(self, payload: bytes, steps: int) -> dict[str, Any]:
        simulator = restorable(self._simulator)
        state, _ = unpack(payload, self._own_fingerprint())
        action_dim = self._spec.action_dim if self._spec is not None else None
        own = simulator.save_state() if self._begun else None
        running = own is not None and pack(simulator, self._own_fingerprint(), self._steps) == payload
        try:
            if not running:  # else that run itself goes on, by actions of ours
                compared, difference = self._continuations.first_difference(
                    simulator, payload, state, steps=steps
                )
            if running or difference is None:
                compared, difference = first_difference(
                    simulator, state, action_dim=action_dim or 0, steps=steps, running=running
                )
        finally:
            self._continuations.end()  # a restored run is not the one that was saved
            if own is not None:
                simulator.restore_state(own)
        return {"exact": difference is None, "steps": compared, "difference": difference}

    def _own_fingerprint(self) -> dict[str, str]:
        assert self._spec is not None, "load_task comes first"
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(restorable(self._simulator), self._spec)
        return self._fingerprint

    def _get_info(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions(self._packages),
            "fingerprint": fingerprint(self._packages),
            # Settings of a GL backend or a library before its import change images, and sometimes physics.
            "environ": {name: os.environ.get(name, "") for name in self._entry.environ},
        }

    def _probe(self) -> dict[str, Any]:
        mujoco = sys.modules.get("mujoco")  # imported by the simulator, if it uses MuJoCo
        return {} if mujoco is None else probe(mujoco)

    def _advance(self, action: np.ndarray) -> StepResult:
        result = self._simulator.step(action)
        self._steps += 1
        self._continuations.add(action, result)
        return result

    def _advance_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        rewards: list[float] = []
        if isinstance(self._simulator, Chunked):
            self._continuations.end()  # what each of these steps gives is not shown
            rewards, result = self._simulator.step_chunk(actions)
            self._steps += len(rewards)
            return [float(reward) for reward in rewards], result
        for action in actions:
            result = self._advance(action)
            rewards.append(float(result.reward))
            if result.terminated or result.truncated:
                break
        return rewards, result

    def _own(self, action: np.ndarray | MetaAction) -> np.ndarray:
        if not isinstance(action, MetaAction):
            return action
        action.ctrl_type = ctrl_type_name(action.ctrl_type)
        return self._simulator.from_meta_action(action)

    def _outgoing(self, observation: Mapping[str, np.ndarray]) -> Any:
        if not self._meta:
            keys = observation if self._keys is None else self._keys
            chosen = {key: observation[key] for key in keys}
            if self._image_encoding == "raw":
                return chosen
            return encode_images(chosen, self._image_encoding, quality=self._jpeg_quality)
        meta = self._simulator.to_meta_obs(observation)
        # Not part of a single observation, and a policy may need it.
        meta.timestep = self._steps
        if not meta.raw_lang and self._spec is not None:
            meta.raw_lang = self._spec.instruction
        return meta


def _check_keys(keys: Sequence[str], observation: Mapping[str, Any]) -> None:
    for key in keys:
        if key not in observation:
            raise InvalidParams(
                f"observation_keys names {quoted(key)}, which this task does not observe."
                + f"{nearest(key[:100], observation)} Known: {', '.join(sorted(observation))}"
            )


def main(argv: Sequence[str]) -> None:
    """Import the simulator that ``argv`` describes and answer calls until the server closes the socket.

    Args:
        argv: One JSON object: ``name``; ``target``, ``extra``, ``environ``, ``install`` of its entry;
            ``socket``, and ``memory``, a list: inherited file descriptors.
    """
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    start = json.loads(argv[0])
    name, entry = read_start(start)
    run(name, entry, start["socket"], start["memory"])


def read_start(start: Mapping[str, Any]) -> tuple[str, Entry]:
    """Return name and entry of the simulator that a worker is told to run."""
    entry = Entry(start["target"], start["extra"], start["environ"], install=start.get("install", ""))
    return start["name"], entry


def run(
    name: str, entry: Entry, descriptor: int, memory: Sequence[int], simulator: Simulator | None = None
) -> None:
    """Answer calls until the server closes the socket.

    Args:
        name: Name of the simulator.
        entry: Its row of the table.
        descriptor: Of the socket; owned by this function, as are the next.
        memory: Descriptors of shared memory.
        simulator: One without a task; ``None`` imports and makes it.
    """
    connection = Connection(socket.socket(fileno=descriptor), max_payload=MAX_MAX_PAYLOAD)
    regions = [SharedMemory(fd) for fd in memory]
    for region in regions:
        if region.size:
            region.view(0)  # mapped before the server seals it against further maps
    answers = _Answers(connection, regions)
    try:
        try:
            simulator = simulator or load_simulator(name, {name: entry})
        except Exception as exc:  # importing and building a simulator may raise anything
            refuse_start(connection, f"simulator {name!r}", exc)
            return
        answers.send(ok(), NO_REGION)
        _serve(connection, answers, SimulatorWorker(name, entry, simulator))
    except (TransportError, TruncatedFrame) as exc:
        logger.warning("the server has ended: %s", exc)
    finally:
        if simulator is not None:
            simulator.close()
        connection.close()
        answers.close()


def _serve(connection: Connection, answers: _Answers, worker: SimulatorWorker) -> None:
    while True:
        # The rest of a request follows its first byte at once, or the server is dead and the socket ends.
        payload = connection.receive(wait_s=None, finish_s=SEND_TIMEOUT_S)
        if payload is None:
            return
        began = time.monotonic()
        assert isinstance(payload, bytearray)
        region, payload = split_call(payload)
        call: Request
        known: int | None = None
        if payload[:1] == _PACKED_STEP:
            step = read_step_request(payload)
            call, known = step, step.known
        else:
            call = parse_call(loads(payload))
        try:
            answers.send(worker.call(call.method, call.params), region, known, began=began)
        except RequestError as exc:
            connection.send(encode_frame(error_reply(exc)), timeout_s=SEND_TIMEOUT_S)


class _Answers:
    """Sends replies: large ones through the shared memory that the server lends for this one.

    Args:
        connection: To the server.
        regions: Owned by this object.
    """

    def __init__(self, connection: Connection, regions: Sequence[SharedMemory]) -> None:
        self._connection = connection
        self._regions = regions
        self._packer = StepReplyWriter()

    def send(
        self, reply: Mapping[str, Any], region: int, known: int | None = None, *, began: float = 0.0
    ) -> None:
        """Send a reply to a call that was executed just now.

        Args:
            reply: What is sent, packed where ``known`` is given.
            region: Memory that may be used.
            known: Number of the layout that the client knows.
            began: When the call came.
        """
        executed = time.monotonic()
        shared = NO_REGION

        def allocate(length: int) -> memoryview:
            nonlocal shared
            if length < SHARED_MIN or region == NO_REGION or not self._regions[region].can_hold(length):
                shared = NO_REGION
                return memoryview(bytearray(length))
            shared = region
            return self._regions[region].allocate(length)

        try:
            packed = None if known is None else self._packer.write(reply, known, allocate)
            buffers: Sequence[Buffer] = encode(reply) if packed is None else [packed]
        except RobowireError as exc:  # an ``info`` that is not plain data, for example
            raise BackendError(f"the simulator's reply cannot be sent: {exc}") from exc
        if packed is None:
            length = sum(map(len, buffers))
            view, at = allocate(length), 0
            for buffer in buffers:
                view[at : at + len(buffer)] = buffer
                at += len(buffer)
            buffers = [view]
        over = bool(reply.get("terminated") or reply.get("truncated"))
        frame = answer_frame(over, shared, buffers, began=began, executed=executed)
        self._connection.send(frame, timeout_s=SEND_TIMEOUT_S)

    def close(self) -> None:
        """Free the memory."""
        for region in self._regions:
            region.close()


if __name__ == "__main__":
    main(sys.argv[1:])
