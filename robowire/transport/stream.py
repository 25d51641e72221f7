"""One connected byte stream: TCP, TLS over TCP, or a Unix socket.

No other module calls the operating system to send or receive, and every error of a socket or of TLS becomes
one of ours here. After any of them the stream is of no more use: its owner closes it.

Threads: one thread at a time reads (``recv_into``, ``wait_readable``, ``peek``, ``ended``) and one writes
(``send``); both may work at the same time, over TLS too. ``shutdown`` and ``shutdown_read`` may be called by
any thread, to end what the others wait for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, TypeVar, Union

from robowire.address import join_address, unix_path
from robowire.errors import ConnectFailed, ConnectionLost, RequestTimeout, TlsFailed, TransportError

if TYPE_CHECKING:
    import ssl

    from robowire.transport.tls import TlsLayer

__all__ = ["Buffer", "Stream", "pieces", "wait_for"]

Buffer = Union[bytes, bytearray, memoryview]

T = TypeVar("T")

# The kernel takes at most this many buffers in one call (IOV_MAX is 1024 on Linux and macOS).
_MAX_BUFFERS = 1024

# Where buffers can't be gathered, small ones are joined up to this size, so that they leave as one packet.
# Four TLS records: fewer calls than one record a call, and nothing to hold in memory.
_PIECE = 64 * 1024

# What `close_after_reading` reads at a time, to throw away.
_SCRATCH = 64 * 1024

# Waiting takes one system call with `poll`, and any file descriptor. `select` is what Windows has.
_Selector: Callable[[], selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)

# Where the kernel keeps a blocking socket's timeouts, a call is one system call; a socket with a timeout of
# Python's is polled before each. The option's value is a C struct of two longs, seconds and microseconds.
_KERNEL_TIMEOUTS = sys.platform == "linux" and struct.calcsize("l") == 8
_TIMEVAL = struct.Struct("ll")

# A file descriptor, as it is passed.
_INT = struct.Struct("i")

# Longest wait in the kernel, after which the deadline is looked at: a request whose deadline is later needs
# no system call that sets a timeout.
_LONGEST_WAIT_S = 5.0

# A Unix socket waits so long for each 32 KiB or so that the peer takes, whatever the call's length; so calls
# are short and waits too.
_UNIX_SEND = 1024 * 1024
_UNIX_SEND_WAIT_S = 0.25

# Between attempts to connect to a Unix socket whose server has not accepted the last 128 clients yet.
_UNIX_CONNECT_PAUSE_S = 0.01

# First byte of a TLS handshake, and so of everything that a TLS client says first.
_HANDSHAKE = b"\x16"

# A fatal "protocol_version" alert, which a client without TLS can tell from a frame: see `Connection`.
_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"

# How long a peer whose handshake failed has to read why.
_FAILED_HANDSHAKE_S = 1.0


def wait_for(sock: socket.socket, event: int, timeout_s: float | None) -> bool:
    """Return whether the socket is readable or writable within ``timeout_s``; ``None`` waits for ever.

    Raises:
        OSError: The socket is closed.
    """
    try:
        with _Selector() as selector:
            selector.register(sock, event)
            return bool(selector.select(timeout_s))
    except ValueError as exc:  # what selectors say of a closed socket
        raise OSError(errno.EBADF, "the socket is closed") from exc


def pieces(buffers: Sequence[Buffer]) -> Iterator[memoryview]:
    """Yield the same bytes in pieces of at most 64 KiB: large buffers cut, not copied, small ones joined."""
    joined = bytearray()
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            if not joined and len(view) >= _PIECE:
                yield view[:_PIECE]
                view = view[_PIECE:]
                continue
            taken = view[: _PIECE - len(joined)]
            joined += taken
            view = view[len(taken) :]
            if len(joined) == _PIECE:
                yield memoryview(joined)
                joined = bytearray()
    if joined:
        yield memoryview(joined)


def _unsent(buffers: Sequence[Buffer], sent: int) -> list[memoryview]:
    """Return what is left of the buffers after their first ``sent`` bytes."""
    views = [memoryview(buffer) for buffer in buffers]
    while views and sent >= len(views[0]):
        sent -= len(views.pop(0))
    if views:
        views[0] = views[0][sent:]
    return views


class Stream:
    """A connected socket, owned by this object from now on.

    TLS begins with :meth:`connect` on the client's side and with :meth:`accept_tls` on the server's.

    Args:
        sock: A connected TCP or Unix socket; not wrapped by ``ssl``.
        clock: Seconds, monotonic; tests pass their own.

    Attributes:
        sock: The socket. It is another object once TLS has begun.
        peer: ``host:port`` of the other side, or ``unix:PATH``, for messages.
        bytes_received: Bytes of payload, not of TLS records.
        bytes_sent: The same.
        takes_descriptors: Whether a file descriptor that comes over a Unix socket is kept, for
            :meth:`take_descriptor`; otherwise the kernel closes it.

    Raises:
        ConnectionLost: The peer has left already.
    """

    def __init__(self, sock: socket.socket, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.sock = sock
        self.bytes_received = 0
        self.bytes_sent = 0
        self.takes_descriptors = False
        self._descriptor: int | None = None
        self._clock = clock
        self._tls: TlsLayer | None = None
        self._ended_by: list[int] = []
        self._gathers = hasattr(sock, "sendmsg")  # not on Windows
        self._kernel_timeouts = _KERNEL_TIMEOUTS and isinstance(sock, socket.socket)
        self._is_unix = hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX
        self._low_water = 1
        self._longest_send_s = _UNIX_SEND_WAIT_S if self._is_unix else _LONGEST_WAIT_S
        # Seconds that the kernel has; 0 waits for ever.
        self._waits = {"SO_RCVTIMEO": 0.0, "SO_SNDTIMEO": 0.0}
        try:
            if self._kernel_timeouts:
                sock.settimeout(None)
            # A client's side of a Unix socket has no name.
            self.peer = _address(sock.getpeername() or sock.getsockname())
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                # Without this, two small sends meet Nagle and delayed acknowledgement: 44 ms a request.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:  # the peer left between accept and here
            sock.close()
            raise ConnectionLost(f"connection was lost at once: {exc.strerror or exc}") from exc

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Stream:
        """Return a stream to ``host:port``.

        Args:
            host: Name or address of the server, or ``unix:PATH``.
            port: Its TCP port.
            timeout_s: Seconds to connect, and as many for the TLS handshake.
            tls: From :func:`robowire.transport.tls.client_tls`; ``None`` for a stream without TLS.
            server_hostname: Name that the server's certificate must have; ``host`` by default.

        Raises:
            ConnectFailed: There is no answer within ``timeout_s``, nothing listens, or the name is unknown.
            TlsFailed: The certificate of one side is refused, or the server does not speak TLS.
        """
        path = unix_path(host)
        if path is not None:
            if tls is not None:
                raise TlsFailed(f"{host} is a Unix socket, which speaks no TLS: leave tls out")
            return cls(_connect_unix(path, timeout_s))
        where = join_address(host, port)
        try:
            sock = socket.create_connection((host, port), timeout=timeout_s)
        except socket.timeout as exc:
            raise ConnectFailed(f"{where} did not answer within {timeout_s:g} s") from exc
        except ConnectionRefusedError as exc:
            raise ConnectFailed(f"nothing listens on {where}: is the server running there?") from exc
        except OSError as exc:
            raise ConnectFailed(f"cannot connect to {where}: {exc.strerror or exc}") from exc
        stream = cls(sock)
        if tls is not None:
            try:
                stream._begin_tls(tls, timeout_s, server_hostname=server_hostname or host)
            except socket.timeout as exc:
                stream.close()
                raise ConnectFailed(
                    f"{where} did not finish the TLS handshake within {timeout_s:g} s: "
                    "if it does not speak TLS, leave tls out"
                ) from exc
            except (OSError, ValueError) as exc:  # ValueError: a name that no certificate can have
                from robowire.transport.tls import connect_error

                stream.close()
                raise connect_error(exc, where) from exc
            except BaseException:
                stream.close()
                raise
        return stream

    def accept_tls(self, context: ssl.SSLContext, *, timeout_s: float) -> None:
        """Do the server's side of the TLS handshake, before anything was received or sent.

        It waits for the peer, so call it in the connection's own thread. Until it returns, :meth:`shutdown`
        ends it from another thread, and the stream's :attr:`peer` is known.

        Args:
            context: From :func:`robowire.transport.tls.server_tls`.
            timeout_s: Seconds until the handshake must be complete.

        Raises:
            RequestTimeout: It was not complete in time; the stream is closed.
            ConnectionLost: The peer left, or sent nothing at all; the stream is closed.
            TlsFailed: The peer does not speak TLS, or one side refuses the other's certificate. The peer was
                told so, and the stream is closed.
        """
        deadline = self._clock() + timeout_s
        try:
            first = self.peek(1, timeout_s)
        except TransportError:
            self.close()
            raise
        if not first:
            self.close()
            raise ConnectionLost(f"{self.peer} closed the connection before the TLS handshake")
        if first != _HANDSHAKE:
            with contextlib.suppress(TransportError):  # it left
                self.send([_ALERT], timeout_s=_FAILED_HANDSHAKE_S)
            self.close_after_reading(_FAILED_HANDSHAKE_S)
            raise TlsFailed(
                f"a plain client on the TLS port: {self.peer} must pass tls=True (programs: --tls)"
            )
        try:
            self._begin_tls(context, max(deadline - self._clock(), 1e-3), server_hostname=None)
        except socket.timeout as exc:
            self.close()
            raise RequestTimeout(
                f"{self.peer} did not finish the TLS handshake within {timeout_s:g} s; "
                "the connection was closed"
            ) from exc
        except OSError as exc:
            from robowire.transport.tls import accept_error

            self.close_after_reading(_FAILED_HANDSHAKE_S)  # OpenSSL has sent the alert
            raise accept_error(exc, self.peer) from exc
        except BaseException:
            self.close()
            raise

    @property
    def local_host(self) -> str:
        """Address that this side of the connection has; empty for a pair of Unix sockets."""
        try:
            address = self.sock.getsockname()
        except OSError as exc:
            raise self._lost(exc) from exc
        return address[0] if isinstance(address, tuple) else ""

    def recv_into(
        self, buffers: Sequence[memoryview], timeout_s: float | None, *, whole: bool = False
    ) -> int:
        """Fill the buffers in their order and return how many bytes came; 0 is the end of the stream.

        An end without TLS's ``close_notify`` is an end too: what is cut short shows in the framing.

        Args:
            buffers: Not empty; several only where the stream :attr:`polls`.
            timeout_s: Seconds to wait for the first byte; ``None`` waits for ever.
            whole: The caller needs all of it: where the kernel can, it waits for as much as comes within the
                timeout, in one system call.

        Raises:
            RequestTimeout: Nothing came in time.
            ConnectionLost: The connection broke.
            TlsFailed: The peer refused this side's certificate.
        """
        try:
            if self._tls is not None:
                received = self._tls.recv_into(buffers[0], timeout_s)
            elif self._kernel_timeouts:
                flags = socket.MSG_WAITALL if whole else 0
                if (
                    timeout_s is None
                    or timeout_s < _LONGEST_WAIT_S
                    or self._waits["SO_RCVTIMEO"] != _LONGEST_WAIT_S
                ):
                    self._let_wait("SO_RCVTIMEO", timeout_s, _LONGEST_WAIT_S)
                try:
                    received = self._receive(buffers, flags)
                except BlockingIOError:
                    received = self._again(lambda: self._receive(buffers, flags), "SO_RCVTIMEO", timeout_s)
            else:
                self.sock.settimeout(timeout_s)
                received = self.sock.recv_into(buffers[0])
        except OSError as exc:
            raise self._failed(exc, timeout_s, "sent nothing for") from exc
        self.bytes_received += received
        return received

    def _receive(self, buffers: Sequence[memoryview], flags: int) -> int:
        if self.takes_descriptors:
            return self._recv_descriptor(buffers, flags)
        if len(buffers) == 1:
            return self.sock.recv_into(buffers[0], 0, flags)
        return self.sock.recvmsg_into(buffers, 0, flags)[0]

    @property
    def polls(self) -> bool:
        """Whether ``recv_now``, ``send_now`` and ``expect`` work: on Linux, without TLS."""
        return self._kernel_timeouts and self._tls is None

    def expect(self, nbytes: int) -> None:
        """Let a poll of this stream report it as readable once so many bytes are there; over TCP."""
        if nbytes != self._low_water and not self._is_unix:
            self._low_water = nbytes
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)
            except OSError as exc:
                raise self._lost(exc) from exc

    def recv_now(self, buffers: Sequence[memoryview]) -> int | None:
        """Fill the buffers in their order with what has come, and return how much; ``None`` for nothing yet.

        Not over TLS.

        Raises:
            ConnectionLost: The connection broke.
        """
        try:
            received = self._receive(buffers, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._lost(exc) from exc
        self.bytes_received += received
        return received

    def send_now(self, buffers: Sequence[Buffer]) -> list[memoryview]:
        """Send as much as the kernel takes without a wait, and return what is left. Not over TLS.

        Raises:
            ConnectionLost: The connection ended.
        """
        try:
            if len(buffers) == 1:
                sent = self.sock.send(buffers[0], socket.MSG_DONTWAIT)
                self.bytes_sent += sent
                if sent == len(buffers[0]):
                    return []
            else:
                sent = self.sock.sendmsg(buffers[:_MAX_BUFFERS], (), socket.MSG_DONTWAIT)
                self.bytes_sent += sent
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise self._lost(exc) from exc
        return _unsent(buffers, sent)

    def _recv_descriptor(self, buffers: Sequence[memoryview | bytearray], flags: int = 0) -> int:
        """Fill the buffers in order, and keep a descriptor that comes with the bytes."""
        flags |= socket.MSG_CMSG_CLOEXEC
        # Space for one: the kernel closes what does not fit.
        received, ancillary, _, _ = self.sock.recvmsg_into(buffers, socket.CMSG_LEN(_INT.size), flags)
        for level, kind, data in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            for (descriptor,) in _INT.iter_unpack(data[: len(data) // _INT.size * _INT.size]):
                if self._descriptor is None:
                    self._descriptor = descriptor
                else:
                    os.close(descriptor)
        return received

    @property
    def has_descriptor(self) -> bool:
        """Whether a descriptor came since the last call of :meth:`take_descriptor`."""
        return self._descriptor is not None

    def take_descriptor(self) -> int | None:
        """Return the descriptor that came since the last call; the caller closes it."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def send_descriptor(self, buffers: Sequence[Buffer], descriptor: int, timeout_s: float) -> None:
        """Send a few bytes, and with them a copy of a descriptor, over a Unix socket.

        Raises:
            RequestTimeout: The peer did not take them in time.
            ConnectionLost: The connection ended.
        """
        data = b"".join(buffers)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(descriptor))]
        try:
            if self._kernel_timeouts:
                self._let_wait("SO_SNDTIMEO", timeout_s, _LONGEST_WAIT_S)
            else:
                self.sock.settimeout(timeout_s)
            sent = self.sock.sendmsg([data], rights)
        except BlockingIOError:
            raise RequestTimeout(f"{self.peer} did not read our bytes; the connection was closed") from None
        except OSError as exc:
            raise self._failed(exc, timeout_s, "did not read our bytes within") from exc
        self.bytes_sent += sent
        if sent < len(data):
            self.send([data[sent:]], timeout_s)

    def send(self, buffers: Sequence[Buffer], timeout_s: float) -> None:
        """Send the buffers in order: without TLS gathered by the kernel, not copied.

        Args:
            buffers: Bytes, or views of them.
            timeout_s: Seconds until the kernel must have taken the last byte.

        Raises:
            RequestTimeout: The peer did not take them in time.
            ConnectionLost: The connection ended.
        """
        deadline = self._clock() + timeout_s
        try:
            if self._tls is not None or not self._gathers:
                for piece in pieces(buffers):
                    self._send_piece(piece, deadline)
                return
            size = sum(map(len, buffers))
            left_s = timeout_s
            while True:
                sent = self._send_some(buffers, size, left_s)
                self.bytes_sent += sent
                if sent == size:  # the common case: all in one call
                    return
                buffers = _unsent(buffers, sent)
                size -= sent
                left_s = max(deadline - self._clock(), 1e-3)
        except OSError as exc:
            raise self._failed(exc, timeout_s, "did not read our bytes within") from exc

    def _send_some(self, buffers: Sequence[Buffer], size: int, left_s: float) -> int:
        """Send what the kernel takes of ``size`` bytes of buffers, and return how many it took."""
        if len(buffers) > _MAX_BUFFERS:
            buffers = buffers[:_MAX_BUFFERS]
        if not self._kernel_timeouts:
            self.sock.settimeout(left_s)
            return self.sock.sendmsg(buffers)
        if self._is_unix and size > _UNIX_SEND:
            buffers = [memoryview(buffers[0])[:_UNIX_SEND]]
        longest_s = self._longest_send_s
        if left_s < longest_s or self._waits["SO_SNDTIMEO"] != longest_s:
            self._let_wait("SO_SNDTIMEO", left_s, longest_s)
        try:
            return self.sock.send(buffers[0]) if len(buffers) == 1 else self.sock.sendmsg(buffers)
        except BlockingIOError:
            return self._again(lambda: self.sock.sendmsg(buffers), "SO_SNDTIMEO", left_s, longest_s)

    def _let_wait(self, option: str, seconds: float | None, longest_s: float) -> None:
        """Make the kernel wait in the next call: not longer than ``seconds``."""
        wait_s = longest_s if seconds is None or seconds >= longest_s else seconds
        # A shorter wait than needed costs a repetition, a longer one would miss the deadline.
        if wait_s / 2 <= self._waits[option] <= wait_s:
            return
        self._set_wait(option, wait_s)

    def _set_wait(self, option: str, seconds: float) -> None:
        whole, part = divmod(max(seconds, 1e-3), 1)  # the kernel reads 0 as for ever
        value = _TIMEVAL.pack(int(whole), int(part * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        self._waits[option] = seconds

    def _again(
        self,
        call: Callable[[], T],
        option: str,
        timeout_s: float | None,
        longest_s: float | None = None,
    ) -> T:
        """Return ``call()``, once the kernel has waited for it in vain, until ``timeout_s`` is over.

        Raises:
            socket.timeout: It is over.
        """
        deadline = None if timeout_s is None else self._clock() + timeout_s - self._waits[option]
        while True:
            left_s = None if deadline is None else deadline - self._clock()
            if left_s is not None and left_s <= 0:
                raise socket.timeout("timed out")
            self._let_wait(option, left_s, longest_s or _LONGEST_WAIT_S)
            try:
                return call()
            except BlockingIOError:
                pass

    def _send_piece(self, piece: memoryview, deadline: float) -> None:
        while piece:
            left_s = max(deadline - self._clock(), 1e-3)
            if self._tls is not None:
                sent = self._tls.send(piece, left_s)
            else:
                self.sock.settimeout(left_s)
                sent = self.sock.send(piece)
            self.bytes_sent += sent
            piece = piece[sent:]

    def wait_readable(self, timeout_s: float | None) -> bool:
        """Return, in ``timeout_s`` at most, whether something can be read, be it the end of the stream.

        Raises:
            ConnectionLost: The stream is closed on this side.
        """
        try:
            if self._tls is not None:
                return self._tls.wait_readable(timeout_s)
            return wait_for(self.sock, selectors.EVENT_READ, timeout_s)
        except OSError as exc:
            raise self._lost(exc) from exc

    def peek(self, size: int, timeout_s: float) -> bytes:
        """Return up to ``size`` of the next bytes, which stay to be read; empty at the end of the stream.

        Raises:
            RequestTimeout: Nothing came in time.
            ConnectionLost: The connection broke.
        """
        try:
            if self._tls is not None:
                return self._tls.peek(size, timeout_s)
            if self._kernel_timeouts:
                self._let_wait("SO_RCVTIMEO", timeout_s, _LONGEST_WAIT_S)
                try:
                    return self.sock.recv(size, socket.MSG_PEEK)
                except BlockingIOError:
                    return self._again(
                        lambda: self.sock.recv(size, socket.MSG_PEEK), "SO_RCVTIMEO", timeout_s
                    )
            self.sock.settimeout(timeout_s)
            return self.sock.recv(size, socket.MSG_PEEK)
        except OSError as exc:
            raise self._failed(exc, timeout_s, "sent nothing for") from exc

    def discard(self, timeout_s: float) -> None:
        """Throw away what the peer sends, until it ends the stream or ``timeout_s`` is over.

        Raises:
            ConnectionLost: The connection broke.
            RequestTimeout: The time is over.
        """
        deadline = self._clock() + timeout_s
        scratch = memoryview(bytearray(_SCRATCH))
        while (left_s := deadline - self._clock()) > 0 and self.recv_into((scratch,), left_s):
            pass

    def ended(self) -> bool:
        """Return whether the peer ended the stream, or broke it, and nothing is left to read before the end.

        It may still read: a peer that shuts down its sending half only looks the same. While another thread
        reads a TLS stream the answer is ``False``: that thread will see the end.
        """
        try:
            if self._tls is not None:
                return self._tls.ended()
            return wait_for(self.sock, selectors.EVENT_READ, 0) and not self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def shutdown_read(self) -> None:
        """Make a blocked or later :meth:`recv_into` see the end of the stream. Any thread may call it."""
        self._shutdown(socket.SHUT_RD)

    def shutdown(self) -> None:
        """End both directions, so that a blocked thread returns. Any thread may call it."""
        self._shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        if self._tls is not None:
            self._tls.say_close()
        self.sock.close()
        descriptor = self.take_descriptor()
        if descriptor is not None:
            os.close(descriptor)

    def abandon(self) -> None:
        """Close this process's half of a connection that another process goes on with, after a fork.

        Nothing is sent, neither an end of the stream nor TLS's ``close_notify``: the other one still uses it.
        """
        socket.socket.close(self.sock)

    def close_after_reading(self, timeout_s: float) -> None:
        """Close, once the peer has had the time to read what was sent.

        A socket that is closed with unread bytes resets the connection, and a peer that is still sending
        would never see the last reply. So what it sends is thrown away, until it ends the stream or
        ``timeout_s`` is over.
        """
        deadline = self._clock() + timeout_s
        scratch = bytearray(_SCRATCH)
        if self._tls is not None:
            self._tls.say_close()
        with contextlib.suppress(OSError):  # it left, as it should
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            while (left_s := deadline - self._clock()) > 0:
                if not wait_for(self.sock, selectors.EVENT_READ, left_s):
                    break
                # The socket's own method: what TLS would make of these bytes does not matter any more.
                if not socket.socket.recv_into(self.sock, scratch):
                    break
        self.sock.close()

    def _shutdown(self, how: int) -> None:
        self._ended_by.append(how)  # first: a handshake that begins now looks at it after it took the socket
        with contextlib.suppress(OSError):  # not connected any more: nothing left to end
            # Not ssl's own method of this name: it drops TLS and would go on in plain text.
            socket.socket.shutdown(self.sock, how)

    def _begin_tls(self, context: ssl.SSLContext, timeout_s: float, *, server_hostname: str | None) -> None:
        from robowire.transport.tls import TlsLayer  # here: ssl takes longer to import than all of robowire

        wrapped = context.wrap_socket(
            self.sock,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        self._kernel_timeouts = False
        self.sock = wrapped  # before the handshake, so that shutdown ends it
        for how in self._ended_by:  # and one that met the socket which TLS has taken
            socket.socket.shutdown(wrapped, how)
        self._tls = TlsLayer(wrapped, clock=self._clock)
        self._tls.handshake(timeout_s)

    def _failed(self, exc: OSError, timeout_s: float | None, timeout: str) -> TransportError:
        if isinstance(exc, socket.timeout):
            return RequestTimeout(f"{self.peer} {timeout} {timeout_s:g} s; the connection was closed")
        return self._lost(exc)

    def _lost(self, exc: OSError) -> TransportError:
        if self._tls is not None:
            from robowire.transport.tls import lost_error

            return lost_error(exc, self.peer)
        return ConnectionLost(f"connection with {self.peer} was lost: {exc.strerror or exc}")


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    """Return a socket that is connected to the server listening at a path.

    Raises:
        ConnectFailed: Nothing listens there, it has no place within ``timeout_s``, or this user may not.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ConnectFailed(
            f"cannot connect to unix:{path}: this platform has no Unix sockets, use host:port"
        )
    deadline = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # the kernel's list of clients not yet accepted is full
                if time.monotonic() >= deadline:
                    raise socket.timeout("timed out") from None
                time.sleep(_UNIX_CONNECT_PAUSE_S)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, socket.timeout):
            raise ConnectFailed(f"unix:{path} did not answer within {timeout_s:g} s") from exc
        if isinstance(exc, (ConnectionRefusedError, FileNotFoundError)):
            raise ConnectFailed(f"nothing listens on unix:{path}: is the server running there?") from exc
        if isinstance(exc, OSError):
            raise ConnectFailed(f"cannot connect to unix:{path}: {exc.strerror or exc}") from exc
        raise


def _address(address: Any) -> str:
    if isinstance(address, str) and address:
        return f"unix:{address}"
    if isinstance(address, (str, bytes)):  # one of a pair of Unix sockets has no name
        return "the other process"
    return join_address(*address[:2])
