"""Module paths such as ``encoder.layer.3.attention.self``, the labels that nodes carry."""

from __future__ import annotations


def block_path(path: str) -> str:
    """The repeated block a path lies in: all up to its first number, the whole path where it has none."""
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])
