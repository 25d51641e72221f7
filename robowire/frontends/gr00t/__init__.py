"""GR00T's ZeroMQ wire: msgpack maps of REQ sockets, in the words of N1.5, N1.6 and N1.7."""
