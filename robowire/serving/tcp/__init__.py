"""The TCP frontend: the native wire."""

from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.server import TcpServer

__all__ = ["TcpOptions", "TcpServer", "listen"]
