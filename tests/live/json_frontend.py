"""A second wire for any service, in one file: JSON, one request a line, one reply a line."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Mapping
from typing import Any

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RequestError
from robowire.serving.service import Service
from robowire.serving.sessions import Peer
from robowire.wire.messages import Request, error_reply, ok


class JsonExchange:
    """One line and its reply."""

    def __init__(self, line: bytes) -> None:
        try:
            value: Any = json.loads(line)
        except ValueError:
            value = None
        self._params: Mapping[str, Any] = value if isinstance(value, dict) else {}
        self.method = str(self._params.get("method", ""))

    def read(self) -> Request:
        if not self.method:
            raise InvalidParams("a request is a JSON object with a 'method'")
        return Request(self.method, {name: v for name, v in self._params.items() if name != "method"})

    def reply(self, value: Any) -> bytes:
        if isinstance(value, ActionChunk):
            value = ok(actions=value.actions.tolist())
        return json.dumps(value).encode() + b"\n"

    def failure(self, error: RequestError) -> bytes:
        return json.dumps(error_reply(error)).encode() + b"\n"


class JsonHandler(socketserver.StreamRequestHandler):
    server: JsonServer

    def handle(self) -> None:
        service = self.server.service
        session = service.open_session(Peer("{}:{}".format(*self.client_address)))
        try:
            for line in self.rfile:
                self.wfile.write(service.answer(session, self.server.exchange(line)))
        finally:
            service.close_session(session)


class JsonServer(socketserver.ThreadingTCPServer):
    """The wire of a service; with the five methods that a runner calls."""

    name = "json"
    daemon_threads = True
    exchange = JsonExchange

    def __init__(self, service: Service[Any]) -> None:
        super().__init__(("127.0.0.1", 0), JsonHandler)
        self.service = service
        self.address: tuple[str, int] = ("127.0.0.1", self.server_address[1])
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def describe(self) -> str:
        return f"JSON lines on port {self.address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop_listening(self) -> None:
        self.shutdown()

    def drain(self, deadline: float) -> None:
        """Nothing: replies are sent when the service is idle."""

    def close(self) -> None:
        self._thread.join()
        self.server_close()
