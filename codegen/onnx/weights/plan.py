"""Which weights of a Program are stored how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from tersor.ir.errors import InputError
from tersor.ir.products import PRODUCTS
from tersor.ir.program import SMOOTHED, Program

from .kind import Kind, Stored
from .kinds import find_kind

aten = torch.ops.aten
# A table that nothing multiplies costs only what is looked up in it; smaller ones are left as they are.
_LEAST_TABLE = 1 << 16

# Forms of one Program share their weights, and what was made of them.
_made: Any = WeakIdKeyDictionary()


def stored_weights(program: Program, kind: str, others: Mapping[str, str] | None = None) -> dict[str, Stored]:
    """The weights that are stored otherwise than the Program holds them, by name.

    Those are the float32 matrices that only linear layers, products and lookups read.

    Args:
        kind: how they are stored.
        others: the kind of single weights, by name, where it is another.

    Raises:
        InputError: there is no such kind or weight, or no weight has a form in it.
    """
    others = others or {}
    unknown = sorted(others.keys() - program.weights.keys())
    if unknown:
        raise InputError(f"weight_kinds names {unknown[0]!r}, which is no weight of this model")
    found = {}
    even = set(program.notes.get(SMOOTHED, ()))
    for name, right in storable(program).items():
        own = find_kind(others.get(name, kind))
        stored = None if own is None else stored_as(own, program.weights[name], right, name in even)
        if stored is not None:
            found[name] = stored
    if not found and find_kind(kind) is not None and not others:
        raise InputError(
            f"weights={kind!r} has no form for any weight of this model"
            + (": none lies on the blocks of a GGUF file; use int8 or int4" if kind == "gguf" else "")
        )
    return found


def storable(program: Program) -> dict[str, bool]:
    """The weights that a kind may store, by name, and whether they are ``[in, out]``."""
    readers: dict[str, list[tuple[fx.Node, fx.Node]]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).extend((node, user) for user in node.users)
    found = {}
    for name, uses in readers.items():
        weight = program.weights[name]
        roles = {_role(node, user) for node, user in uses}
        if weight.dtype != torch.float32 or weight.dim() != 2 or not roles or None in roles:
            continue
        if roles == {"right"}:
            found[name] = True
        elif "right" not in roles and (roles != {"table"} or weight.numel() >= _LEAST_TABLE):
            found[name] = False
    return found


def _role(weight: fx.Node, user: fx.Node) -> str | None:
    """What ``user`` does with the matrix: a ``linear`` layer, a product with it on the ``right``, a ``table``."""
    if (
        user.target is aten.linear.default
        and user.args[1] is weight
        and weight not in (user.args[0], *user.args[2:])
    ):
        return "linear" if _is_rows(user.args[0]) else None
    if user.target is aten.embedding.default and user.args[0] is weight:
        return "table"
    product = PRODUCTS.get(user.target)
    if product is None or product.inner != 0:
        return None
    if [place for place, arg in enumerate(user.args) if arg is weight] == [product.right]:
        plain = not (user.kwargs.keys() & {"alpha", "beta"})
        return "right" if plain and _is_rows(user.args[product.left]) else None
    return None


def _is_rows(x: Any) -> bool:
    return isinstance(x, fx.Node) and x.meta["val"].dtype == torch.float32 and x.meta["val"].dim() >= 2


def stored_as(kind: Kind, weight: Tensor, right: bool, even: bool = False) -> Stored | None:
    """``weight`` as ``kind`` keeps it, made once for each tensor.

    Args:
        right: it is ``[in, out]``.
        even: its input was smoothed.
    """
    made = _made.setdefault(weight, {})
    turned = right and not kind.own_layout
    key = (kind.name, turned, even)
    if key not in made:
        own = kind.of_even if even else kind
        made[key] = own.store(weight.detach().t().contiguous() if turned else weight.detach())
    return made[key]  # type: ignore[no-any-return]
