"""The version of this package, in the one place that the wheel, ``get_info`` and ``--version`` read."""

__version__ = "0.1.0"
