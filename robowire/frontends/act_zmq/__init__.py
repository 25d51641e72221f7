"""The ACT server's ZeroMQ wire: pickles of REQ sockets, one action an observation."""
