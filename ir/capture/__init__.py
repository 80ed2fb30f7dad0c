"""From a model, folder, archive or factory to a Program."""

from .frontend import capture

__all__ = ["capture"]
