"""The address under which MetaObs and MetaAction are pickled on the wire; they live in ``robowire.meta``."""

from robowire.meta import MetaAction, MetaObs

__all__ = ["MetaAction", "MetaObs"]
