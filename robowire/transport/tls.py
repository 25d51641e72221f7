"""TLS for a stream: contexts for clients and servers, and the calls into OpenSSL.

The contexts are the standard library's defaults: TLS 1.2 or newer, and clients verify the server's
certificate and name.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable, TypeVar

from robowire.errors import ConfigurationError, ConnectFailed, ConnectionLost, TlsFailed, TransportError
from robowire.transport.stream import wait_for

__all__ = ["TlsLayer", "accept_error", "client_tls", "connect_error", "lost_error", "server_tls"]

T = TypeVar("T")

# How OpenSSL says that the first bytes were no TLS record; which one depends on its version and the bytes.
_NOT_TLS = (
    *("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"),
    *("HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE"),
)


def client_tls(
    ca: str | None = None, cert: str | None = None, key: str | None = None, *, flags: str = ""
) -> ssl.SSLContext:
    """Return the context of a client, which verifies the server's certificate and name.

    Args:
        ca: PEM file of the certificates to trust, in the place of the system's.
        cert: PEM file of the client's own certificate, where the server asks for one (mutual TLS).
        key: PEM file of its private key; ``None`` where ``cert`` holds it too.
        flags: How the flags begin that a message names, ``"--"``; the arguments of clients by default.

    Raises:
        ConfigurationError: A file can't be read or used; names it.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context = _trusting(ssl.Purpose.SERVER_AUTH, ca, f"{flags}tls_ca" if flags else "ca")
    if cert is not None:
        _load_own(context, cert, key, flags)
    elif key is not None:
        raise ConfigurationError(f"{flags}tls_key is given without {flags}tls_cert, its certificate")
    return context


def server_tls(
    cert: str, key: str | None = None, client_ca: str | None = None, *, flags: str = ""
) -> ssl.SSLContext:
    """Return the context of a server.

    Args:
        cert: PEM file of the server's certificate, followed by those between it and the root.
        key: PEM file of its private key; ``None`` where ``cert`` holds it too.
        client_ca: PEM file of the authority whose certificates clients must show (mutual TLS); ``None`` asks
            clients for none.
        flags: How the flags begin that a message names: ``"--"``.

    Raises:
        ConfigurationError: A file can't be read or used; names it.
    """
    if client_ca is None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    else:
        context = _trusting(ssl.Purpose.CLIENT_AUTH, client_ca, f"{flags}tls_client_ca")
        context.verify_mode = ssl.CERT_REQUIRED
    _load_own(context, cert, key, flags)
    # No client of ours resumes a TLS session, and a ticket would look like a reply that is ready to be read.
    with contextlib.suppress(ValueError):  # Python 3.9 and older can't set it on a default context
        context.num_tickets = 0
    return context


def _trusting(purpose: ssl.Purpose, path: str, name: str) -> ssl.SSLContext:
    _require_file(path, name)
    try:
        return ssl.create_default_context(purpose, cafile=path)
    except OSError as exc:  # SSLError too
        raise ConfigurationError(f"{name} is {path!r}, which holds no PEM certificates: {exc}") from exc


def _load_own(context: ssl.SSLContext, cert: str, key: str | None, flags: str) -> None:
    _require_file(cert, f"{flags}tls_cert")
    if key is not None:
        _require_file(key, f"{flags}tls_key")
    try:
        # An encrypted key would make OpenSSL ask for a password on a terminal; a service has none.
        context.load_cert_chain(cert, key, password="")
    except OSError as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        if reason == "KEY_VALUES_MISMATCH":
            problem = "the key is not that of the certificate"
        else:
            problem = f"expected PEM files of a certificate and its private key, not encrypted ({reason})"
        files = f"{flags}tls_cert is {cert!r}" + ("" if key is None else f" and {flags}tls_key is {key!r}")
        raise ConfigurationError(f"{files}: {problem}") from exc


def _require_file(path: str, name: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as exc:
        raise ConfigurationError(f"{name} is {path!r}, which can't be read: {exc.strerror}") from exc


class TlsLayer:
    """What a stream asks of its TLS socket. Its methods raise ``OSError`` and ``socket.timeout`` only.

    An OpenSSL connection must not be used by two threads at one time, and Python guards it since 3.13 only.
    So the socket is non-blocking, each call into OpenSSL is made under a lock, and waiting is done outside of
    it: then one thread may read while another one writes.

    OpenSSL decrypts whole records, so what it holds is invisible to ``poll``, and it offers no way to look at
    bytes without taking them. Where a byte must be looked at, it is taken and kept for the next read.

    Args:
        sock: A wrapped socket, before its handshake.
        clock: Seconds, monotonic.
    """

    def __init__(self, sock: ssl.SSLSocket, *, clock: Callable[[], float] = time.monotonic) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._clock = clock
        self._lock = threading.Lock()
        self._reading = False  # a thread reads, or waits for something to read
        self._ahead = b""  # taken, and still to be read
        self._usable = True  # close_notify may be sent: nothing failed, and nothing is half written
        self._closed = False  # close_notify was sent

    def handshake(self, timeout_s: float) -> None:
        """Complete the handshake."""
        self._usable = False
        self._call(self._sock.do_handshake, timeout_s)
        self._usable = True

    def recv_into(self, buffer: memoryview, timeout_s: float | None) -> int:
        """Fill the beginning of ``buffer``; 0 is the end of the stream."""
        return self._read(lambda: self._take(buffer), timeout_s)

    def send(self, piece: memoryview, timeout_s: float) -> int:
        """Send a piece, and return how much of it was taken."""
        self._usable = False
        sent = self._call(lambda: self._sock.send(piece), timeout_s)
        self._usable = True
        return sent

    def wait_readable(self, timeout_s: float | None) -> bool:
        """Return whether :meth:`recv_into` would return at once."""
        try:
            self._read(lambda: self._look(1), timeout_s)
        except socket.timeout:
            return False
        except ssl.SSLError:
            return True  # reading says what is wrong
        return True

    def peek(self, size: int, timeout_s: float) -> bytes:
        """Return up to ``size`` of the next bytes, which stay to be read."""
        return self._read(lambda: self._look(size), timeout_s)

    def ended(self) -> bool:
        """Return whether the end of the stream is what comes next."""
        with self._lock:
            if self._reading:  # it would wait for a byte that was taken here
                return False
            try:
                return not self._look(1)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False

    def say_close(self) -> None:
        """Send ``close_notify``, where that needs no waiting."""
        if not (self._usable and self._lock.acquire(blocking=False)):
            return
        self._usable = False
        self._closed = True  # an unwrapped SSLSocket would go on in plain text
        try:
            with contextlib.suppress(OSError, ValueError):  # it does not wait for the peer's
                self._sock.unwrap()
        finally:
            self._lock.release()

    def _read(self, operation: Callable[[], T], timeout_s: float | None) -> T:
        self._reading = True  # before the lock is taken: see ended
        try:
            return self._call(operation, timeout_s)
        finally:
            self._reading = False

    def _call(self, operation: Callable[[], T], timeout_s: float | None) -> T:
        deadline = None if timeout_s is None else self._clock() + timeout_s
        left_s = timeout_s
        while True:
            with self._lock:
                if self._closed:
                    raise OSError(errno.EBADF, "the stream is closed")
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    event = selectors.EVENT_READ
                except ssl.SSLWantWriteError:
                    event = selectors.EVENT_WRITE
            if deadline is not None:
                left_s = deadline - self._clock()
            if (left_s is not None and left_s <= 0) or not wait_for(self._sock, event, left_s):
                raise socket.timeout("timed out")

    def _look(self, size: int) -> bytes:
        missing = size - len(self._ahead)
        if missing > 0:
            kept, self._ahead = self._ahead, b""
            buffer = bytearray(missing)
            try:
                self._ahead = kept + buffer[: self._take(memoryview(buffer))]
            except OSError:
                self._ahead = kept
                if not kept:
                    raise
        return self._ahead[:size]

    def _take(self, buffer: memoryview) -> int:
        if self._ahead:
            taken = self._ahead[: len(buffer)]
            buffer[: len(taken)] = taken
            self._ahead = self._ahead[len(taken) :]
            return len(taken)
        try:
            return self._sock.recv_into(buffer)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as exc:
            self._usable = False
            if exc.reason == "UNEXPECTED_EOF_WHILE_READING":  # Python 3.9 and older with OpenSSL 3
                return 0
            raise


def connect_error(exc: Exception, where: str) -> TransportError:
    """Return the error for a client's handshake that failed.

    Args:
        exc: What ended it.
        where: Address of the server.
    """
    if isinstance(exc, ssl.SSLCertVerificationError):
        if exc.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH
            return TlsFailed(
                f"the certificate of {where} is for another name: {exc.verify_message} "
                "Connect by a name that the certificate has"
            )
        return TlsFailed(
            f"the certificate of {where} is not trusted ({exc.verify_message}): "
            "pass the file of its authority as ca (programs: --tls_ca)"
        )
    if isinstance(exc, ssl.SSLError) and exc.reason in _NOT_TLS:
        return TlsFailed(f"{where} does not speak TLS: leave tls out")
    if _is_end(exc) or not isinstance(exc, (ssl.SSLError, ValueError)):
        # A server without TLS does so, and one that is being stopped too: trying again may help.
        return ConnectFailed(
            f"{where} closed the connection during the TLS handshake: "
            "it does not speak TLS: leave tls out, or it is about to stop"
        )
    return _refused(exc, where) or TlsFailed(f"TLS handshake with {where} failed: {_reason(exc)}")


def accept_error(exc: OSError, peer: str) -> TransportError:
    """Return the error for a server's handshake that failed.

    Args:
        exc: What ended it.
        peer: Address of the client.
    """
    if _is_end(exc) or not isinstance(exc, ssl.SSLError):
        return ConnectionLost(f"{peer} closed the connection during the TLS handshake")
    if exc.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return TlsFailed(f"{peer} showed no client certificate, which this server asks for")
    if isinstance(exc, ssl.SSLCertVerificationError) or exc.reason == "CERTIFICATE_VERIFY_FAILED":
        message = getattr(exc, "verify_message", "") or "not trusted"
        return TlsFailed(f"the client certificate of {peer} is not trusted ({message})")
    if exc.reason is not None and "ALERT" in exc.reason:
        return TlsFailed(f"{peer} refused this server's certificate ({_reason(exc)})")
    return TlsFailed(f"TLS handshake with {peer} failed: {_reason(exc)}")


def lost_error(exc: OSError, peer: str) -> TransportError:
    """Return the error for a TLS connection that broke after the handshake.

    In TLS 1.3 a server refuses a client's certificate only then. Any other alert is a connection that broke:
    a server that is stopped in the middle of a record sends one too.
    """
    refused = _refused(exc, peer) if _is_about_certificates(exc) else None
    return refused or ConnectionLost(f"connection with {peer} was lost: {_reason(exc)}")


def _refused(exc: Exception, where: str) -> TlsFailed | None:
    if not isinstance(exc, ssl.SSLError) or exc.reason is None or "ALERT" not in exc.reason:
        return None
    hint = ": pass a client certificate that it trusts as tls_cert and tls_key"
    return TlsFailed(
        f"{where} refused the TLS connection ({_reason(exc)}){hint if _is_about_certificates(exc) else ''}"
    )


def _is_about_certificates(exc: Exception) -> bool:
    reason = getattr(exc, "reason", None) or ""
    return any(words in reason for words in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE"))


def _is_end(exc: Any) -> bool:
    return isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or (
        isinstance(exc, ssl.SSLError) and exc.reason == "UNEXPECTED_EOF_WHILE_READING"
    )


def _reason(exc: Exception) -> str:
    """Return OpenSSL's own words, in lower case and without the line of its source."""
    reason = getattr(exc, "reason", None)
    if isinstance(reason, str):
        return reason.replace("_", " ").lower()
    return str(getattr(exc, "strerror", None) or exc)
