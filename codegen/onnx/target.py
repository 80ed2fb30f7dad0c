"""The ONNX target's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tersor.codegen.target import Executable, Target
from tersor.ir.program import Program

from .emitter import Ops
from .executable import OnnxExecutable


class OnnxTarget(Target):
    name: ClassVar[str] = "onnx"
    executable: ClassVar[type[Executable]] = OnnxExecutable

    def lower(  # type: ignore[override]
        self,
        program: Program,
        *,
        ops: Ops = "ort",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> OnnxExecutable:
        """An ONNX Runtime session on the Program.

        Args:
            ops: ``ort`` allows ONNX Runtime's own operators where they were measured faster; ``portable`` does not.
            threads: threads per operator; all cores when None.
            providers: execution providers in order; CUDA before CPU, where present, when None.
            metadata: texts for the saved model's ``metadata_props``.
        """
        return OnnxExecutable.of(program, ops=ops, threads=threads, providers=providers, metadata=metadata)
