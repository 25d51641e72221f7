"""Byte streams and connections that carry frames."""
