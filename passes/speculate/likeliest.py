"""The likeliest tokens of a row of logits."""

from __future__ import annotations

import numpy as np

from tersor.ir.largest import among_largest


def likeliest(scores: np.ndarray, count: int) -> list[int]:
    """The places of the largest of ``scores [vocabulary]``, in order; a step pays for it once a node."""
    among = among_largest(scores, count)
    places = np.arange(len(scores)) if among is None else among
    return places[np.argsort(-scores[places], kind="stable")[:count]].tolist()  # type: ignore[no-any-return]
