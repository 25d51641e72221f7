"""Streams over real sockets of the loopback, with TLS and without."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from certificates import Certificates

from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    TlsFailed,
    TransportError,
)
from robowire.transport import stream as stream_module
from robowire.transport.connection import Connection
from robowire.transport.stream import Stream
from robowire.transport.tls import client_tls, server_tls
from robowire.wire.pickle.writer import encode_frame

Accepted = Future[Stream]


@contextmanager
def accepting(context: ssl.SSLContext | None, *, timeout_s: float = 10) -> Iterator[tuple[int, Accepted]]:
    """Serve one connection in another thread; gives the port, and the stream once its handshake is done."""

    def accept() -> Stream:
        stream = Stream(listener.accept()[0])
        if context is not None:
            stream.accept_tls(context, timeout_s=timeout_s)
        return stream

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        future = pool.submit(accept)
        try:
            yield listener.getsockname()[1], future
        finally:
            if future.exception(timeout=15) is None:
                future.result().close()


@contextmanager
def pair(server: ssl.SSLContext | None, client: ssl.SSLContext | None) -> Iterator[tuple[Stream, Stream]]:
    """Give both ends of one connection: the client's and the server's."""
    with accepting(server) as (port, accepted):
        ours = Stream.connect("127.0.0.1", port, timeout_s=10, tls=client)
        try:
            yield ours, accepted.result(timeout=10)
        finally:
            ours.close()


@pytest.fixture(params=["plain", "tls"])
def both(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[tuple[Stream, Stream]]:
    """Both ends of one connection, without TLS and with it."""
    tls = request.param == "tls"
    server = server_tls(certificates.server_cert, certificates.server_key) if tls else None
    with pair(server, client_tls(certificates.ca) if tls else None) as streams:
        yield streams


def read(stream: Stream, size: int) -> bytes:
    buffer = bytearray(size)
    filled = 0
    while filled < size:
        received = stream.recv_into((memoryview(buffer)[filled:],), 10)
        if not received:
            break
        filled += received
    return bytes(buffer[:filled])


def test_bytes_arrive_in_order_however_they_were_cut(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    buffers = [b"abc", b"", bytes(range(256)) * 1000, memoryview(b"de"), bytearray(b"f") * 70_000, b"g"]
    expected = b"".join(buffers)
    sender = threading.Thread(target=ours.send, args=(buffers, 10))
    sender.start()
    assert read(theirs, len(expected)) == expected
    sender.join()
    assert (ours.bytes_sent, theirs.bytes_received) == (len(expected), len(expected))


def test_one_thread_reads_while_another_one_writes(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    data = bytes(range(256)) * 20_000  # 5 MB each way: more than every buffer between
    threads = [threading.Thread(target=stream.send, args=([data], 20)) for stream in both]
    received: dict[Stream, bytes] = {}

    def receive(stream: Stream) -> None:
        received[stream] = read(stream, len(data))

    threads += [threading.Thread(target=receive, args=(stream,)) for stream in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert received[ours] == data
    assert received[theirs] == data


def test_what_is_looked_at_stays_to_be_read(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    assert not theirs.wait_readable(0)
    ours.send([b"GET / HTTP/1.0"], 5)
    assert theirs.wait_readable(5)
    assert theirs.peek(4, 5) == b"GET "
    assert theirs.peek(3, 5) == b"GET"
    assert not theirs.ended()
    assert read(theirs, 14) == b"GET / HTTP/1.0"
    assert not theirs.wait_readable(0)


def test_the_end_shows_once_all_before_it_was_read(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    ours.send([b"x"], 5)
    ours.close()
    assert theirs.wait_readable(5)
    assert not theirs.ended()
    assert read(theirs, 2) == b"x"
    assert theirs.wait_readable(5)
    assert theirs.ended()


def test_asking_for_the_end_takes_nothing_from_a_thread_that_reads(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    with ThreadPoolExecutor(1) as pool:
        for number in range(50):
            reading = pool.submit(read, theirs, 3)
            assert not theirs.ended()
            ours.send([b"%03d" % number], 5)
            while not reading.done():
                theirs.ended()
            assert reading.result() == b"%03d" % number


def test_an_end_without_close_notify_is_an_end(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    socket.socket.shutdown(ours.sock, socket.SHUT_WR)
    assert read(theirs, 1) == b""
    assert theirs.ended()


def test_a_peer_that_sends_nothing_runs_out_of_time(both: tuple[Stream, Stream]) -> None:
    _, theirs = both
    with pytest.raises(RequestTimeout) as raised:
        theirs.recv_into((memoryview(bytearray(1)),), 0.05)
    assert str(raised.value) == f"{theirs.peer} sent nothing for 0.05 s; the connection was closed"


def test_a_peer_that_does_not_read_runs_out_of_time(both: tuple[Stream, Stream]) -> None:
    ours, _ = both
    with pytest.raises(RequestTimeout) as raised:
        ours.send([bytes(50_000_000)], 0.1)
    assert str(raised.value) == f"{ours.peer} did not read our bytes within 0.1 s; the connection was closed"


@pytest.mark.parametrize("end", [Stream.shutdown, Stream.shutdown_read])
def test_another_thread_ends_a_blocked_read(
    both: tuple[Stream, Stream], end: Callable[[Stream], None]
) -> None:
    ours, _ = both
    stopper = threading.Thread(target=end, args=(ours,))
    stopper.start()
    assert read(ours, 1) == b""
    stopper.join()


def test_ending_a_closed_stream_is_no_error(both: tuple[Stream, Stream]) -> None:
    ours, _ = both
    ours.close()
    ours.close()
    ours.shutdown()
    ours.shutdown_read()
    assert ours.ended()
    with pytest.raises(ConnectionLost):
        ours.wait_readable(0)
    with pytest.raises(ConnectionLost):
        ours.send([b"x"], 5)
    with pytest.raises(ConnectionLost):
        read(ours, 1)


def test_a_reply_is_read_by_a_peer_that_is_still_sending(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    ours.send([bytes(100_000)], 10)
    theirs.send([b"refused"], 5)
    closer = threading.Thread(target=theirs.close_after_reading, args=(10,))
    closer.start()
    ours.send([bytes(100_000)], 10)
    assert read(ours, 8) == b"refused"
    ours.close()
    closer.join()


def test_both_ends_know_their_addresses(both: tuple[Stream, Stream]) -> None:
    ours, theirs = both
    assert ours.peer == f"127.0.0.1:{theirs.sock.getsockname()[1]}"
    assert theirs.peer == f"127.0.0.1:{ours.sock.getsockname()[1]}"
    assert (ours.local_host, theirs.local_host) == ("127.0.0.1", "127.0.0.1")


def test_a_pair_of_unix_sockets_is_a_stream() -> None:
    one, other = (Stream(sock) for sock in socket.socketpair())
    one.send([b"x"], 5)
    assert read(other, 1) == b"x"
    assert (one.peer, one.local_host) == ("the other process", "")
    one.close()
    assert other.wait_readable(5)
    assert other.ended()
    other.close()


def test_without_sendmsg_the_same_bytes_are_sent() -> None:
    class WindowsSocket(socket.socket):
        sendmsg = property()  # type: ignore[assignment]

    one, other = socket.socketpair()
    ours = Stream(WindowsSocket(fileno=one.detach()))
    theirs = Stream(other)
    data = [b"abc", bytes(200_000), b"def"]
    sender = threading.Thread(target=ours.send, args=(data, 10))
    sender.start()
    assert read(theirs, 200_006) == b"".join(data)
    sender.join()
    ours.close()
    theirs.close()


def test_frames_cross_tls(certificates: Certificates) -> None:
    payload = bytes(range(256)) * 10_000
    server = server_tls(certificates.server_cert, certificates.server_key)
    with pair(server, client_tls(certificates.ca)) as streams:
        ours, theirs = (Connection(stream) for stream in streams)
        sender = threading.Thread(target=ours.send, args=(encode_frame(payload),), kwargs={"timeout_s": 20})
        sender.start()
        received = theirs.receive(wait_s=20, finish_s=20)
        sender.join()
        assert received is not None
        assert payload in received
        assert ours.stream.sock.version() in ("TLSv1.2", "TLSv1.3")  # type: ignore[attr-defined]


def test_a_name_is_verified_as_an_address_is(certificates: Certificates) -> None:
    with accepting(server_tls(certificates.server_cert, certificates.server_key)) as (port, accepted):
        Stream.connect("localhost", port, timeout_s=10, tls=client_tls(certificates.ca)).close()
        accepted.result(timeout=10)


def failures(server: ssl.SSLContext | None, client: ssl.SSLContext | None) -> tuple[str, str]:
    """Return what a client and a server say of a connection that TLS does not allow, with ``PEER`` in it."""
    with accepting(server) as (port, accepted):
        try:
            connection = Connection.connect("127.0.0.1", port, timeout_s=5, tls=client)
            connection.exchange(encode_frame({"method": "hello"}), timeout_s=5)
            pytest.fail("this connection should fail")
        except TransportError as exc:
            at_client = f"{type(exc).__name__}: {exc}".replace(f"127.0.0.1:{port}", "PEER")
        try:
            accepted.result(timeout=10)
        except TransportError as exc:
            peer = str(exc)[str(exc).index("127.0.0.1:") :].split()[0].rstrip(":")
            return at_client, f"{type(exc).__name__}: {exc}".replace(peer, "PEER")
        return at_client, ""


def test_a_certificate_of_an_unknown_authority_is_refused(certificates: Certificates) -> None:
    at_client, at_server = failures(
        server_tls(certificates.server_cert, certificates.server_key), client_tls(certificates.other_ca)
    )
    assert at_client == (
        "TlsFailed: the certificate of PEER is not trusted (unable to get local issuer certificate): "
        "pass the file of its authority as ca (programs: --tls_ca)"
    )
    assert at_server == "TlsFailed: PEER refused this server's certificate (tlsv1 alert unknown ca)"


def test_a_certificate_for_another_name_is_refused(certificates: Certificates) -> None:
    at_client, _ = failures(
        server_tls(certificates.elsewhere_cert, certificates.elsewhere_key), client_tls(certificates.ca)
    )
    assert at_client == (
        "TlsFailed: the certificate of PEER is for another name: IP address mismatch, certificate is not "
        "valid for '127.0.0.1'. Connect by a name that the certificate has"
    )


def test_a_client_with_a_certificate_is_served_where_one_is_asked_for(certificates: Certificates) -> None:
    server = server_tls(certificates.server_cert, certificates.server_key, certificates.ca)
    client = client_tls(certificates.ca, certificates.client_cert, certificates.client_key)
    with pair(server, client) as (ours, theirs):
        ours.send([b"x"], 5)
        assert read(theirs, 1) == b"x"


def test_a_client_without_a_certificate_is_refused_where_one_is_asked_for(certificates: Certificates) -> None:
    at_client, at_server = failures(
        server_tls(certificates.server_cert, certificates.server_key, certificates.ca),
        client_tls(certificates.ca),
    )
    assert at_client == (
        "TlsFailed: PEER refused the TLS connection (tlsv13 alert certificate required): "
        "pass a client certificate that it trusts as tls_cert and tls_key"
    )
    assert at_server == "TlsFailed: PEER showed no client certificate, which this server asks for"


def test_a_client_with_an_untrusted_certificate_is_refused(certificates: Certificates) -> None:
    at_client, at_server = failures(
        server_tls(certificates.server_cert, certificates.server_key, certificates.other_ca),
        client_tls(certificates.ca, certificates.client_cert, certificates.client_key),
    )
    assert at_client == (
        "TlsFailed: PEER refused the TLS connection (tlsv1 alert unknown ca): "
        "pass a client certificate that it trusts as tls_cert and tls_key"
    )
    # What follows are OpenSSL's words, which depend on the certificates that the client sends along.
    assert at_server.startswith("TlsFailed: the client certificate of PEER is not trusted (")


def test_a_plain_client_on_a_tls_port_is_told_so(certificates: Certificates) -> None:
    at_client, at_server = failures(server_tls(certificates.server_cert, certificates.server_key), None)
    assert at_client == "TlsFailed: PEER speaks TLS: pass tls=True (programs: --tls)"
    assert at_server == (
        "TlsFailed: a plain client on the TLS port: PEER must pass tls=True (programs: --tls)"
    )


def test_a_tls_client_on_a_plain_port_that_closes_is_told_so(certificates: Certificates) -> None:
    with accepting(None) as (port, accepted):
        serving = threading.Thread(target=lambda: refuse_frames(accepted))
        serving.start()
        with pytest.raises(ConnectFailed) as raised:
            Stream.connect("127.0.0.1", port, timeout_s=5, tls=client_tls(certificates.ca))
        serving.join()
    assert str(raised.value) == (
        f"127.0.0.1:{port} closed the connection during the TLS handshake: "
        "it does not speak TLS: leave tls out, or it is about to stop"
    )


def refuse_frames(accepted: Accepted) -> None:
    with pytest.raises(
        TlsFailed, match=r"^a TLS client on a plain port: 127\.0\.0\.1:\d+ must leave tls out"
    ):
        Connection(accepted.result(timeout=5), text=True).receive(wait_s=5, finish_s=5)


def test_a_tls_client_on_a_plain_port_that_answers_is_told_so(certificates: Certificates) -> None:
    with accepting(None) as (port, accepted):
        answering = threading.Thread(target=lambda: accepted.result(timeout=5).send([b"\0\0\0\x02hi"], 5))
        answering.start()
        with pytest.raises(TlsFailed) as raised:
            Stream.connect("127.0.0.1", port, timeout_s=5, tls=client_tls(certificates.ca))
        answering.join()
    assert str(raised.value) == f"127.0.0.1:{port} does not speak TLS: leave tls out"


def test_a_server_that_never_answers_the_handshake_runs_out_of_time(certificates: Certificates) -> None:
    with accepting(None) as (port, _), pytest.raises(ConnectFailed) as raised:
        Stream.connect("127.0.0.1", port, timeout_s=0.2, tls=client_tls(certificates.ca))
    assert str(raised.value) == (
        f"127.0.0.1:{port} did not finish the TLS handshake within 0.2 s: "
        "if it does not speak TLS, leave tls out"
    )


@pytest.mark.parametrize("first", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
def test_a_client_that_stalls_in_the_handshake_runs_out_of_time(
    certificates: Certificates, first: bytes
) -> None:
    context = server_tls(certificates.server_cert, certificates.server_key)
    with accepting(context, timeout_s=0.2) as (port, accepted):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(first)
        with pytest.raises(RequestTimeout):
            accepted.result(timeout=10)
        sock.close()


def test_a_client_that_leaves_in_the_handshake_is_lost(certificates: Certificates) -> None:
    with accepting(server_tls(certificates.server_cert, certificates.server_key)) as (port, accepted):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"\x16\x03\x01")
        with pytest.raises(ConnectionLost, match=r"closed the connection during the TLS handshake$"):
            accepted.result(timeout=10)


def test_shutdown_ends_a_handshake(certificates: Certificates) -> None:
    context = server_tls(certificates.server_cert, certificates.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        for _ in range(30):  # in each state that a handshake begins in
            sock = socket.create_connection(listener.getsockname()[:2])
            stream = Stream(listener.accept()[0])
            sock.sendall(b"\x16\x03\x01")
            handshake = pool.submit(stream.accept_tls, context, timeout_s=30)
            stream.shutdown()
            assert isinstance(handshake.exception(timeout=5), TransportError)
            sock.close()


def test_files_of_certificates_that_can_not_be_used_are_named(certificates: Certificates) -> None:
    missing = certificates.ca + ".missing"
    for call, expected in [
        (lambda: client_tls(missing), f"ca is {missing!r}, which can't be read: No such file or directory"),
        (
            lambda: server_tls(missing, flags="--"),
            f"--tls_cert is {missing!r}, which can't be read: No such file or directory",
        ),
        (
            lambda: client_tls(key=certificates.client_key),
            "tls_key is given without tls_cert, its certificate",
        ),
        (
            lambda: server_tls(certificates.server_cert, certificates.client_key),
            f"tls_cert is {certificates.server_cert!r} and tls_key is {certificates.client_key!r}: "
            "the key is not that of the certificate",
        ),
    ]:
        with pytest.raises(ConfigurationError) as raised:
            call()
        assert str(raised.value) == expected


def test_files_that_hold_something_else_are_refused(certificates: Certificates) -> None:
    with pytest.raises(ConfigurationError, match=r"which holds no PEM certificates"):
        client_tls(certificates.server_key)
    with pytest.raises(ConfigurationError, match=r"expected PEM files of a certificate and its private key"):
        server_tls(certificates.server_cert)
    with pytest.raises(ConfigurationError, match=r"not encrypted"):
        server_tls(certificates.server_cert, certificates.encrypted_key)


def test_waiting_needs_no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robowire.transport.stream._Selector", selectors.SelectSelector)
    one, other = (Stream(sock) for sock in socket.socketpair())
    assert not one.wait_readable(0.01)
    other.send([b"x"], 5)
    assert one.wait_readable(5)
    assert not one.ended()
    one.close()
    other.close()


# timeouts of the kernel


@pytest.fixture(params=["tcp", "unix"])
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stream, Stream]]:
    """Two ends of a connection, whose kernel waits less long than a call may take."""
    monkeypatch.setattr(stream_module, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(stream_module, "_UNIX_SEND_WAIT_S", 0.02)
    if request.param == "tcp":
        with pair(None, None) as streams:
            yield streams
        return
    ours, theirs = (Stream(sock) for sock in socket.socketpair(socket.AF_UNIX))
    yield ours, theirs
    ours.close()
    theirs.close()


def test_waiting_in_parts_ends_at_the_deadline(plain: tuple[Stream, Stream]) -> None:
    ours, _ = plain
    calls = (
        lambda: ours.recv_into((memoryview(bytearray(10)),), 0.12),
        lambda: ours.recv_into((memoryview(bytearray(10)),), 0.12, whole=True),
        lambda: ours.recv_into((memoryview(bytearray(4)), memoryview(bytearray(6))), 0.12),
        lambda: ours.peek(1, 0.12),
        lambda: ours.send([bytes(16 << 20)], 0.12),
    )
    for call in calls:
        begun = time.monotonic()
        with pytest.raises(RequestTimeout):
            call()
        assert 0.1 <= time.monotonic() - begun < 1


def test_what_comes_after_some_waits_is_received(plain: tuple[Stream, Stream]) -> None:
    ours, theirs = plain
    buffer = bytearray(10)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(ours.recv_into, (memoryview(buffer),), None)
        time.sleep(0.12)
        theirs.send([b"abc"], 5)
        assert received.result(timeout=5) == 3
        whole = pool.submit(ours.recv_into, (memoryview(buffer),), 5, whole=True)
        theirs.send([b"0123456789"], 5)
        assert whole.result(timeout=5) == 10
        parts = [bytearray(4), bytearray(6)]
        cut = pool.submit(ours.recv_into, [memoryview(part) for part in parts], 5)
        time.sleep(0.12)
        theirs.send([b"ABCDEF"], 5)
        assert cut.result(timeout=5) == 6
    assert buffer == b"0123456789"
    assert parts == [b"ABCD", b"EF" + bytes(4)]


def test_a_peer_that_sends_a_byte_now_and_then_runs_out_of_time(plain: tuple[Stream, Stream]) -> None:
    ours, theirs = plain
    connection = Connection(ours)
    stop = threading.Event()

    def dribble() -> None:
        with suppress(TransportError):
            theirs.send([b"\x00\x00\x10\x00"], 5)
            while not stop.wait(0.03):
                theirs.send([b"x"], 5)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(dribble)
        begun = time.monotonic()
        with pytest.raises(RequestTimeout, match="did not finish a frame within"):
            connection.receive(wait_s=5, finish_s=0.3)
        assert 0.25 <= time.monotonic() - begun < 1.5
        stop.set()


def test_a_request_needs_no_call_that_sets_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    with pair(None, None) as (ours, theirs):
        real = Stream._set_wait

        def counted(self: Stream, option: str, seconds: float) -> None:
            calls.append(seconds)
            real(self, option, seconds)

        monkeypatch.setattr(Stream, "_set_wait", counted)
        for _ in range(3):
            ours.send([b"abc"], 30)
            assert theirs.recv_into((memoryview(bytearray(3)),), 60, whole=True) == 3
    assert len(calls) <= 2
