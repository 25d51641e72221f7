"""The process of one policy: it answers observations from an inherited socket, one call at a time.

``python -m robowire.worker.policy_worker`` is started by :mod:`robowire.serving.policy.process`, with the
Python of the policy's environment, which may be as old as 3.8 and needs numpy. The first payload is a pickled
dict, what to load; its answer is a pickled reply with the policy's spec, or an error. Then calls come, as
:mod:`robowire.worker.policy_frames` describes.
"""

from __future__ import annotations

import gc
import json
import logging
import platform
import socket
import sys
import time
import weakref
from typing import Any, Mapping, Sequence

import numpy as np

from robowire.errors import (
    BackendError,
    RemoteProtocolError,
    RequestError,
    TransportError,
    TruncatedFrame,
)
from robowire.interfaces import Batched, EpisodeSession, Policy, PolicyOptions, SessionPolicy
from robowire.registry import Entry, load_policy
from robowire.transport.connection import Connection
from robowire.wire.framing import MAX_MAX_PAYLOAD
from robowire.wire.messages import error_reply, ok
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode_frame
from robowire.worker.fingerprint import imported_packages, versions
from robowire.worker.parent_process import end_with_parent
from robowire.worker.policy_frames import (
    END,
    NO_REGION,
    RESET,
    Call,
    actions_frame,
    error_frame,
    read_call,
    read_observations,
)
from robowire.worker.refused_start import SEND_TIMEOUT_S, message_of, refuse_start
from robowire.worker.shared_memory import SharedMemory

__all__ = ["ANSWER_REGION", "CALL_REGION", "PolicyWorker", "main"]

logger = logging.getLogger(__name__)

CALL_REGION, ANSWER_REGION = 0, 1

# As for the replies of simulators: far below this a copy through the socket costs the same.
SHARED_MIN = 64 * 1024


class PolicyWorker:
    """Answers the calls of one policy.

    Args:
        policy: The policy.
        regions: Shared memory of calls and answers, in this order.
    """

    def __init__(self, policy: Policy, regions: Sequence[SharedMemory]) -> None:
        self._policy = policy
        self._regions = regions
        self._layouts: dict[bytes, Any] = {}
        self._sessions: dict[int, EpisodeSession] = {}

    def call(self, call: Call) -> list[Buffer]:
        """Return the frame that answers a call; empty for a call without an answer."""
        if call.kind == RESET:
            if call.session in self._sessions:
                self._sessions[call.session].reset()
            return []
        if call.kind == END:
            session = self._sessions.pop(call.session, None)
            if session is not None:
                session.close()
            return []
        began = time.monotonic()
        shared = call.region != NO_REGION
        memory = self._regions[call.region].view(call.length) if shared else call.inline
        # An array, since every view of it refers to it; of a memoryview numpy takes another one.
        arrays = np.frombuffer(memory, np.uint8)
        alive = weakref.ref(arrays)
        actions, error = self._infer(call, arrays)
        executed = time.monotonic()
        del arrays
        # What a policy keeps of an observation must not change when the next one is written there.
        kept = shared and alive() is not None and (gc.collect(), alive())[1] is not None
        if error is not None:
            return error_frame(error_reply(error), kept=kept)
        return actions_frame(actions, kept=kept, allocate=self._allocate, began=began, executed=executed)

    def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            session.close()

    def _infer(self, call: Call, arrays: np.ndarray) -> tuple[np.ndarray, RequestError | None]:
        nothing = np.empty(0, np.float32)
        try:
            observations = read_observations(call, arrays, self._layouts)
            actions = self._asked(call.session).infer(observations)
            # A reference to the observations, or to what was made of them, is what ``kept`` looks for.
            return np.array(actions, np.float32, order="C"), None
        except RequestError as exc:
            return nothing, type(exc)(str(exc))
        except Exception as exc:  # the top of the policy's own code
            logger.exception("the policy failed")
            return nothing, BackendError(f"the policy failed: {message_of(exc)}")

    def _asked(self, number: int) -> Policy | EpisodeSession:
        if not number:
            return self._policy
        session = self._sessions.get(number)
        if session is None:
            assert isinstance(self._policy, SessionPolicy), "the server opens sessions of such policies only"
            session = self._sessions[number] = self._policy.open_session()
        return session

    def _allocate(self, length: int) -> tuple[int, memoryview]:
        if length < SHARED_MIN:
            return NO_REGION, memoryview(bytearray(length))
        return ANSWER_REGION, self._regions[ANSWER_REGION].allocate(length)


def _load(order: Mapping[str, Any]) -> Policy:
    options = dict(order["options"])
    if options.get("camera_names") is not None:
        options["camera_names"] = tuple(options["camera_names"])
    name = order["name"]
    entry = Entry(order["target"], order["extra"], order["environ"], install=order["install"])
    return load_policy(name, PolicyOptions(**options), {name: entry})


def _described(policy: Policy, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the server knows of the policy before it asks."""
    has_sessions = isinstance(policy, SessionPolicy)
    return ok(
        spec=policy.spec.to_wire(),
        max_batch_size=int(policy.max_batch_size) if isinstance(policy, Batched) else None,
        stateful=bool(policy.stateful) if isinstance(policy, SessionPolicy) else None,
        has_sessions=has_sessions,
        device=str(getattr(policy, "device", options.get("device"))),
        python=platform.python_version(),
        versions=versions(imported_packages()),
    )


def main(argv: Sequence[str]) -> None:
    """Load the policy that the first payload names, and answer calls until the server closes the socket.

    Args:
        argv: One JSON object: ``socket``, and ``memory``, a list: inherited file descriptors.
    """
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    start = json.loads(argv[0])
    connection = Connection(socket.socket(fileno=start["socket"]), max_payload=MAX_MAX_PAYLOAD)
    regions = [SharedMemory(fd) for fd in start["memory"]]
    worker = None
    try:
        order = loads(_receive(connection))
        try:
            policy = _load(order)
            described = _described(policy, order["options"])
        except Exception as exc:  # importing and building a policy may raise anything
            refuse_start(connection, f"policy {order['name']!r}", exc)
            return
        worker = PolicyWorker(policy, regions)
        gc.collect()
        gc.freeze()  # else a collection looks at all that the policy imported, in the middle of an inference
        connection.send(encode_frame(described), timeout_s=SEND_TIMEOUT_S)
        while True:
            answer = worker.call(read_call(_receive(connection)))
            if answer:
                connection.send(answer, timeout_s=SEND_TIMEOUT_S)
    except EOFError:
        pass
    except (TransportError, TruncatedFrame) as exc:
        logger.warning("the server has ended: %s", exc)
    finally:
        if worker is not None:
            worker.close()
        connection.close()
        for region in regions:
            region.close()


def _receive(connection: Connection) -> bytearray:
    # The rest of a call follows its first byte at once, or the server is dead and the socket ends.
    payload = connection.receive(wait_s=None, finish_s=SEND_TIMEOUT_S)
    if payload is None:
        raise EOFError
    if not isinstance(payload, bytearray):
        raise RemoteProtocolError("the server sent a line of text")
    return payload


if __name__ == "__main__":
    main(sys.argv[1:])
