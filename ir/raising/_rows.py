"""Whether code tells the rows of a batch apart by where they are in it, and not by what they hold."""

from __future__ import annotations

from collections.abc import Collection

import sympy
import torch
from torch import Tensor, fx

from ..same_elements import COPIES, MOVES
from ..shapes import expression
from ._cone import Cone, Sizes
from ._pattern import calls

aten = torch.ops.aten

# These take entries of their first operand; which row an entry is of, says where it is and no more.
_TAKES = (aten.index, aten.index_select, aten.gather)


def tells_rows_apart(
    cone: Cone, sizes: Sizes, padding: fx.Node | None, spanned: Collection[sympy.Symbol]
) -> bool:
    """Whether something that the padding has no part in differs along another dim than those of ``spanned`` symbols.

    A batch is such a dim.  What rows number only picks entries of them, as ``padding[row, key]`` does, is their own.
    """
    reads = _readers(cone, padding)
    given = {}
    if padding is not None:
        fake = padding.meta["val"]
        given[padding] = torch.ones([sizes.of(size) for size in fake.shape], dtype=fake.dtype)
    values = cone.values(sizes, given)
    for node in cone.nodes:
        value = values.get(node)
        if node in reads or not isinstance(value, Tensor) or node.op == "placeholder":
            continue
        for dim, size in enumerate(node.meta["val"].shape):
            symbols = expression(size).free_symbols
            if not symbols or not symbols.isdisjoint(spanned) or value.shape[dim] < 2:
                continue
            factor = int(expression(size).as_coeff_Mul()[0])
            if not _same_along(value, dim, factor) and not _only_picks(cone, node):
                return True
    return False


def _readers(cone: Cone, padding: fx.Node | None) -> set[fx.Node]:
    """The nodes that ``padding`` has a part in, itself included."""
    found = set() if padding is None else {padding}
    for node in cone.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _same_along(value: Tensor, dim: int, factor: int) -> bool:
    """Whether rows are alike; of ``factor`` times as many as there are in a batch, those of each part or each group."""
    if factor > 1 and value.shape[dim] % factor == 0:
        parts, groups = value.unflatten(dim, (factor, -1)), value.unflatten(dim, (-1, factor))
        return _same_along(parts, dim + 1, 1) or _same_along(groups, dim, 1)
    first = value.narrow(dim, 0, 1)
    return bool((value == first).all()) or bool(((value == first) | (value.isnan() & first.isnan())).all())


def _only_picks(cone: Cone, node: fx.Node) -> bool:
    """Whether all that the cone reads ``node`` for is which entries to take."""
    users = [user for user in node.users if user in cone.nodes]
    return bool(users) and all(
        (calls(user, *_TAKES) and user.args[0] is not node)
        or (calls(user, *COPIES, *MOVES, aten.slice) and _only_picks(cone, user))
        for user in users
    )
