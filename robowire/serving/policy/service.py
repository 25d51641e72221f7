"""The policy service: observations in, chunks of actions out. No socket, no bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import SpecMismatch, UnknownMethod
from robowire.images import has_pillow
from robowire.interfaces import Closable, Foreign, Policy, SessionPolicy, StridedImages
from robowire.meta import MetaObs
from robowire.registry import nearest
from robowire.serving.metrics import Metrics
from robowire.serving.policy.dispatcher import Dispatcher, DispatchOptions, PendingInference
from robowire.serving.policy.episode import Episode
from robowire.serving.policy.replica_dispatcher import ReplicaDispatcher
from robowire.serving.policy.replicas import ReplicatedPolicy
from robowire.serving.policy.session_dispatcher import SessionDispatcher
from robowire.serving.policy.validation import check_observation, observation_kind
from robowire.serving.recorder import SessionRecording, recorded
from robowire.serving.service import Deferred, Service
from robowire.serving.session_activity import named_images
from robowire.serving.sessions import Peer, Session
from robowire.version import __version__
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD
from robowire.wire.messages import PROTOCOL_VERSION, Request, ok
from robowire.wire.methods import POLICY_METHODS, check_params
from robowire.wire.packed import IMAGE_KINDS
from robowire.wire.packed_policy import PolicyLayout
from robowire.worker.fingerprint import imported_packages, versions

__all__ = ["PolicyService", "PolicySession"]

# The weight of older chunks over newer ones; arXiv 2304.13705, section IV-B.
ENSEMBLE_K = 0.01

_METHODS = ("hello", "ping", "get_info", "reset", "stats", "get_status")

# What the author of a client must know and no number of the spec says; the long form is the documentation of
# MetaObs and MetaAction.
_CONVENTIONS = {
    "image": "uint8 (cameras, 3, height, width), RGB, upright, in the order of camera_names",
    "units": "radians, metres, seconds",
    "gripper": "last entry of the action: 1 open, 0 closed",
}

# Of one session on a dashboard.
_MAX_SHOWN_CAMERAS = 3

# The drain is over when the policy's thread is told to end, so only a policy that hangs is still at work.
_GIVE_UP_S = 0.5


@dataclass(eq=False)
class PolicySession(Session):
    """One client's session.

    Attributes:
        episode: What is remembered of the running episode.
        temporal_agg: Whether it is answered one action, the average over time; ``None`` for what the server
            was started with. A frontend sets it whose wire says so.
        recording: Where its requests are recorded; ``None`` before the first one, or for nowhere.
    """

    packs = True

    episode: Episode = field(default_factory=Episode)
    temporal_agg: bool | None = None
    recording: SessionRecording | None = None


class PolicyService(Service[PolicySession]):
    """Answer observations with a policy's actions.

    Args:
        policy: Used by this service only.
        options: Batching and chunk length.
        token: Token that clients must send; ``None`` for none.
        device: Device the policy runs on, for ``get_info``.
        model_name: Name of its checkpoint, not its path, for ``get_info``; ``None`` where it has none.
        checkpoint_format: What wrote it, in words, for ``get_info``; ``None`` where nobody can say.
        max_payload: Largest request that the native wire accepts, in bytes, for ``get_info``.

    Attributes:
        dispatcher: Runs the policy.
        policy: As given.
        strided_images: Whether it takes images in any order of memory.
    """

    kind = "policy"
    methods = frozenset((*_METHODS, "infer", "layout"))
    error_level = logging.WARNING

    def __init__(
        self,
        policy: Policy,
        options: DispatchOptions | None = None,
        *,
        token: str | None = None,
        metrics: Metrics | None = None,
        device: str = "cpu",
        model_name: str | None = None,
        checkpoint_format: str | None = None,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
    ) -> None:
        super().__init__(token=token, metrics=metrics)
        self._options = options or DispatchOptions()
        self.policy = policy
        self._device = device
        self._model_name = model_name
        self._checkpoint_format = checkpoint_format
        self._max_payload = max_payload
        # The policy has been loaded, here or in a process of its own.
        self._versions = (
            dict(policy.foreign_versions) if isinstance(policy, Foreign) else versions(imported_packages())
        )
        self.dispatcher: SessionDispatcher | ReplicaDispatcher | Dispatcher
        if isinstance(policy, SessionPolicy):
            self.dispatcher = SessionDispatcher(policy, self._options, self.metrics)
        elif isinstance(policy, ReplicatedPolicy):
            self.dispatcher = ReplicaDispatcher(policy, self._options, self.metrics)
        else:
            self.dispatcher = Dispatcher(policy, self._options, self.metrics)
        self._chunk_size = self._options.chunk_size
        spec = self.dispatcher.spec
        self._ctrl_space, self._ctrl_type = spec.ctrl
        # Where its caller need not wait.
        self._begin = self.dispatcher.begin if isinstance(self.dispatcher, Dispatcher) else None
        coefficient = spec.temporal_ensemble_coeff
        self._ensemble_k = ENSEMBLE_K if coefficient is None else coefficient
        self._temporal_agg = self._options.temporal_agg or coefficient is not None
        self._stateful = isinstance(policy, SessionPolicy) and policy.stateful
        self.strided_images = isinstance(policy, StridedImages) and policy.strided_images

    @property
    def chunk_size(self) -> int:
        """Number of actions in a reply."""
        return 1 if self._temporal_agg else min(self._options.chunk_size, self.dispatcher.spec.chunk_size)

    def infer(self, session: PolicySession, request: Request) -> ActionChunk | Deferred:
        """Return the next actions for the observations of one request, deferred where its session defers.

        Raises:
            SpecMismatch: An observation does not fit the policy.
            Overloaded: Too many observations wait already.
            BackendError: The policy failed.
        """
        if self.recorder is not None:
            return self._infer_recorded(session, request)
        if self._begin is None:
            return self._infer_now(session, request)
        begun = self._begin(
            request.observations,
            client=session.id,
            has_left=session.peer.has_left,
            kind=request.kind,
            on_done=session.on_done,
        )
        if isinstance(begun, PendingInference):
            return _DeferredChunk(self._inferred, session, request, begun)
        actions, seconds = begun
        return self._inferred(session, request, actions, seconds * 1e3)

    def _infer_recorded(self, session: PolicySession, request: Request) -> ActionChunk:
        return recorded(
            self._recording(session),
            "infer",
            lambda: {"observations": list(request.observations), "batched": request.batched},
            lambda: self._infer_now(session, request),
            _values,
        )

    def _recording(self, session: PolicySession) -> SessionRecording | None:
        if session.recording is None and self.recorder is not None:
            peer = session.peer
            session.recording = self.recorder.open(
                kind=self.kind, wire=peer.wire, client=peer.address, info=self.info(session)
            )
        return session.recording

    @property
    def defers(self) -> bool:
        """Whether an inference waits for nothing in the thread of a session that has an ``on_done``."""
        # A recording and a trace follow a request in one thread.
        return self._begin is not None and self.recorder is None and self.tracing is None

    def _infer_now(self, session: PolicySession, request: Request) -> ActionChunk:
        chunk = self.dispatcher.submit(
            request.observations, client=session.id, has_left=session.peer.has_left, kind=request.kind
        )
        return self._inferred(session, request, chunk.actions, chunk.infer_ms or 0.0)

    def _inferred(
        self, session: PolicySession, request: Request, whole: np.ndarray, infer_ms: float
    ) -> ActionChunk:
        """Return what is answered to a request.

        Args:
            session: Who asked.
            request: What was asked.
            whole: The policy's whole chunk, (n, B, action_dim).
            infer_ms: Milliseconds that the policy took.
        """
        activity, first = session.activity, request.observations[0]
        activity.step(infer_ms)
        activity.task = first.raw_lang
        if activity.wanted:
            activity.keep(partial(self._shown, first, whole))
        actions, raw = whole[: self._chunk_size], None
        averages = self._temporal_agg if session.temporal_agg is None else session.temporal_agg
        if not averages and not request.batched:  # the common case
            return ActionChunk(
                actions[:, 0], self._ctrl_space, self._ctrl_type, None, first.timestep, infer_ms
            )
        timesteps = [observation.timestep for observation in request.observations]
        if averages:
            for observation in request.observations:
                if observation.delay:
                    raise SpecMismatch(
                        "this session averages over time, and so continues no prefix: send none"
                    )
            raw = actions
            # Over the policy's whole chunk: what a reply may hold has nothing to do with the average.
            rows = whole.swapaxes(0, 1)
            actions = session.episode.ensemble(timesteps, rows, k=self._ensemble_k)[np.newaxis]
        if not request.batched:
            actions, raw = actions[:, 0], None if raw is None else raw[:, 0]
        timestep = np.array(timesteps)[:, np.newaxis] if request.batched else timesteps[0]
        return ActionChunk(actions, self._ctrl_space, self._ctrl_type, raw, timestep, infer_ms)

    def _shown(self, observation: MetaObs, whole: np.ndarray) -> dict[str, Any]:
        """Return copies of what a dashboard shows of an inference; of a batch, its first row."""
        names = self.dispatcher.spec.camera_names or ()
        given = observation.image
        images: Sequence[np.ndarray] = ()
        if given is not None and given.dtype == np.uint8 and given.ndim == 4 and given.shape[1] == 3:
            images = list(given[:_MAX_SHOWN_CAMERAS])
        return {
            "images": {
                (names[index] if index < len(names) else f"camera {index}"): image.transpose(1, 2, 0).copy()
                for index, image in enumerate(images)
            },
            "chunk": np.array(whole[:, 0], np.float32),
            "state": None if observation.state is None else np.array(observation.state, np.float32),
            "instruction": str(observation.raw_lang)[:200],
        }

    def session_images(self, name: str) -> dict[str, Any] | None:
        """Return the images that a session sent last, and the chunk that answered them."""
        for session in list(self._sessions.values()):
            if name == f"client {session.id}":
                shown = session.activity.want()
                if not shown:
                    return {"images": {}, "message": "images are shown from its next request on"}
                return {**shown, "images": named_images(shown["images"])}
        return None

    def load(self) -> dict[str, int]:
        """Return how many observations wait for the policy, and how many may."""
        return {"queue_depth": self.dispatcher.waiting, "max_waiting": self._options.max_waiting}

    def describe(self) -> str:
        """Return one line for a person."""
        spec = self.dispatcher.spec

        def known(value: object) -> object:
            return "any" if value is None else value

        cameras = "any" if spec.camera_names is None else ", ".join(spec.camera_names) or "none"
        if spec.image_height is not None or spec.image_width is not None:
            cameras += f" ({known(spec.image_height)}x{known(spec.image_width)})"
        return (
            f"policy {spec.policy}, device {self._device}, "
            f"chunk_size {self.chunk_size} ({self._chunk_size_of()}), cameras {cameras}, "
            f"state_dim {known(spec.state_dim)}, action_dim {known(spec.action_dim)} "
            f"({known(spec.ctrl_space)} {known(spec.ctrl_type)})"
        )

    def _chunk_size_of(self) -> str:
        asked, given = self._options.chunk_size, self.dispatcher.spec.chunk_size
        if asked > given and not self._temporal_agg:
            return f"the policy's whole chunk, shorter than --chunk_size {asked}"
        return f"of {given}"

    def info(self, session: PolicySession | None = None) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` report."""
        spec = self.dispatcher.spec
        return {
            **spec.to_wire(),
            "chunk_size": self.chunk_size,
            "n_action_steps": spec.n_action_steps and min(spec.n_action_steps, self.chunk_size),
            "temporal_agg": self._temporal_agg,
            **self._rtc(),
            # Only where it is so: it says that a lost session costs the episode, as temporal_agg does.
            **({"stateful": True} if self._stateful else {}),
            "device": self._device,
            # Only where there are several.
            **({"replicas": self.policy.describe()} if isinstance(self.policy, ReplicatedPolicy) else {}),
            "model_name": self._model_name,
            # Only where it is known.
            **({} if self._checkpoint_format is None else {"checkpoint_format": self._checkpoint_format}),
            "max_payload": self._max_payload,
            "image_encodings": list(IMAGE_KINDS) if has_pillow() else [],
            "conventions": _CONVENTIONS,
            "versions": self._versions,
            "version": __version__,
            "protocol_version": PROTOCOL_VERSION,
        }

    def _rtc(self) -> dict[str, Any]:
        """Return what real-time chunking this server does: none where chunks are averaged or too short."""
        spec = self.dispatcher.spec
        longest = 0 if self._temporal_agg else min(spec.rtc_max_delay_steps, self.chunk_size - 1)
        return {"rtc": spec.rtc if longest else "none", "rtc_max_delay_steps": longest}

    def close(self) -> None:
        """End the policy's thread, and the policy where it holds something."""
        self.dispatcher.close(timeout_s=_GIVE_UP_S)
        if isinstance(self.policy, Closable):
            self.policy.close()
        super().close()

    def close_session(self, session: PolicySession) -> None:
        """Free the episode."""
        session.episode.clear()
        self.dispatcher.end(session.id)
        if session.recording is not None:
            session.recording.close()
        super().close_session(session)

    def _make_session(self, number: int, peer: Peer, *, authenticated: bool) -> PolicySession:
        episode = Episode(on_clear=partial(self.dispatcher.reset, number))
        return PolicySession(number, peer, authenticated, episode=episode)

    def _reset(self, session: PolicySession) -> dict[str, Any]:
        session.episode.clear()
        return ok()

    def _declare(self, session: PolicySession, request: Request) -> dict[str, Any]:
        """Keep a layout, whose prototype is compared with the spec here, and not again for each request.

        Raises:
            SpecMismatch: Observations of it do not fit the policy.
        """
        layout: PolicyLayout = request.params["layout"]
        spec = self.dispatcher.spec
        (prototype,) = request.observations
        check_observation(prototype, spec)
        # A delay is compared with its prefix and the spec in each request.
        direct = request.params["direct"] and prototype.delay is None
        layout.checked = observation_kind(prototype) if direct else None
        session.layouts[layout.layout.number] = layout
        return ok(ctrl_space=self._ctrl_space, ctrl_type=self._ctrl_type)

    def _execute(self, session: PolicySession, request: Request) -> ActionChunk | Deferred | dict[str, Any]:
        # Parameters are ignored: none of these methods has any, and a newer client may send some.
        if request.method == "infer" and request.observations:
            return self.infer(session, request)
        if request.method == "ping":
            return ok()
        if request.method == "get_info":
            return ok(**self.info(session))
        if request.method == "reset":
            return recorded(self._recording(session), "reset", dict, partial(self._reset, session))
        if request.method == "stats":
            return ok(**self.stats())
        if request.method == "get_status":
            return ok(**self.status(session, **check_params(request, POLICY_METHODS)))
        if request.method == "layout" and request.observations:
            return self._declare(session, request)
        method = request.method[:40]
        raise UnknownMethod(
            f"the policy port has no method {method!r}.{nearest(method, _METHODS)} "
            f"Known: {', '.join(_METHODS)}"
        )


class _DeferredChunk(Deferred):
    """The answer to a request whose inference is pending.

    Args:
        answer: Makes it of the policy's chunk.
        session: Who asked.
        request: What was asked.
        pending: Of the dispatcher.
    """

    __slots__ = ("_answer", "_pending", "_request", "_session")

    def __init__(
        self,
        answer: Callable[[PolicySession, Request, np.ndarray, float], ActionChunk],
        session: PolicySession,
        request: Request,
        pending: PendingInference,
    ) -> None:
        self._answer = answer
        self._session = session
        self._request = request
        self._pending = pending

    def is_done(self) -> bool:
        return self._pending.done

    def finish(self) -> ActionChunk:
        actions, seconds = self._pending.result()
        return self._answer(self._session, self._request, actions, seconds * 1e3)


def _values(chunk: ActionChunk) -> dict[str, Any]:
    """Return a chunk as it is recorded."""
    return {
        "actions": chunk.actions,
        "ctrl_space": chunk.ctrl_space,
        "ctrl_type": chunk.ctrl_type,
        "raw_actions": chunk.raw_actions,
        "infer_ms": chunk.infer_ms,
    }
