"""A suffix automaton: where any run of tokens has stood before, found token by token (Blumer et al. 1985)."""

from __future__ import annotations

from collections.abc import Iterable

# How many of the runs that end at a token learn that they did: of text that says the same for ever, all would.
_TOLD = 32


class SuffixAutomaton:
    """The runs of a growing text, in twice as many states as it has tokens at most.

    A state stands for runs that end at the same places; its longest has ``lengths[state]`` tokens, and its link goes to
    the longest shorter run that ends elsewhere too.

    Attributes:
        text: the tokens so far.
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self.lengths, self.links = [0], [-1]
        self.next: list[dict[int, int]] = [{}]
        self._ends = [0]
        self._last = 0
        self._before = 0

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._append(token)

    def repeated(self) -> tuple[int, int]:
        """How long the longest end of the text is that stood before, and how many tokens lay before what followed."""
        link = self.links[self._last]
        return (0, 0) if link <= 0 else (self.lengths[link], self._before)

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """From the state of a run of ``length`` tokens to that of the longest of its ends that ``token`` follows."""
        while token not in self.next[state]:
            state = self.links[state]
            if state < 0:
                return 0, 0
            length = self.lengths[state]
        return self.next[state][token], length + 1

    def end(self, state: int) -> int:
        """How many tokens lie before what follows a place of the state's runs, the latest that is known."""
        return self._ends[state]

    def _append(self, token: int) -> None:
        self.text.append(token)
        new = self._state(len(self.text), 0, {})
        state = self._last
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.links[state]
        if state >= 0:
            target = self.next[state][token]
            if self.lengths[target] != self.lengths[state] + 1:
                target = self._split(state, token, target)
            self.links[new] = target
        self._last = new
        link = self.links[new]
        self._before = self._ends[link]
        for _ in range(_TOLD):
            if link <= 0:
                break
            self._ends[link] = len(self.text)
            link = self.links[link]

    def _split(self, state: int, token: int, target: int) -> int:
        """A state of its own for those runs of ``target`` that end at the new token too."""
        copy = self._state(self.lengths[state] + 1, self.links[target], dict(self.next[target]))
        self._ends[copy] = self._ends[target]
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = copy
            state = self.links[state]
        self.links[target] = copy
        return copy

    def _state(self, length: int, link: int, following: dict[int, int]) -> int:
        self.lengths.append(length)
        self.links.append(link)
        self.next.append(following)
        self._ends.append(len(self.text))
        return len(self.lengths) - 1
