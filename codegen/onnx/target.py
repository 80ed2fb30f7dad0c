"""The ONNX target's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tersor.codegen.target import Executable, Target
from tersor.ir.program import Program

from .emitter import Ops
from .executable import OnnxExecutable
from .weights import check_operators


class OnnxTarget(Target):
    name: ClassVar[str] = "onnx"
    executable: ClassVar[type[Executable]] = OnnxExecutable

    def check_options(self, options: Mapping[str, Any]) -> None:
        asked = {options.get("weights", "fp32"), *(options.get("weight_kinds") or {}).values()}
        check_operators(options.get("ops", "ort"), asked - {"auto"})

    def lower(  # type: ignore[override]
        self,
        program: Program,
        *,
        ops: Ops = "ort",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        weights: str = "fp32",
        weight_kinds: Mapping[str, str] | None = None,
    ) -> OnnxExecutable:
        """An ONNX Runtime session on the Program.

        Args:
            ops: ``ort`` allows ONNX Runtime's own operators where they were measured faster; ``portable`` does not.
            threads: threads per operator; all cores when None.
            providers: execution providers in order; CUDA before CPU, where present, when None.
            weights: how matrices are stored: as the Program holds them (``fp32``), or in one of the kinds of the
                folder ``weights``.  ``auto`` is for ``optimize_model``, which measures.
            weight_kinds: the kind of single weights, by name, where it is another.
        """
        return OnnxExecutable.of(
            program,
            ops=ops,
            threads=threads,
            providers=providers,
            weights=weights,
            weight_kinds=weight_kinds,
        )
