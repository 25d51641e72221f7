"""What a policy and a simulator must offer. Implementations need not inherit from anything here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Mapping, Protocol, Sequence, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from robowire.meta import MetaAction, MetaObs
    from robowire.specs import PolicySpec, SimulatorSpec

__all__ = [
    "AnyThread",
    "Batched",
    "Chunked",
    "Closable",
    "EpisodeSession",
    "Foreign",
    "Named",
    "Policy",
    "PolicyOptions",
    "Preparing",
    "Restorable",
    "SessionPolicy",
    "Simulator",
    "StepResult",
    "StridedImages",
    "TaskOptions",
]


@dataclass(frozen=True)
class PolicyOptions:
    """What a policy factory is given.

    Attributes:
        model_name_or_path: Folder of a checkpoint; ``None`` means the embedded default.
        dataset_id: Which entry of ``normalize.json`` to use; ``None`` means the first.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``.
        camera_names: Overrides or supplies the checkpoint's cameras, in their order.
        extra: Options only one kind of policy understands (``nheads``); an unknown one is refused by the
            factory.
    """

    model_name_or_path: str | None = None
    dataset_id: str | None = None
    device: str = "auto"
    camera_names: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Policy(Protocol):
    """A pure function of observations, from a factory ``make_policy(options: PolicyOptions) -> Policy``."""

    @property
    def spec(self) -> PolicySpec:
        """What it needs and gives; constant."""
        ...

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation.

        Args:
            observations: Unbatched; each fits :attr:`spec` (the server has checked it).

        Returns:
            float32 (B, chunk_size, action_dim), in the spec's ``ctrl_type``, not normalised. A fresh array.
            Row i depends on observation i alone, so that batching never changes an answer beyond float
            rounding.
        """
        ...


@runtime_checkable
class AnyThread(Protocol):
    """What a :class:`Policy` also offers, if any thread may call it, one at a time.

    The thread that received an observation then runs the policy itself where nobody else waits, which saves
    two thread switches. Torch on a CPU is slower so: each calling thread gets a team of workers of its own.
    """

    @property
    def any_thread(self) -> bool:
        """Whether that is so; constant."""
        ...


@runtime_checkable
class Batched(Protocol):
    """What a :class:`Policy` also offers, if it knows how many observations it can work on at once."""

    @property
    def max_batch_size(self) -> int:
        """Largest number of observations that :meth:`Policy.infer` is given; constant."""
        ...


@runtime_checkable
class StridedImages(Protocol):
    """What a :class:`Policy` also offers, if it takes images in any order of memory.

    The images of most clients are (height, width, 3). Such a policy gets a view of what was received where
    that is possible; any other one gets a copy in C order. Torch has other kernels for other orders, which
    round otherwise: :func:`robowire.images.stack_images` makes a batch in C order, in one copy.
    """

    @property
    def strided_images(self) -> bool:
        """Whether that is so; constant."""
        ...


@runtime_checkable
class Closable(Protocol):
    """What a :class:`Policy` also offers, if it holds processes or connections that are to be freed."""

    def close(self) -> None:
        """Free them. Called once no inference is in hand, or when one hangs; may be called twice."""
        ...


@runtime_checkable
class Foreign(Protocol):
    """What a :class:`Policy` also offers, if it runs in another interpreter."""

    @property
    def foreign_versions(self) -> Mapping[str, str]:
        """Versions of the packages it imported there, by name; constant."""
        ...


class EpisodeSession(Protocol):
    """One client's session with a policy that offers them; used by one thread at a time."""

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return the next actions for each observation, as :meth:`Policy.infer` does.

        Args:
            observations: One of each episode that the client runs at the same time, in the same order each
                time; usually one.

        Raises:
            RobowireError: What failed. A ``TransportError`` means a server that the policy asks.
        """
        ...

    def reset(self) -> None:
        """Begin a new episode with the next observation. Never waits."""
        ...

    def close(self) -> None:
        """Free what the session holds. Any thread may call it, twice too."""
        ...


@runtime_checkable
class SessionPolicy(Protocol):
    """What a :class:`Policy` also offers if it should know which client asks, such as one of another server.

    A server then opens a session for each of its clients, and calls it in the thread that received the
    request: sessions run at the same time, and nothing is batched here. ``Policy.infer`` remains a pure
    function, for callers that have no sessions.
    """

    @property
    def stateful(self) -> bool:
        """Whether an answer depends on earlier observations of the session; constant."""
        ...

    def open_session(self) -> EpisodeSession:
        """Return a new session. Never waits."""
        ...


@dataclass(frozen=True)
class TaskOptions:
    """How a task is built. ``None`` means the family's default, which its spec then declares.

    Attributes:
        robot: For example ``"Panda"``.
        controller: For example ``"OSC_POSE"``.
        camera_names: Cameras in the order of ``MetaObs.image``.
        image_height: Pixels.
        image_width: Pixels.
        horizon: Steps after which an episode is truncated.
        reward_shaping: Dense reward instead of 1 at success.
        control_hz: Actions per second of simulated time.
        names: What observations are called: ``"raw"``, the simulator's own way, or another that it offers
            (LIBERO: ``"center"``).
    """

    robot: str | None = None
    controller: str | None = None
    camera_names: tuple[str, ...] | None = None
    image_height: int | None = None
    image_width: int | None = None
    horizon: int | None = None
    reward_shaping: bool | None = None
    control_hz: float | None = None
    names: str | None = None


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    Attributes:
        observation: The simulator's own names to arrays.
        reward: Of this step.
        terminated: The task ended the episode (success ends it).
        truncated: The step limit ended it.
        info: At least ``success`` (bool).
    """

    observation: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Simulator(Protocol):
    """One simulator in one process. A factory ``make_simulator() -> Simulator`` builds it, without a task.

    Calls come from one thread, in an order the server has checked: ``load_task`` before ``reset`` before
    ``step``.
    """

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the names ``load_task`` takes, sorted; of one suite, where the family has suites."""
        ...

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task, closing the one before.

        Raises:
            TaskNotFound: No task has this name.
            InvalidParams: An option does not suit it (an unknown camera, robot or controller).
        """
        ...

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode and return its first observation. A seed gives the same episode, bit for bit.

        Args:
            seed: Of every random choice of the episode; ``None`` draws one.
            init_state: A numbered initial state, where the family has them.
        """
        ...

    def step(self, action: np.ndarray) -> StepResult:
        """Execute the simulator's own action, float (action_dim,), for one control period."""
        ...

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright; ``None`` means the family's best view for people."""
        ...

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return the observation as policies read it (:class:`MetaObs` says the conventions)."""
        ...

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the simulator's own action.

        Raises:
            SpecMismatch: ``ctrl_space``, ``ctrl_type`` or the length is not the loaded task's.
        """
        ...

    def close(self) -> None:
        """Free what the simulator holds. Further calls are errors."""
        ...


@runtime_checkable
class Chunked(Protocol):
    """What a :class:`Simulator` also offers, if leaving out intermediate observations makes steps cheaper."""

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        """Do as :meth:`Simulator.step` for each action, up to the end of the episode; show the last one.

        Args:
            actions: The simulator's own, at least one.

        Returns:
            The reward of every action that was executed, and what the last one gave: bit for bit what
            ``step`` would have, images included.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """What a :class:`Simulator` also offers, if processes forked from a prepared one start sooner."""

    def prepare(self, task_name: str, options: TaskOptions) -> None:
        """Do once what loading a task takes in a new process, and leave no task loaded.

        For what forks can share: imports, compiled functions, caches. Not for what they cannot: an OpenGL
        context, a thread, a connection.

        Raises:
            RobowireError: As ``load_task``.
        """
        ...


@runtime_checkable
class Named(Protocol):
    """What a :class:`Simulator` also offers, if its observations can have other names than its own."""

    @property
    def names(self) -> Sequence[str]:
        """What :attr:`TaskOptions.names` takes, ``"raw"`` among them; constant."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """What a :class:`Simulator` also offers, if it can go back to an instant of an episode.

    Exact means: after ``restore_state`` every action gives the state, reward and observation that it gave
    after ``save_state``, bit for bit, in the same process, in another one, and whatever ran in between.
    """

    def save_state(self) -> dict[str, Any]:
        """Return the whole state of the running episode, as plain data that the wire carries.

        Physics, model changes made at reset, controllers, random generators, counters, observation caches.
        Nothing in it is shared with the simulator. Comes after ``reset`` or ``restore_state``.
        """
        ...

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go to that instant and return its observation. A loaded task is enough; it need not be reset.

        Args:
            state: From ``save_state`` of a simulator with the same :meth:`fingerprint`, the same task and
                options.

        Raises:
            SnapshotMismatch: It does not fit the loaded task's model.
        """
        ...

    def fingerprint(self) -> dict[str, str]:
        """Return what must be equal, besides the loaded task's spec, for a state to mean the same elsewhere.

        Versions of packages, options that the spec does not show, a digest of the model. Short texts: a
        difference is shown to people.
        """
        ...
