"""``tersor inspect``: what a model consists of, what it costs, and what may be done to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .options import (
    DynamicSizes,
    ExampleInputs,
    Imports,
    Json,
    Model,
    Sizes,
    Traceback,
    check_sizes,
    import_modules,
    parse_dynamic,
    parse_sizes,
    read_examples,
)
from .output import emit, progress_bar

if TYPE_CHECKING:
    from rich.console import Group

    from ..ir.program import Program


_SHOWN = 6


def inspect(
    model: Model,
    size: Sizes = None,
    example_inputs: ExampleInputs = None,
    dynamic: DynamicSizes = None,
    imports: Imports = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show layers, attention sites and cost, and where each family of passes is legal, or why it is not."""
    from ..sources import read_program

    sizes, free = parse_sizes(size), parse_dynamic(dynamic)
    import_modules(imports)
    examples = read_examples(example_inputs)
    with progress_bar() as report:
        report(f"capturing {model}", 0, 2)
        program = read_program(model, examples, free)
        report("analysing", 1, 2)
        data = facts(program, sizes)
    emit(data, _text(data), json)


def facts(program: Program, sizes: dict[str, int]) -> dict[str, Any]:
    """All that the command shows, as data; dimensions that ``sizes`` leaves out are those of the example.

    Raises:
        InputError: ``sizes`` names a dimension that the program does not have, or a size it does not take.
    """
    from ..ir.analyses.cost import cost
    from ..ir.analyses.layers import layers

    check_sizes(sizes, program.ranges)
    costs, stack = program.analysis(cost), program.analysis(layers)
    known = program.step_sizes(program.sizes() | sizes)
    at = {name: size for name, size in known.items() if name in costs.dims}
    totals = costs.at(**at)
    by_layer = costs.by_layer
    return {
        "family": program.facts.family,
        "captured_by": program.facts.captured_by,
        "deviation_at_capture": program.facts.deviation,
        "inputs": [_spec(spec) for spec in program.inputs],
        "outputs": [_spec(spec) for spec in program.outputs],
        "dimensions": {name: {"low": low, "high": high} for name, (low, high) in program.ranges.items()},
        "notes": [str(note) for note in program.notes.get("capture", ())],
        "layers": [
            {
                "index": layer.index,
                "name": layer.label,
                "attention": [node.name for node in layer.attention],
                "stream": [layer.start.name, layer.after_attention.name, layer.end.name],
            }
            for layer in stack.blocks
        ],
        "attention_outside_layers": [{"node": node.name, "reason": why} for node, why in stack.outside],
        "attention_not_raised": [{"node": node, "reason": why} for node, why in program.facts.unraised],
        "cost": {
            "flops": str(costs.flops),
            "bytes": str(costs.bytes),
            "parameters": costs.parameters,
            "at": {**at, "flops": totals.flops, "bytes": totals.bytes},
            "by_layer": {
                name: {"flops": str(c.flops), "bytes": str(c.bytes)} for name, c in by_layer.items()
            },
        },
        "passes": list(legality(program)),
    }


def legality(program: Program) -> Iterator[dict[str, Any]]:
    """For every pass, with each of its methods and otherwise default options, where it can act or why not."""
    from ..ir.errors import RefusedError, SpecError
    from ..passes.blame import blame
    from ..passes.contract import Refusal
    from ..passes.registry import find_passes
    from ..passes.spec import Spec
    from .passes import describe

    for kind in find_passes().values():
        slots = describe(kind)["methods"]
        specs = [
            Spec(kind.name, ((slot, method["name"]),))
            for slot, methods in slots.items()
            for method in methods
        ]
        for spec in specs or [Spec(kind.name)]:
            entry: dict[str, Any] = {"spec": str(spec), "family": kind.family, "legal": False, "sites": []}
            try:
                instance = spec.build()
                with blame(instance):
                    found = instance.legality(program)
            except (SpecError, RefusedError) as error:
                entry["reason"] = str(error)
            else:
                if isinstance(found, Refusal):
                    entry |= {"reason": found.reason, "node": found.node}
                else:
                    sites = [{"node": site.node, "layer": site.layer} for site in found]
                    entry |= {"legal": True, "sites": sites}
            yield entry


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}


def _where(places: list[str]) -> str:
    if len(places) > _SHOWN:
        return f"{', '.join(places[:_SHOWN])} and {len(places) - _SHOWN} more"
    return ", ".join(places) or "nothing to do"


def _text(data: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table

    def table(*columns: str) -> Table:
        made = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
        parts.append(Padding(made, (0, 0, 1, 2), expand=False))
        return made

    def signature(specs: list[dict[str, Any]]) -> str:
        return ", ".join(f"{s['name']} {s['dtype']}[{', '.join(map(str, s['shape']))}]" for s in specs)

    cost = data["cost"]
    parts: list[Any] = [
        f"{data['family']}, captured as {data['captured_by']}",
        f"  inputs   {signature(data['inputs'])}",
        f"  outputs  {signature(data['outputs'])}",
        *(f"  note: {note}" for note in data["notes"]),
        "",
        f"{len(data['layers'])} layers",
    ]
    layers = table("", "name", "attention", "stream before, between, after")
    for layer in data["layers"]:
        layers.add_row(
            str(layer["index"]), layer["name"], ", ".join(layer["attention"]), ", ".join(layer["stream"])
        )
    for key, title in (
        ("attention_outside_layers", "attention outside the layers"),
        ("attention_not_raised", "attention-like code that stayed plain ATen"),
    ):
        if data[key]:
            parts.append(title)
            rows = table("node", "why")
            for item in data[key]:
                rows.add_row(item["node"], item["reason"])
    sizes = ", ".join(
        f"{name} = {size}" for name, size in cost["at"].items() if name not in ("flops", "bytes")
    )
    parts += [
        "cost",
        f"  parameters  {cost['parameters']:,}",
        f"  FLOPs       {cost['flops']}",
        f"  bytes       {cost['bytes']}",
        f"  at {sizes or 'fixed sizes'}: {cost['at']['flops']:,} FLOPs, {cost['at']['bytes']:,} bytes",
        "",
        "passes",
    ]
    passes = table("spec", "", "where, or why not")
    for entry in data["passes"]:
        where = _where([site["layer"] or site["node"] for site in entry["sites"]])
        why = entry.get("reason", "") + (f" (at {entry['node']})" if entry.get("node") else "")
        passes.add_row(
            entry["spec"], "legal" if entry["legal"] else "refused", where if entry["legal"] else why
        )
    return Group(*parts)
