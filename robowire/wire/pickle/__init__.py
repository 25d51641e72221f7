"""Pickles of plain data: scanned, read and written without executing anything."""
