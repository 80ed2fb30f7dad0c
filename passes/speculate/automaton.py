"""A suffix automaton of many texts: how often any run of tokens stood in them, and what followed it.

Blumer et al. 1985; of several texts, each of which begins at the root: Mohri, Moreno and Weinstein 2009.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Runs of at most so many tokens are counted: where a text says the same for ever, all of its ends recur at each token.
DEEPEST = 32


@dataclass
class End:
    """Where a growing text ends in an automaton.

    Attributes:
        whole: the state of all of the text.
        state, length: the state of its last ``length`` tokens, of which ``DEEPEST`` are told apart at most.
    """

    whole: int = 0
    state: int = 0
    length: int = 0


class SuffixAutomaton:
    """The runs of texts that grow side by side, in twice as many states as they have tokens at most.

    A state stands for runs that end at the same places; its longest has ``lengths[state]`` tokens, and its link goes to
    the longest shorter run that ends elsewhere too.

    Attributes:
        size: tokens of all texts.
        counts: of every state, how often its runs of at most ``DEEPEST`` tokens stood in the texts.
        latest: of every state, how many tokens there were when one of those stood last.
    """

    def __init__(self) -> None:
        self.size = 0
        self.lengths, self.links = [0], [-1]
        self.next: list[dict[int, int]] = [{}]
        self.counts, self.latest = [0], [0]

    def append(self, end: End, token: int) -> None:
        """One more token of the text that ends at ``end``, which moves on."""
        self.size += 1
        end.whole = self._extended(end.whole, token)
        end.state, end.length = self.follow(end.state, end.length, token)
        state = end.state
        while state > 0:
            self.counts[state] += 1
            self.latest[state] = self.size
            state = self.links[state]

    def follow(self, state: int, length: int, token: int) -> tuple[int, int]:
        """From a run of ``length`` tokens, to which ``token`` is added, to the longest end of that which is known."""
        state = self._holding(state, length)
        while token not in self.next[state]:
            state = self.links[state]
            if state < 0:
                return 0, 0
            length = self.lengths[state]
        length = min(length + 1, DEEPEST)
        return self._holding(self.next[state][token], length), length

    def followed(self, state: int, length: int) -> tuple[int, int]:
        """The longest end of a run that something followed, and is counted with what did: its state, and its length."""
        length = min(length, DEEPEST - 1)
        state = self._holding(state, length)
        while state > 0 and not self.next[state]:
            state = self.links[state]
        return state, min(length, self.lengths[state])

    def followers(self, state: int) -> Iterator[tuple[int, int, int]]:
        """The tokens that followed a state's runs, how often each did, and when it did last."""
        for token, child in self.next[state].items():
            yield token, self.counts[child], self.latest[child]

    def _holding(self, state: int, length: int) -> int:
        """The state of the last ``length`` tokens of a state's runs."""
        while state > 0 and length <= self.lengths[self.links[state]]:
            state = self.links[state]
        return state

    def _extended(self, state: int, token: int) -> int:
        """The state of the whole of a text, of which all but ``token`` had ``state``."""
        length = self.lengths[state] + 1
        known = self.next[state].get(token)
        if known is not None:
            return known if self.lengths[known] == length else self._split(state, token, known)
        new = self._state(length, 0, {})
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.links[state]
        if state >= 0:
            target = self.next[state][token]
            if self.lengths[target] != self.lengths[state] + 1:
                target = self._split(state, token, target)
            self.links[new] = target
        return new

    def _split(self, state: int, token: int, target: int) -> int:
        """A state of its own for those runs of ``target`` that end at the new token too."""
        copy = self._state(self.lengths[state] + 1, self.links[target], dict(self.next[target]))
        self.counts[copy], self.latest[copy] = self.counts[target], self.latest[target]
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = copy
            state = self.links[state]
        self.links[target] = copy
        return copy

    def _state(self, length: int, link: int, following: dict[int, int]) -> int:
        self.lengths.append(length)
        self.links.append(link)
        self.next.append(following)
        self.counts.append(0)
        self.latest.append(0)
        return len(self.lengths) - 1
