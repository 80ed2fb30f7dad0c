"""Guesses of what follows a sequence, merged into a tree where they begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tersor.ir.drafting import Draft


@dataclass
class TokenTree:
    """Node 0 is the last token that is sure; the others are guesses, each behind its parent, and probes behind those.

    A *probe* is a prompt token that is fed for what the model says behind it; it is no token that may follow.

    Attributes:
        tokens: token id of every node.  parents: node that it follows, -1 for node 0.  depths: nodes before it.
        children: by token id, of every node.
        kinds: of every node, with the chance that each kind begins with.
        probed: of every node, whether it is there only for what was said behind probes.
        probes: the nodes of the probes behind a node, one behind another; they come after all guesses.
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    kinds: list[dict[int, float]] = field(default_factory=lambda: [{}])
    probed: list[bool] = field(default_factory=lambda: [False])
    probes: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: int, drafts: Iterable[Draft]) -> TokenTree:
        """All drafts behind ``root``."""
        tree = cls([root])
        for draft in drafts:
            node = 0
            for token, kind, chance in zip(draft.tokens, draft.kinds, draft.chances, strict=True):
                node = tree._child(node, token, draft.probed)
                tree.kinds[node][kind] = chance
        return tree

    def _child(self, node: int, token: int, probed: bool) -> int:
        if token not in self.children[node]:
            self.children[node][token] = self._add(node, token, probed)
        child = self.children[node][token]
        self.probed[child] = self.probed[child] and probed
        return child

    def _add(self, parent: int, token: int, probed: bool) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.children.append({})
        self.kinds.append({})
        self.probed.append(probed)
        return len(self.tokens) - 1

    def probe(self, node: int) -> None:
        """Put one more probe behind ``node``; no guess may be added any more.

        It is fed as that node's token, for which the prompt token stands in.
        """
        behind = self.probes.setdefault(node, [])
        behind.append(self._add(behind[-1] if behind else node, self.tokens[node], True))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def guesses(self) -> int:
        """How many nodes are guesses."""
        return len(self) - 1 - sum(map(len, self.probes.values()))

    def part(self, nodes: Sequence[int]) -> TokenTree:
        """Node 0 and ``nodes``, each of which comes behind its parent."""
        part = TokenTree(self.tokens[:1])
        new = {0: 0}
        for node in nodes:
            new[node] = part._child(new[self.parents[node]], self.tokens[node], self.probed[node])
        return part

    def one_path(self, nodes: Sequence[int], chances: Sequence[float]) -> tuple[list[int], list[float]]:
        """Of ``nodes``, the likeliest first and none before its parent, those on one path, and their ``chances``."""
        path: list[tuple[int, float]] = []
        last = 0
        for node, chance in zip(nodes, chances, strict=True):
            if self.parents[node] == last:
                path.append((node, chance))
                last = node
        return [node for node, _ in path], [chance for _, chance in path]

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return self.parents == list(range(-1, len(self) - 1))

    def paths(self) -> Tensor:
        """Which nodes (dim 1) lead to each (dim 0), itself included: bool ``[nodes, nodes]``."""
        paths = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            paths[node] |= paths[parent]
        return paths


@dataclass(frozen=True)
class Branching:
    """How the new tokens of a step branch.

    Attributes:
        depths: int64 ``[rows, new]``.  ancestors: bool ``[rows, new, new]``.
        probes: int64 ``[rows, new]``, which prompt token each is, from 1; 0 for a token.  None where all are tokens.
    """

    depths: Tensor
    ancestors: Tensor
    probes: Tensor | None = None

    def filled_up(self) -> Branching:
        """With one node more in every row, which no other sees."""
        rows, new = self.depths.shape
        ancestors = torch.eye(new + 1, dtype=torch.bool).repeat(rows, 1, 1)
        ancestors[:, :new, :new] = self.ancestors
        none = torch.zeros(rows, 1, dtype=torch.int64)
        probes = None if self.probes is None else torch.cat([self.probes, none], 1)
        return Branching(torch.cat([self.depths, none], 1), ancestors, probes)


def in_a_row(depths: Tensor, rows: int) -> Branching:
    """Tokens at ``depths [new]`` that each see those before them, as many in every row."""
    # Not tril, which starts torch's threads for two tokens: they would wait beside ONNX Runtime's for half a step.
    place = torch.arange(len(depths))
    sees = place[:, None] >= place
    return Branching(depths.expand(rows, -1), sees.expand(rows, -1, -1))


def side_by_side(trees: Sequence[TokenTree]) -> tuple[list[list[int]], Branching | None]:
    """One step for a tree a row: tokens ``[rows][new]``, and how they branch, None where all are chains of one length.

    Smaller trees are filled up with nodes that no other sees, and that lie where node 0 does: behind the guesses of a
    row that is near its end there may be no positions left.
    """
    width = max(map(len, trees))
    tokens = [tree.tokens + tree.tokens[:1] * (width - len(tree)) for tree in trees]
    if all(tree.is_chain and not tree.probes and len(tree) == width for tree in trees):
        return tokens, None
    depths = torch.zeros(len(trees), width, dtype=torch.int64)
    ancestors = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        depths[row, : len(tree)] = torch.tensor(tree.depths)
        ancestors[row, : len(tree), : len(tree)] = tree.paths()
    if not any(tree.probes for tree in trees):
        return tokens, Branching(depths, ancestors)
    probes = torch.zeros(len(trees), width, dtype=torch.int64)
    for row, tree in enumerate(trees):
        for behind in tree.probes.values():
            probes[row, behind] = torch.arange(1, len(behind) + 1)
    return tokens, Branching(depths, ancestors, probes)
