"""Which probes to feed: those whose guesses give the next step more tokens than they cost, by what they gave so far.

The dynamic sparse tree of parallel prompt decoding (Chen et al. 2024), which is chosen there beforehand, of acceptance
that was measured for a model.  Here both are learned while text is made, as chances of guesses are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .tree import TokenTree

# What a probe is thought to give before anything is known: of a trained first one, and of each one behind another.
_FIRST, _NEXT = 0.4, 0.5
# That has the weight of so many steps, and what is known loses this share of its own with every step: a probe that has
# not paid is fed again after a while, to see whether it does now.
_PRIOR_WEIGHT, _FORGET = 2.0, 0.01


class Gains:
    """What the probes at the end of a text give the next step: tokens, less what checking their guesses costs."""

    def __init__(self, most: int) -> None:
        """Of at most so many behind one another."""
        self._given, self._tried = [0.0] * most, [0.0] * most

    def of(self, probe: int) -> float:
        """Of the probe behind so many others; what those give is not counted twice."""
        prior = _FIRST * _NEXT**probe
        return (self._given[probe] + prior * _PRIOR_WEIGHT) / (self._tried[probe] + _PRIOR_WEIGHT)

    def learn(self, fed: int, tree: TokenTree, path: Sequence[int], cost: Callable[[int], float]) -> None:
        """One step of which ``fed`` probes were at the end of the text before it.

        Args:
            tree: what was checked.  path: the nodes of it that were right, node 0 included.
            cost: what checking so many of its guesses takes, in tokens that a plain step would give.
        """
        guesses = tree.guesses
        for probe in range(len(self._tried)):
            self._given[probe] *= 1 - _FORGET
            self._tried[probe] *= 1 - _FORGET
            if probe < fed:
                place = probe + 1
                own = [n for n in range(1, 1 + guesses) if tree.depths[n] == place and tree.probed[n]]
                right = len(path) > place and tree.probed[path[place]]
                self._given[probe] += right - (cost(guesses) - cost(guesses - len(own)))
                self._tried[probe] += 1


def ranked_probes(
    tree: TokenTree, chances: Sequence[float], gains: Gains, deepest: int, each: int
) -> list[tuple[float, int]]:
    """Where probes may stand, the most worth first: what each is worth, and the node that it is behind.

    Args:
        tree: guesses, each of which is right with ``chances``.
        deepest: how far ahead a probe may stand.  each: how many may stand behind one node.
    """
    # A node ends what was right if it is right itself and none of its children is.
    last = [1.0, *chances]
    for node, chance in enumerate(chances, 1):
        last[tree.parents[node]] -= chance
    worth, gain = [], 1.0
    for probe in range(each):
        # No more than the one that it stands behind, before which it cannot be fed.
        gain = min(gain, gains.of(probe))
        if gain <= 0:
            break
        worth += [
            (chance * gain, node)
            for node, chance in enumerate(last)
            if chance > 0 and tree.depths[node] + 1 + probe <= deepest
        ]
    return sorted(worth, key=lambda pair: -pair[0])
