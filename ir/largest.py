"""The largest of many numbers, by way of the largest of each block of them."""

from __future__ import annotations

import numpy as np

# Numbers that are compared with each other first.
_BLOCK = 512


def among_largest(scores: np.ndarray, count: int) -> np.ndarray | None:
    """Places in ``scores [n]``, in order, among which are its ``count`` largest and all that are equal to one of them.

    Of a vocabulary they are found in a fraction of the time that sorting takes.

    Returns:
        None stands for all of them: where there are too few to pay, and where the largest or any is no number.
    """
    whole = len(scores) // _BLOCK * _BLOCK
    if not 0 < count <= whole // _BLOCK:
        return None
    peaks = scores[:whole].reshape(-1, _BLOCK).max(axis=1)
    # At least so many are no smaller: the peaks themselves.
    least = np.partition(peaks, -count)[-count]
    if not np.isfinite(least) or not np.isfinite(peaks.max()) or np.isnan(scores[whole:]).any():
        return None
    blocks = np.flatnonzero(peaks >= least)
    inside = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
    places = np.concatenate([inside, np.arange(whole, len(scores))])
    among: np.ndarray = places[scores[places] >= least]
    return among
