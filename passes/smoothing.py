"""Smoothing: what a few channels of an input have too much of is moved into the weights that they are multiplied by.

Where a product rounds its input to few bits, the largest channel says how coarsely the others are rounded.  A scale for
each channel, divided out of what makes the input and multiplied into the weights that read it, leaves the product what
it was up to rounding, and evens both out: SmoothQuant (Xiao et al. 2023).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.operands import argument
from tersor.ir.products import PRODUCTS
from tersor.ir.program import SMOOTHED, GraphInterpreter, Program
from tersor.ir.shapes import expression
from tersor.ir.stepping import run_in_steps

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
# Of a channel's largest input and its largest weight, the power of the first; the paper's.
_SHARE = 0.5
# No channel is scaled by more: what no text of the sample had, another may.
_MOST = 2.0**10


@dataclass(frozen=True)
class SmoothingSite:
    """An input of products, and what its channels may be scaled in.

    Attributes:
        node: the input, ``[..., channels]``.
        readers: weights that multiply it, and which dim of each meets its channels.
        makers: weights that its channels come out of, and which dim of each they are.
    """

    node: str
    readers: tuple[tuple[str, int], ...]
    makers: tuple[tuple[str, int], ...]


def smoothing_sites(program: Program) -> list[SmoothingSite]:
    """Every input that only products with weights read, and that a norm's weight or a linear factor makes."""
    weights = _Weights(program)
    found = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        readers = _readers(node, node, weights) if _channels(node) is not None else []
        makers = _makers(node, weights) if readers else None
        if readers and makers:
            found.append(SmoothingSite(node.name, tuple(readers), tuple(makers)))
    return found


def smoothed(program: Program, samples: Sequence[Mapping[str, Tensor]]) -> Program:
    """``program`` with the inputs of its products evened out; itself where there is none to.

    Args:
        samples: what the largest inputs are taken from; of text, a few hundred tokens do.
    """
    sites = smoothing_sites(program)
    if not sites:
        return program
    peaks = _peaks(program, {site.node for site in sites}, samples)
    work = program.edit()
    sites = [site for site in sites if site.node in peaks]
    for site in sites:
        scales = _scales(
            peaks[site.node], [work.weights[name].transpose(0, dim) for name, dim in site.readers]
        )
        for name, dim in site.readers:
            work.weights[name] = work.weights[name].detach() * _along(scales, dim, work.weights[name])
        for name, dim in site.makers:
            work.weights[name] = work.weights[name].detach() / _along(scales, dim, work.weights[name])
    work.notes[SMOOTHED] = sorted({name for site in sites for name, _ in site.readers})
    return work


class _Weights:
    """Weights that one operator alone reads, so that it may have others."""

    def __init__(self, program: Program) -> None:
        nodes: defaultdict[str, list[fx.Node]] = defaultdict(list)
        for node in program.graph.nodes:
            if node.op == "get_attr":
                nodes[str(node.target)].append(node)
        stored: defaultdict[int, set[str]] = defaultdict(set)
        for name in nodes:
            stored[program.weights[name].data_ptr()].add(name)
        self._own = {
            name
            for name, read in nodes.items()
            if len(read) == 1
            and len(read[0].users) == 1
            and program.weights[name].dtype == torch.float32
            and len(stored[program.weights[name].data_ptr()]) == 1
        }

    def name(self, node: Any) -> str | None:
        """The weight that ``node`` reads, if nothing else does."""
        is_weight = isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target) in self._own
        return str(node.target) if is_weight else None


def _readers(source: fx.Node, node: fx.Node, weights: _Weights) -> list[tuple[str, int]]:
    """The weights that multiply ``source``, of which ``node`` is a view; none where anything else reads it."""
    found: list[tuple[str, int]] = []
    for user in node.users:
        if user.target in _VIEWS and _channels(user) == _channels(source):
            behind = _readers(source, user, weights)
            if not behind:
                return []
            found += behind
            continue
        product = PRODUCTS.get(user.target)
        if product is None:
            return []
        matrix = argument(user, product.right)
        name = weights.name(matrix)
        places = [place for place, arg in enumerate(user.args) if arg is node]
        if name is None or places != [product.left] or matrix.meta["val"].dim() != 2:
            return []
        found.append((name, product.inner))
    return found


def _makers(node: fx.Node, weights: _Weights) -> list[tuple[str, int]] | None:
    """The weights in which the channels of ``node`` may be scaled; None where there are none."""
    channels = _channels(node)
    if node.target is aten.layer_norm.default:
        scale, shift = argument(node, 2), argument(node, 3)
        # What has no scale of its own, or one for every place of several dims, cannot be scaled by channel.
        if scale is None or scale.meta["val"].dim() != 1:
            return None
        return _named([(vector, 0) for vector in (scale, shift) if vector is not None], weights)
    if node.target is not aten.mul.Tensor:
        return None
    for factor in node.args:
        # What is multiplied by itself would be divided twice.
        if not isinstance(factor, fx.Node) or node.args.count(factor) > 1 or _channels(factor) != channels:
            continue
        if factor.op == "get_attr" and factor.meta["val"].dim() == 1:
            return _named([(factor, 0)], weights)
        if factor.target is aten.linear.default and list(factor.users) == [node]:
            made = [(argument(factor, 1), 0), (argument(factor, 2), 0)]
            return _named([(weight, dim) for weight, dim in made if weight is not None], weights)
    return None


def _channels(node: fx.Node) -> Any:
    """The size of a value's last dim; None where it has none."""
    value = node.meta.get("val")
    return expression(value.shape[-1]) if isinstance(value, Tensor) and value.dim() else None


def _named(given: Sequence[tuple[Any, int]], weights: _Weights) -> list[tuple[str, int]] | None:
    names = [(weights.name(node), dim) for node, dim in given]
    known = [(name, dim) for name, dim in names if name is not None]
    return known if known and len(known) == len(names) else None


def _scales(peaks: Tensor, readers: Sequence[Tensor]) -> Tensor:
    """What to divide each channel by, given its largest input and the weights ``[channels, ...]`` that read it."""
    weight = torch.stack([reader.detach().flatten(1).abs().amax(1) for reader in readers]).amax(0)
    known = (peaks > 0) & (weight > 0) & peaks.isfinite()
    logs = _SHARE * peaks.where(known, 1.0).log() - (1 - _SHARE) * weight.where(known, 1.0).log()
    # The middle channel stays as it is: nothing as a whole becomes large or small.
    logs = logs - logs[known].mean() if bool(known.any()) else logs
    return logs.exp().clamp(1 / _MOST, _MOST).where(known, 1.0)


def _along(scales: Tensor, dim: int, weight: Tensor) -> Tensor:
    return scales.reshape([-1 if place == dim else 1 for place in range(weight.dim())])


def _peaks(program: Program, nodes: set[str], samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The largest magnitude in every channel of each of ``nodes``, ``[channels]``."""
    watching = _Peaks(program, nodes)

    def step(given: Mapping[str, Tensor]) -> Any:
        with torch.no_grad():
            return watching.run(*(given[spec.name] for spec in program.inputs))

    for sample in samples:
        if program.stepping is None:
            step(sample)
        else:
            run_in_steps(program.stepping, program.inputs, program.outputs, step, sample, [])
    return watching.found


class _Peaks(GraphInterpreter):
    """Keeps the largest magnitudes of some values."""

    def __init__(self, program: Program, nodes: set[str]) -> None:
        super().__init__(program)
        self._nodes = nodes
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._nodes and result.numel():
            peaks = result.abs().flatten(0, -2).amax(0)
            before = self.found.get(n.name)
            self.found[n.name] = peaks if before is None else torch.maximum(before, peaks)
        return result
