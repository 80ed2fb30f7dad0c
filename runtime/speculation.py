"""How many guesses to check, and which: those that gave most tokens per second, by what was right so far."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod

from tersor.ir.drafting import Draft

from .cost_curve import CostCurve
from .tree import TokenTree

# What is known of a kind of guess loses this share of its weight with every one that turns out right or wrong.
_FORGET = 0.03
# What a drafter says of a kind beforehand has the weight of so many guesses.
_PRIOR_WEIGHT = 2.0
# Guessing may have cost, on balance, this share of all the time and the time of so many steps of one token.
_MAY_LOSE, _CREDIT = 0.01, 2.0
# Where it cost more, guesses are checked only if so many times the tokens a second are expected of them.
_SURE = 1.3
# Of what is known of the time that guessing takes, so much is the last step's.
_LATELY = 0.1


@dataclass
class Statistics:
    """What guessing came to.

    Attributes:
        steps: runs of the model behind the prompt.  tokens: what they gave.
        guesses: how many were checked.  probes: how many prompt tokens were fed beside them.
        drafted, accepted: in how many checks there were guesses so many tokens ahead, and in how many one was right.
        drafting, verifying: seconds.
    """

    steps: int = 0
    tokens: int = 0
    guesses: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    drafting: float = 0.0
    verifying: float = 0.0
    probes: int = 0

    def count(self, checked: TokenTree, accepted: int) -> None:
        """One tree, of which guesses on the first ``accepted`` depths were right."""
        guesses = checked.guesses
        self.guesses += guesses
        self.probes += len(checked) - 1 - guesses
        depth = max(checked.depths[: 1 + guesses])
        missing = depth - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for place in range(depth):
            self.drafted[place] += 1
            self.accepted[place] += place < accepted

    def __str__(self) -> str:
        places = " ".join(f"{a}/{d}" for a, d in zip(self.accepted, self.drafted, strict=True)) or "none"
        share = self.tokens / self.steps if self.steps else 0.0
        probes = f" and {self.probes} prompt tokens" if self.probes else ""
        return (
            f"{self.tokens} tokens in {self.steps} steps ({share:.2f} a step); {self.guesses} guesses{probes}, right "
            f"by place: {places}; {self.verifying:.2f} s in the model, {self.drafting:.3f} s guessing"
        )


class Rates:
    """How often guesses are right, given that those before them were: by kind, and by how far ahead they are."""

    def __init__(self) -> None:
        self._right: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._tried: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._watched: list[tuple[TokenTree, int]] = []

    def of(self, kind: int, depth: int, chance: float) -> float:
        """Of one kind so far ahead; ``chance`` is what is thought of it before anything is known."""
        key = (kind, depth)
        return (self._right[key] + chance * _PRIOR_WEIGHT) / (self._tried[key] + _PRIOR_WEIGHT)

    def of_draft(self, draft: Draft) -> float:
        """How likely all of it is right."""
        rates = (self.of(*guess) for guess in zip(draft.kinds, count(1), draft.chances, strict=False))
        return prod(rates)

    def ranked(self, tree: TokenTree, most: int) -> tuple[list[int], list[float]]:
        """At most so many guesses, the likeliest first and none before its parent, and how likely each is right."""
        nodes: list[int] = []
        chances: list[float] = []
        ahead = [(-chance, node) for node, chance in self._children(tree, 0, 1.0)]
        heapq.heapify(ahead)
        while ahead and len(nodes) < most:
            chance, node = heapq.heappop(ahead)
            nodes.append(node)
            chances.append(-chance)
            for child, reached in self._children(tree, node, -chance):
                heapq.heappush(ahead, (-reached, child))
        return nodes, chances

    def _children(self, tree: TokenTree, node: int, chance: float) -> list[tuple[int, float]]:
        depth = tree.depths[node] + 1
        rates = {
            child: max(self.of(kind, depth, chance) for kind, chance in tree.kinds[child].items())
            for child in tree.children[node].values()
        }
        # One of them is right at most.
        share = chance / max(1.0, sum(rates.values()))
        return [(child, rate * share) for child, rate in rates.items()]

    def watch(self, tree: TokenTree) -> None:
        """Guesses of what follows now, of which what is not checked is learned from too: that costs nothing."""
        self._watched.append((tree, 0))

    def see(self, token: int) -> None:
        """The token that followed."""
        still = []
        for tree, node in self._watched:
            for guess, child in tree.children[node].items():
                for kind in tree.kinds[child]:
                    key = (kind, tree.depths[child])
                    self._tried[key] = self._tried[key] * (1 - _FORGET) + 1
                    self._right[key] = self._right[key] * (1 - _FORGET) + (guess == token)
            if token in tree.children[node]:
                still.append((tree, tree.children[node][token]))
        self._watched = still


class Policy:
    """How many guesses a step checks: as many as give most tokens a second, and after losses only what is surer.

    What is expected rests on guesses that were not checked too, so that a text which repeats itself in the end is not
    missed for what was lost, to wrong guesses or to a pause of the machine, at its beginning.
    """

    def __init__(self, curve: CostCurve) -> None:
        self._curve = curve
        self._spent, self._lost, self._drafting = 0.0, 0.0, 0.0

    def longest(self, rows: int) -> int:
        """How many guesses a row a step may check whose cost is known."""
        return max(0, self._curve.widths[-1] // rows - 1)

    def guesses(self, chances: Sequence[Sequence[float]]) -> int:
        """How many of every row, given how likely each is right, the likeliest first."""
        rows = len(chances)
        plain = self.cost(rows, 0)
        needed, drafting = (_SURE, self._drafting) if self._rests(rows) else (1.0, 0.0)
        expected = float(rows)
        best, chosen = needed * expected / plain, 0
        for guesses in range(1, 1 + max(map(len, chances))):
            expected += sum(row[guesses - 1] for row in chances if len(row) >= guesses)
            rate = expected / (self.cost(rows, guesses) + drafting)
            if rate > best:
                best, chosen = rate, guesses
        return chosen

    def probes(self, guesses: int, expected: float, worth: Sequence[Sequence[float]]) -> int:
        """How many probes of every row to feed beside so many guesses.

        Args:
            expected: tokens that the step gives, of all rows.
            worth: tokens that each probe of a row gives the step after it, the most first.
        """
        rows = len(worth)
        if self._rests(rows):
            return 0
        best, chosen = expected / self.cost(rows, guesses), 0
        for probes in range(1, 1 + max(map(len, worth))):
            expected += sum(row[probes - 1] for row in worth if len(row) >= probes)
            rate = expected / self.cost(rows, guesses + probes)
            if rate > best:
                best, chosen = rate, probes
        return chosen

    def _rests(self, rows: int) -> bool:
        """Whether guessing has lost too much of late."""
        return self._lost > _MAY_LOSE * self._spent + _CREDIT * self.cost(rows, 0)

    def learn(self, rows: int, guesses: int, tokens: int, drafting: float) -> None:
        """What came of a step that checked so many guesses a row: ``tokens`` in all, after ``drafting`` seconds."""
        self._drafting += _LATELY * (drafting - self._drafting)
        cost = self.cost(rows, guesses) + drafting
        self._spent += cost
        # What was won long ago is no reason to lose now.
        self._lost = max(0.0, self._lost + cost - self.cost(rows, 0) * tokens / rows)

    def worth(self, rows: int, guesses: int, chance: float, seconds: float) -> bool:
        """Whether one guess of a row more, behind so many that are all right with that chance, is worth its time.

        Args:
            seconds: to make it; checking it takes time too.
        """
        checking = self.cost(rows, guesses + 1) - self.cost(rows, guesses)
        return chance * self.cost(rows, 0) > seconds * rows + checking

    def cost(self, rows: int, guesses: int) -> float:
        """Seconds of a step that checks so many guesses of every row."""
        # Rows share the weights that are read, so that what counts is how many tokens there are of all of them.
        return self._curve.of(rows * (1 + guesses))
