"""Hold a lowered Program that drops tokens against the torch target: the same tokens kept, the same values.

Choosing tokens is not continuous: two kernels that sum in another order may keep different ones of two tokens whose
scores are equal but for rounding.  Where choices differ, every decision that the executable took is read out of it and
given to the torch reference, one after another.  Each has to be a tie there, and everything computed from the
decisions has to be equal as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from tersor.codegen.target import Executable, find_target
from tersor.ir.boundary import spec_of
from tersor.ir.dialect import is_dialect
from tersor.ir.program import GraphInterpreter, Program

aten = torch.ops.aten
TOLERANCE = 1e-4  # of an output's largest value
TIE = 1e-5  # of a score's largest value
_COMPARISONS = (
    *(aten.ge.Tensor, aten.gt.Tensor, aten.le.Tensor, aten.lt.Tensor, aten.eq.Tensor, aten.ne.Tensor),
    *(aten.ge.Scalar, aten.gt.Scalar, aten.le.Scalar, aten.lt.Scalar, aten.eq.Scalar, aten.ne.Scalar),
)
Inputs = Mapping[str, Tensor]
Lower = Callable[[Program], Executable]


def kept_indices(program: Program) -> list[fx.Node]:
    """At every site of every pass: the node whose value is the index of the kept tokens."""
    return [program.find(name) for note in program.notes["token-drop"] for name in note["index"]]


def assert_equal_to_torch(program: Program, cases: Iterable[Inputs], *lowers: Lower) -> list[list[Tensor]]:
    """Outputs within TOLERANCE of the torch target's, from the same tokens; what was kept at every site, by case."""
    shown = with_outputs(program, [node.name for node in kept_indices(program)])
    executables, reference = [lower(shown) for lower in lowers], find_target("torch").lower(shown)
    outputs = len(program.outputs)
    kept = []
    for inputs in cases:
        want = reference.run(inputs)
        for lower, executable in zip(lowers, executables, strict=True):
            got = executable.run(inputs)
            if all(map(torch.equal, got[outputs:], want[outputs:])):
                _assert_close(program, got[:outputs], want[:outputs])
            else:
                assert_differs_by_ties(program, inputs, lower)
        kept.append(list(want[outputs:]))
    return kept


def with_outputs(program: Program, names: Iterable[str]) -> Program:
    """A copy that also returns the values of the nodes called ``names``, behind its own outputs."""
    work = program.edit()
    nodes = [work.find(name) for name in names]
    results: Any = work.output_node.args[0]
    work.output_node.args = ((*results, *nodes),)
    specs = [spec_of(node, f"shown_{i}", work.symbols) for i, node in enumerate(nodes)]
    return replace(work, outputs=(*work.outputs, *specs))


def assert_differs_by_ties(program: Program, inputs: Inputs, lower: Lower) -> None:
    """The torch reference, given the executable's decisions, has a tie at each and computes the same from them."""
    decisions = [name for node in program.graph.nodes for name in _decision(node)]
    values = lower(with_outputs(program, decisions)).run(inputs)
    outputs = len(program.outputs)
    taken = dict(zip(decisions, values[outputs:], strict=True))
    with torch.no_grad():
        want: Any = _Replayed(program, taken).run(*(inputs[spec.name] for spec in program.inputs))
    _assert_close(program, values[:outputs], want)


def _decision(node: fx.Node) -> list[str]:
    """Names of the nodes that hold what ``node`` decides from numbers that are subject to rounding."""
    if is_dialect(node, "select_tokens") or node.target is aten.argmax.default:
        return [node.name]
    if is_dialect(node, "match_tokens"):
        return [user.name for user in sorted(node.users, key=lambda user: user.args[1])]
    operands = [a.meta["val"] for a in node.args if isinstance(a, fx.Node)]
    rounded = node.target in _COMPARISONS and all(value.dtype.is_floating_point for value in operands)
    return [node.name] if rounded else []


class _Replayed(GraphInterpreter):
    """Runs a Program with the decisions of another run, each of which must be a tie where it differs."""

    def __init__(self, program: Program, taken: Mapping[str, Tensor]) -> None:
        super().__init__(program)
        self.taken = taken

    def run_node(self, n: fx.Node) -> Any:
        own = super().run_node(n)
        names = _decision(n)
        if not names:
            return own
        args, _ = self.fetch_args_kwargs_from_env(n)
        if is_dialect(n, "match_tokens"):
            taken = tuple(self.taken[name] for name in names)
            _assert_matched_alike(n, args[0], args[1] if len(args) > 1 else None, own, taken)
            return taken
        taken = self.taken[n.name]
        if is_dialect(n, "select_tokens"):
            _assert_equal_scores(n, args[0], args[1] if len(args) > 1 else None, own, taken)
        elif n.target is aten.argmax.default:
            dim = args[1]
            index = [x if len(args) > 2 and args[2] else x.unsqueeze(dim) for x in (own, taken)]
            _assert_tie(n, args[0], *(args[0].gather(dim, i) for i in index))
        else:
            left, right = torch.broadcast_tensors(args[0], torch.as_tensor(args[1], dtype=args[0].dtype))
            _assert_tie(n, args[0], left[own != taken], right[own != taken])
        return taken


def _assert_equal_scores(
    node: fx.Node, scores: Tensor, padding: Tensor | None, own: Tensor, taken: Tensor
) -> None:
    assert taken.shape == own.shape, f"{node.name}: another number of tokens was kept"
    for row, (mine, theirs) in enumerate(zip(own.tolist(), taken.tolist(), strict=True)):
        assert theirs == sorted(set(theirs)), f"{node.name}: an index is not ascending: {theirs}"
        gone, come = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
        if padding is not None:
            assert bool(padding[row, gone + come].all()), f"{node.name}: padding changed places with a token"
        _assert_tie(node, scores, scores[row, gone].sort().values, scores[row, come].sort().values)


def _assert_matched_alike(
    node: fx.Node, metric: Tensor, padding: Tensor | None, own: Any, taken: tuple[Tensor, ...]
) -> None:
    unit = torch.nn.functional.normalize(metric.float(), dim=-1)
    for row in range(metric.shape[0]):
        pairs = []
        for kept, source, target, *column in (own, taken):
            assert sorted([*kept[row].tolist(), *source[row].tolist()]) == list(range(metric.shape[1]))
            for one in column:
                assert one[row, kept[row]].tolist() == list(range(kept.shape[1]))
                assert one[row, source[row]].tolist() == target[row].tolist()
            partners = kept[row][target[row]]
            pairs.append(
                {
                    (s, t)
                    for s, t in zip(source[row].tolist(), partners.tolist(), strict=True)
                    if padding is None or bool(padding[row, s])
                }
            )
        likeness = [
            torch.tensor(sorted(float(unit[row, s] @ unit[row, t]) for s, t in a - b))
            for a, b in (pairs, pairs[::-1])
        ]
        _assert_tie(node, unit, *likeness)


def _assert_tie(node: fx.Node, scores: Tensor, mine: Tensor, theirs: Tensor) -> None:
    assert mine.shape == theirs.shape, f"{node.name}: {mine.numel()} choices against {theirs.numel()}"
    size = float(scores[scores.isfinite()].abs().max())
    apart = float((mine - theirs).abs().max()) if mine.numel() else 0.0
    assert apart <= TIE * size, f"{node.name}: chosen otherwise by {apart:.3g}, where scores reach {size:.3g}"


def _assert_close(program: Program, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for spec, mine, theirs in zip(program.outputs, got, want, strict=True):
        assert mine.shape == theirs.shape, spec.name
        assert bool(theirs.isfinite().all()), f"{spec.name} is not finite"
        apart, size = float((mine - theirs).abs().max()), float(theirs.abs().max())
        assert apart <= TOLERANCE * size, f"{spec.name} differs by {apart:.3g}, and reaches {size:.3g}"
