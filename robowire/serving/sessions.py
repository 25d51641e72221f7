"""What a service knows of one client. No socket and no thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from robowire.errors import InvalidParams, Unauthenticated
from robowire.serving.session_activity import SessionActivity
from robowire.tracing.spans import RequestSpan
from robowire.transport.shared_memory import shared_memory_works
from robowire.version import __version__
from robowire.wire.messages import PROTOCOL_VERSION, ok
from robowire.wire.packed import PACKED_VERSION
from robowire.wire.pickle.templates import TemplateReader
from robowire.wire.text_safety import quoted

__all__ = ["Answering", "OnDone", "Peer", "Session"]

_REPLY_FORMATS = ("list", "chunk")


class Answering(Protocol):
    """Encodes and sends the replies to requests whose inferences were deferred."""

    def answered(self, connections: Sequence[Any], *, here: bool) -> None:
        """Note which connections' requests can be answered now. Any thread may call it.

        Args:
            connections: As :class:`OnDone` names them.
            here: Whether the calling thread has the time to answer them itself.
        """
        ...


class OnDone(NamedTuple):
    """Who is told when a deferred inference is done, and how the request's connection is called there."""

    by: Answering
    connection: Any


@dataclass(frozen=True)
class Peer:
    """The other end of a connection, as a frontend sees it.

    Attributes:
        address: Its ``host:port``.
        local_host: Address of this machine under which it connected.
        has_left: Whether it ended its half of the connection; asked by the session's thread while it works
            for the peer.
        may_send_token: Whether a token in clear is accepted from it: nobody else can read the connection, or
            the server was told to.
        wire: Name of the frontend, for recordings.
    """

    address: str
    local_host: str = ""
    has_left: Callable[[], bool] = lambda: False
    may_send_token: bool = True
    wire: str = ""


@dataclass(eq=False)
class Session:
    """One client's session. Only the thread that answers the client's requests changes it.

    Attributes:
        id: Counts from 1; unique within one service.
        peer: The client's end of the connection.
        authenticated: Whether it may send any request except ``hello``.
        said_hello: Whether it understands typed errors.
        reply: Format of a chunk in replies: ``"list"`` of MetaAction, or ``"chunk"``, one array.
        requests: Requests and lines of text received so far.
        method: Method of the latest request that was answered, one of the service's; ``""`` before.
        nonces: The client's and ours, of the challenge that it has not answered yet.
        packs: Whether sessions of this class offer packed requests.
        packed: Whether the client declares layouts and sends packed requests.
        shares: Whether the client may put fields of packed requests into shared memory.
        reads_shared: Whether the client reads replies that lie in shared memory.
        descriptor: What is passed with the next reply, and closed then; ``None`` for nothing.
        layouts: Those that it declared, by their numbers: at most ``MAX_LAYOUTS``.
        reader: Reads the client's pickles.
        activity: What people see of it.
        watches: Whether it is a dashboard's, which is not shown itself.
        tells_trace: Whether the client may say of which trace a request is.
        trace_headers: What it said of the next request; empty for nothing.
        span: Of the request in hand; ``None`` where requests are not traced.
        on_done: Who is told by another thread when an inference that was deferred can be answered; ``None``
            while the thread that answers the session's requests may wait.
    """

    packs: ClassVar[bool] = False

    id: int
    peer: Peer
    authenticated: bool = True
    said_hello: bool = False
    reply: str = "list"
    requests: int = 0
    method: str = ""
    nonces: tuple[bytes, bytes] | None = None
    packed: bool = False
    shares: bool = False
    reads_shared: bool = False
    descriptor: int | None = None
    layouts: dict[int, Any] = field(default_factory=dict)
    reader: TemplateReader = field(default_factory=TemplateReader)
    activity: SessionActivity = field(default_factory=SessionActivity)
    watches: bool = False
    tells_trace: bool = False
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    span: RequestSpan | None = None
    on_done: OnDone | None = None

    def __str__(self) -> str:
        return f"client #{self.id}"

    def hello(self, params: Mapping[str, Any], *, server: str) -> dict[str, Any]:
        """Process an authorised ``hello`` request and return its reply. A client may repeat it.

        Args:
            params: Parameters of the request. Unknown ones are ignored: a newer client may send more.
            server: ``"policy"``, ``"simulator"`` or ``"fleet"``.

        Raises:
            InvalidParams: The client speaks another version of the protocol, or requests an unknown reply
                format.
        """
        version, reply = params.get("protocol_version", PROTOCOL_VERSION), params.get("reply", "list")
        if not isinstance(version, int) or version != PROTOCOL_VERSION:
            raise InvalidParams(
                f"protocol_version is {quoted(version)}, this server speaks {PROTOCOL_VERSION}"
            )
        if not isinstance(reply, str) or reply not in _REPLY_FORMATS:
            raise InvalidParams(f"reply is {quoted(reply)}, expected 'list' or 'chunk'")
        self.authenticated, self.reply = True, reply
        self.packed = self.packs and params.get("packed") == PACKED_VERSION
        agreed = {"packed": PACKED_VERSION} if self.packed else {}
        on_one_host = self.packed and self.peer.wire == "unix" and shared_memory_works()
        self.shares = on_one_host and server == "policy"
        # Asked for, since the server begins; on the policy port the client does.
        self.reads_shared = on_one_host and server == "simulator" and params.get("shared_memory") == 1
        if self.shares or self.reads_shared:
            agreed["shared_memory"] = 1
        return ok(
            protocol_version=PROTOCOL_VERSION, version=__version__, server=server, session=self.id, **agreed
        )

    def take_descriptor(self) -> int | None:
        """Return the descriptor that goes with the reply; the caller closes it."""
        descriptor, self.descriptor = self.descriptor, None
        return descriptor

    def require_authenticated(self) -> None:
        """Accept a session that may send requests.

        Raises:
            Unauthenticated: It has not sent the token.
        """
        if not self.authenticated:
            raise Unauthenticated("say hello with the token first")
