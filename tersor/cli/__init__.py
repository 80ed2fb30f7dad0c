"""The ``tersor`` command; ``docs/cli.md`` describes it."""

from .app import app, main

__all__ = ["app", "main"]
