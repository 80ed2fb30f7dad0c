"""How weights are stored: one file a kind, and what decides which of a Program's weights a kind stores."""

from __future__ import annotations

from .kind import Kind, Stored
from .kinds import check_operators, find_kind, kinds
from .plan import storable, stored_as, stored_weights

__all__ = [
    "Kind",
    "Stored",
    "check_operators",
    "find_kind",
    "kinds",
    "storable",
    "stored_as",
    "stored_weights",
]
