"""The wire: framing, safe pickles, messages. Bytes in, events out; no socket, thread or clock in here."""
