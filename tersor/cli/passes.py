"""``tersor passes``: what there is to ask for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Imports, Json, Traceback, import_modules
from .output import emit

if TYPE_CHECKING:
    from rich.console import Group

    from ..passes.contract import Method, Pass


def passes(
    name: Annotated[str | None, typer.Argument(help="Only this pass.", show_default="every pass")] = None,
    imports: Imports = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """List every pass and method with its promise, options and defaults, and every kind of weights."""
    from ..codegen.onnx.weights import kinds
    from ..ir.errors import SpecError
    from ..passes.registry import find_passes
    from ..passes.spec import nearest

    import_modules(imports)
    found = find_passes()
    if name is not None and name not in found:
        raise SpecError(f"there is no pass {name!r}{nearest(name, found)}")
    entries = [describe(kind) for key, kind in found.items() if name in (None, key)]
    weights = [
        {"name": kind.name, "about": _first_line(type(kind)), "most_loss": kind.most_loss}
        for kind in (kinds().values() if name is None else ())
    ]
    emit({"passes": entries, "weights": weights}, _text(entries, weights), json)


def describe(kind: type[Pass]) -> dict[str, Any]:
    """A pass as data: what it promises, its options, and the methods that fill its slots with theirs."""
    import typing

    from ..passes.registry import find_methods
    from ..passes.spec import options_of, slot_of

    slots = {name: base for name, hint in typing.get_type_hints(kind).items() if (base := slot_of(hint))}
    return {
        "name": kind.name,
        "family": kind.family,
        "promise": kind.promise.value,
        "about": _first_line(kind),
        "options": [asdict(option) for option in options_of(kind)],
        "methods": {
            slot: [_method(method, kind) for method in find_methods(base).values()]
            for slot, base in slots.items()
        },
    }


def _method(method: type[Method], kind: type[Pass]) -> dict[str, Any]:
    from ..passes.spec import options_of

    return {
        "name": method.name,
        "promise": (method.promise or kind.promise).value,
        "about": _first_line(method),
        "options": [asdict(option) for option in options_of(method)],
    }


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _text(entries: list[dict[str, Any]], weights: list[dict[str, Any]]) -> Group:
    from rich.console import Group
    from rich.padding import Padding

    parts: list[Any] = []
    for entry in entries:
        parts.append(f"{entry['name']}  [{entry['family']}, {entry['promise']}]  {entry['about']}")
        if entry["options"]:
            parts.append(Padding(_options(entry["options"]), (0, 0, 0, 4), expand=False))
        for slot, methods in entry["methods"].items():
            for method in methods:
                parts.append(f"  {slot}={method['name']}  [{method['promise']}]  {method['about']}")
                if method["options"]:
                    parts.append(Padding(_options(method["options"]), (0, 0, 0, 6), expand=False))
        parts.append("")
    for kind in weights:
        loss = f"{kind['most_loss']:.0%} of perplexity at most"
        parts.append(f"--weights {kind['name']}  [{loss}]  {kind['about']}")
    return Group(*(parts if weights else parts[:-1]))


def _options(options: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for option in options:
        default = "required" if option["default"] is None else f"= {option['default']}"
        default = "optional" if option["default"] == "" else default
        table.add_row(option["name"], default, option["type"], option["help"])
    return table
