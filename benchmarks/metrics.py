"""How embeddings of a shortened model are judged, one value per item, and how sure a difference of means is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

_RESAMPLES = 2000
_CONFIDENCE = 0.95

Values = NDArray[np.float64]
Clusters = NDArray[np.int64]


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


def margin(values: Values, controls: Values, clusters: Clusters, seed: int = 0) -> Margin:
    """The mean of ``values`` less that of ``controls``, with the interval of a bootstrap over clusters and controls.

    Items of one source are alike, so that whole sources are drawn; the control is a sample of its seeds, so that they
    are drawn too.  The percentiles are those of Hesterberg 2015 ("What Teachers Should Know About the Bootstrap"),
    which lie further out for few clusters, where plain ones hold the mean in about 91 of 100 cases instead of 95.

    Args:
        values: one value an item ``[items]``.
        controls: the same items under each seed of the control ``[seeds, items]``.
        clusters: int64 ``[items]``, equal for items of one source.

    Raises:
        ValueError: the three do not belong to the same items, or there are fewer than two sources.
    """
    items = values.shape
    if len(items) != 1 or controls.shape[1:] != items or clusters.shape != items or not len(controls):
        raise ValueError(
            f"values {items}, controls {controls.shape} and clusters {clusters.shape} must be [items], "
            "[seeds, items] and [items]"
        )
    kinds, source = np.unique(clusters, return_inverse=True)
    if len(kinds) < 2:
        raise ValueError(f"{len(kinds)} clusters: how much sources differ takes at least two of them")
    difference = values - controls
    sums = np.stack([np.bincount(source, weights=row) for row in difference])
    rng = np.random.default_rng(seed)
    sources, seeds = _draws(rng, len(kinds)), _draws(rng, len(controls))
    totals = np.einsum("rs,sc,rc->r", seeds / len(controls), sums, sources, optimize=True)
    tail = _tail(len(kinds))
    low, high = np.percentile(totals / (sources @ np.bincount(source)), [100 * tail, 100 * (1 - tail)])
    return Margin(float(difference.mean()), float(low), float(high))


def _draws(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """How often each of ``count`` things is drawn in ``count`` draws with replacement, ``[resamples, count]``."""
    return rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)


def _tail(count: int) -> float:
    """The share of resamples on either side of the interval, for ``count`` things that were drawn from.

    A bootstrap's variance is too small by ``(count - 1) / count``, and it knows nothing of Student's t.
    """
    reach = math.sqrt(count / (count - 1)) * student.ppf((1 + _CONFIDENCE) / 2, count - 1)
    return NormalDist().cdf(-reach)


def _values(tensor: Tensor) -> Values:
    return tensor.to(torch.float64).numpy()
