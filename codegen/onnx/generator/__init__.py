"""A decoder with its loop as one model: prompt and count in, new tokens out."""

from .build import build_generator, export_generator

__all__ = ["build_generator", "export_generator"]
