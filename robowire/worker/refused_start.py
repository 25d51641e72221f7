"""What a worker answers where it cannot begin its work, and how it words what users' code raised."""

from __future__ import annotations

import logging

from robowire.errors import BackendError, RobowireError
from robowire.transport.connection import Connection
from robowire.wire.messages import error_reply
from robowire.wire.pickle.writer import encode_frame
from robowire.wire.text_safety import printable

__all__ = ["SEND_TIMEOUT_S", "message_of", "refuse_start"]

logger = logging.getLogger(__name__)

# The server reads an answer as soon as it comes; longer than this it is not alive.
SEND_TIMEOUT_S = 60.0


def message_of(exc: BaseException) -> str:
    """Return type and text of an exception, short and printable."""
    message = printable(exc, 300)
    return f"{type(exc).__name__}: {message}" if message else type(exc).__name__


def refuse_start(connection: Connection, what: str, exc: Exception) -> None:
    """Answer the server that importing or building failed, and log why.

    Args:
        connection: To the server.
        what: Of what, such as ``"policy 'act'"``.
        exc: What was raised, which may be anything.
    """
    # Our own errors are whole sentences, and their traceback would lead into our files.
    ours = isinstance(exc, RobowireError)
    logger.error("cannot start: %s", exc, exc_info=None if ours else exc)
    reason = str(exc) if ours else f"{what} cannot start: {message_of(exc)}"
    connection.send(encode_frame(error_reply(BackendError(reason))), timeout_s=SEND_TIMEOUT_S)
