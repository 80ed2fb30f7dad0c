"""What a draw is from."""

from __future__ import annotations

from torch import Tensor

from tersor.runtime.sampling import Sampler


def chances_of(sampler: Sampler, tokens: list[int], logits: Tensor) -> Tensor:
    """Probabilities ``[vocabulary]`` behind ``tokens``, by all processors over all of the vocabulary."""
    scores = sampler._processed([*sampler._processors, *sampler._warpers], tokens, logits)
    return scores.float().softmax(-1)
