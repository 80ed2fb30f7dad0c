"""Raise attention written in plain ATen to ``tersor.attention``, and masks to what they mean."""

from .driver import raise_attention

__all__ = ["raise_attention"]
