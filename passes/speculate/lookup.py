"""Looking up what followed the end of a text where it stood before, in tensor operators alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# No token id.
_NONE = -1


class Lookup(nn.Module):
    """Guesses by the latest earlier place of the longest run that ends the text, as the drafters of runs do.

    A module of tensor operators can be captured, and so run where there is no Python.  There is no policy there either,
    which would learn how often guesses are right: longer runs say more, so that more is guessed behind them.
    """

    counts: Tensor

    def __init__(self, shortest: int, longest: int, most: int) -> None:
        """Looks for runs of ``shortest`` to ``longest`` tokens, and guesses up to ``most`` behind them."""
        super().__init__()
        self.longest, self.most = longest, most
        counts = [0 if run < shortest else min(_behind(run), most) for run in range(longest + 1)]
        self.register_buffer("counts", torch.tensor(counts))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What may follow.

        Args:
            tokens: int64 ``[n]``, at least one.

        Returns:
            guesses, int64 ``[most]``; how many of them count, int64 ``[1]``: none where no run stood before.
        """
        count = tokens.shape[0]
        place = torch.arange(count)
        back = torch.arange(1, self.longest + 1)
        padded = torch.cat([torch.full((self.longest,), _NONE), tokens])
        last = padded[count + self.longest - back]
        before = padded[place[:, None] + (self.longest - back)[None, :]]
        same = (before == last[None, :]) & (last != _NONE)[None, :]
        # The first difference, which is there at the latest behind the longest run.
        ends = torch.cat([same, torch.zeros_like(same[:, :1])], dim=1)
        length = ends.to(torch.int32).argmin(dim=1)
        # Of equally long runs the latest.
        best = (length * count + place).argmax(dim=0, keepdim=True)
        ahead = torch.arange(self.most)
        # Past the end of the text the guesses go on as it does.
        guesses = tokens[best + ahead % (count - best)]
        return guesses, self.counts[length[best]]


def _behind(run: int) -> int:
    """How many guesses a run is worth: what gave most tokens a second of Gemma 3 270M, whatever the kind of text."""
    return 1 if run == 1 else int(2 ** min(run, 10))
