"""``tersor doctor``: what is installed, what works on this machine, and what to install."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import Json, Traceback
from .output import emit, progress_bar

if TYPE_CHECKING:
    from rich.console import Group

# What is optional, what it is for, and the extra that brings it.
_OPTIONAL = {
    "onnxruntime": ("runs target=onnx", "cpu"),
    "triton": ("compiles target=triton", "gpu"),
    "timm": ("loads timm:NAME models", "test"),
    "PIL": ("reads pictures in the examples", "models"),
}


def doctor(json: Json = False, traceback: Traceback = False) -> None:
    """Show versions, execution providers and instruction sets, and try every target on a tiny model."""
    with progress_bar() as report:
        report("measuring memory bandwidth", 0, 2)
        data = _facts()
        report("trying every target", 1, 2)
        data["targets"] = try_targets()
    emit(data, _text(data), json)


def try_targets() -> dict[str, dict[str, Any]]:
    """For every target whether a tiny transformer runs there as in PyTorch, or what stands in the way."""
    import torch

    from ..codegen.target import find_target, target_names
    from ..ir.capture import capture
    from ..ir.errors import TersorError

    torch.manual_seed(0)
    program = capture(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval())
    expected = program.run(program.example_inputs)
    results: dict[str, dict[str, Any]] = {}
    for name in target_names():
        try:
            actual = find_target(name).lower(program).run(program.example_inputs)
            worst = max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))
            works = worst < 1e-4
            results[name] = {
                "works": works,
                "detail": f"differs by {worst:.1e} from PyTorch on a tiny encoder",
            }
        except TersorError as error:
            results[name] = {"works": False, "detail": f"not on this machine: {error}"}
        except Exception as error:  # a doctor reports what fails, whatever it is
            results[name] = {"works": False, "detail": " ".join(str(error).split()) or type(error).__name__}
    return results


def _facts() -> dict[str, Any]:
    from importlib.util import find_spec

    import torch

    from ..runtime.machine import machine_facts

    missing = [name for name in _OPTIONAL if find_spec(name) is None]
    return {
        "machine": machine_facts(),
        "providers": _providers(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "missing": [
            {
                "package": name,
                "for": _OPTIONAL[name][0],
                "install": f"pip install 'tersor[{_OPTIONAL[name][1]}]'",
            }
            for name in missing
        ],
    }


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _text(data: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.table import Table

    machine = data["machine"]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("processor", f"{machine['processor']}, {machine['cores']} cores")
    table.add_row("instruction sets", ", ".join(machine["instruction_sets"]) or "unknown")
    table.add_row("memory", f"{machine['read_bandwidth_gb_s']} GB/s read")
    table.add_row("graphics processor", data["gpu"] or "none")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    table.add_row("ONNX Runtime", ", ".join(data["providers"]) or "not installed")
    for name, result in data["targets"].items():
        table.add_row(f"target {name}", f"{'works' if result['works'] else 'no'}: {result['detail']}")
    for item in data["missing"]:
        table.add_row(f"{item['package']} missing", f"{item['for']}: {item['install']}")
    return Group(table)
