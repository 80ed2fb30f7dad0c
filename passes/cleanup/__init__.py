"""Clean-up that any compiler has, each pass exact; ``Cleanup`` runs them all to a fixed point."""

from .cleanup import Cleanup

__all__ = ["Cleanup"]
