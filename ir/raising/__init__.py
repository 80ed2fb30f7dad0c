"""Raise attention written in plain ATen to ``tersor.attention``, and masks to what they mean."""

from ._pattern import arguments, calls
from .driver import raise_attention

__all__ = ["arguments", "calls", "raise_attention"]
