"""How embeddings of a shortened model are judged, one value per item, and how sure a difference of means is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_RESAMPLES = 2000
_CONFIDENCE = 0.95

Values = NDArray[np.float64]


def cosines(embeddings: Tensor, reference: Tensor) -> Values:
    """Cosine of every row with the same row of ``reference``; both ``[items, width]``."""
    return _values(torch.cosine_similarity(embeddings.double(), reference.double(), dim=-1))


def nearest(embeddings: Tensor) -> Tensor:
    """Index of each row's nearest other row by cosine, int64 ``[items]``."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    similarity = unit @ unit.T
    return similarity.fill_diagonal_(-torch.inf).argmax(dim=1)


def neighbour_agreement(embeddings: Tensor, reference: Tensor) -> Values:
    """1 where a row has the nearest neighbour that it has in ``reference``, else 0."""
    return _values(nearest(embeddings) == nearest(reference))


def label_hits(embeddings: Tensor, labels: Tensor) -> Values:
    """1 where the nearest other row has the row's own label, else 0; ``labels`` is int64 ``[items]``."""
    return _values(labels[nearest(embeddings)] == labels)


def ranks(queries: Tensor, documents: Tensor) -> Tensor:
    """Rank from 1 of document i among all documents for query i, by cosine; int64 ``[items]``.

    Equal scores count against it, so that embeddings that have all become the same rank last and not first.
    """
    unit = torch.nn.functional.normalize
    similarity = unit(queries.double(), dim=-1) @ unit(documents.double(), dim=-1).T
    return (similarity >= similarity.diagonal()[:, None]).sum(dim=1)


def first_hits(rank: Tensor) -> Values:
    """1 where the right document came first, else 0; the mean is accuracy@1."""
    return _values(rank == 1)


def reciprocal_ranks(rank: Tensor) -> Values:
    """The mean is the mean reciprocal rank."""
    return 1.0 / _values(rank)


@dataclass(frozen=True)
class Margin:
    """A difference of two means over the same items, and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def margin(values: Values, control: Values, seed: int = 0) -> Margin:
    """The mean of ``values - control`` with the percentile interval of a paired bootstrap over items.

    Args:
        values: one value an item ``[items]``.
        control: the same items under the control ``[items]``, already averaged over its seeds.

    Raises:
        ValueError: the two do not belong to the same items, or there are none.
    """
    if values.shape != control.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape} and control {control.shape} must be one value an item each")
    difference = values - control
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(difference), size=(_RESAMPLES, len(difference)))
    means = difference[drawn].mean(axis=1)
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Margin(float(difference.mean()), float(low), float(high))


def _values(tensor: Tensor) -> Values:
    return tensor.to(torch.float64).numpy()
