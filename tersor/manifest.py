"""manifest.json: what an artifact takes and gives, and what runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .codegen.target import Executable, target_names
from .folders import KIND, MANIFEST
from .ir.errors import ArtifactError, InputError
from .ir.program import Program, TensorSpec
from .ir.stepping import Stepping
from .ir.structure import Structure
from .json_shape import Each, check_shape
from .passes.report import Report

FORMAT = 1
_SPECS = [{"name": str, "shape": [int | str], "dtype": str}]
_SHAPE = {
    "target": str,
    "options": dict,
    "calibrated": bool,
    "inputs": _SPECS,
    "outputs": _SPECS,
    "dimensions": Each([int | None]),
    "least": Each(str),
    "fixed": Each(bool | int | float | str),
    "stepping": dict | None,
    "structure": dict,
}


@dataclass(frozen=True)
class Manifest:
    """What is needed to run an artifact without reading its Program.

    Attributes:
        imports: modules and files outside Tersor that define its passes and methods.
    """

    target: str
    options: Mapping[str, Any]
    structure: Structure
    ranges: Mapping[str, tuple[int, int | None]]
    least: Mapping[str, str]
    fixed: Mapping[str, bool | int | float | str]
    stepping: Stepping | None
    calibrated: bool
    imports: tuple[str, ...] = ()

    def to_json(self, interface: Executable | Program, report: Report) -> dict[str, Any]:
        """What the file holds; inputs and outputs are those of ``interface``."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "tersor": version("tersor"),
            "target": self.target,
            "options": dict(self.options),
            "passes": [step.spec for step in report.kept],
            "imports": list(self.imports),
            "calibrated": self.calibrated,
            "inputs": _specs(interface.called_with if isinstance(interface, Program) else interface.inputs),
            "outputs": _specs(interface.returned if isinstance(interface, Program) else interface.outputs),
            "dimensions": {name: list(bounds) for name, bounds in self.ranges.items()},
            "least": dict(self.least),
            "fixed": dict(self.fixed),
            "stepping": None if self.stepping is None else self.stepping.to_json(),
            "structure": self.structure.to_json(),
        }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        InputError: there is no artifact.
        ArtifactError: the manifest is damaged, of another version, or names a target that is not installed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "it has no manifest.json" if folder.is_dir() else "there is no such folder"
        raise InputError(f"{folder} is no converted model: {what}; make one with `tersor convert` or save()")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        check_shape(data, {"kind": str, "format": int})
        kind, number = data["kind"], data["format"]
        if kind == KIND and number == FORMAT:
            manifest = _from_json(data)
    except (
        OSError,
        ArithmeticError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {error}): convert the model again"
        ) from error
    if kind != KIND or number != FORMAT:
        raise ArtifactError(
            f"{path} is {kind!r} of format {number!r}; this Tersor reads {KIND!r} of format {FORMAT}"
        )
    if manifest.target not in target_names():
        raise ArtifactError(
            f"{path} names target {manifest.target!r}; this Tersor has {', '.join(target_names())}"
        )
    return manifest


def check_interface(folder: Path, executable: Executable, program: Program, report: Report) -> str:
    """What of the manifest is not so by the Program, the executable or the report; nothing when all agree.

    Outputs are packed into the manifest's structure by position, so its order is as much a part of the result as
    the values are.
    """
    described = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    actual = replace(
        read_manifest(folder),
        structure=program.structure,
        ranges=program.ranges,
        least=program.least,
        fixed=program.facts.fixed,
        stepping=program.stepping,
    )
    expected = json.loads(json.dumps(actual.to_json(program, report)))  # lists for tuples, as in the file
    for key in ("inputs", "outputs", "dimensions", "least", "fixed", "stepping", "structure", "passes"):
        if described.get(key) != expected[key]:
            return f"the manifest says otherwise than the Program and the report what its {key} should be"
    if (executable.inputs, executable.outputs) != (program.called_with, program.returned):
        return "the inputs and outputs of the target's files are not those of the Program"
    return ""


def _from_json(data: Mapping[str, Any]) -> Manifest:
    """A manifest from its JSON; raises ValueError where it is of another shape."""
    check_shape(data, _SHAPE)
    if any(len(bounds) != 2 or bounds[0] is None for bounds in data["dimensions"].values()):
        raise ValueError("dimensions are pairs of a lower and an upper bound")
    imports = data.get("imports", [])
    check_shape(imports, [str], "imports")
    return Manifest(
        target=data["target"],
        options=data["options"],
        structure=Structure.from_json(data["structure"]),
        ranges={name: (low, high) for name, (low, high) in data["dimensions"].items()},
        least=data["least"],
        fixed=data["fixed"],
        stepping=None if data["stepping"] is None else Stepping.from_json(data["stepping"]),
        calibrated=data["calibrated"],
        imports=tuple(imports),
    )


def _specs(values: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [value.to_json() for value in values]
