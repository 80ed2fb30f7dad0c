"""Compile a kernel variant for a GPU that is not here, and read what the binary will use of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .kernels import Variant, interpreting
from .kernels.operands import dot_precision

ARCHITECTURES = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Usage:
    """What one program of a compiled kernel takes.

    Attributes:
        registers: 32-bit vector registers a thread holds.
        spills: bytes a thread spills to memory (NVIDIA: stores; AMD: four bytes a spilled vector register).
        shared: bytes of shared memory.
    """

    registers: int
    spills: int
    shared: int


def compile_variant(variant: Variant, architecture: str) -> Usage:
    """Compile to machine code; no GPU and no driver is needed.

    Raises:
        RuntimeError: triton was imported to interpret, so its kernels cannot be compiled in this process.
    """
    if interpreting():
        raise RuntimeError("kernels cannot be compiled under TRITON_INTERPRET=1: unset it and start again")
    signature = variant.signature
    # A launch finds these out of its arguments: torch aligns memory, and real widths are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(variant.kernel.arg_names)
        if signature[name].startswith("*") or name.startswith("stride_") or name in variant.aligned
    }
    constants = variant.all_constants
    if "PRECISION" in constants and architecture.startswith("gfx"):
        constants["PRECISION"] = dot_precision(constants["PRECISION"] != "ieee", on_amd=True)
    source = ASTSource(variant.kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": variant.config.num_warps, "num_stages": variant.config.num_stages}
    compiled = triton.compile(source, target=ARCHITECTURES[architecture], options=options)
    registers, spills = _amd(compiled) if architecture.startswith("gfx") else _nvidia(compiled)
    return Usage(registers, spills, int(compiled.metadata.shared))


def _nvidia(compiled: Any) -> tuple[int, int]:
    """Registers and spill stores, as the bundled ptxas reports them for the kernel's PTX."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = compiled.asm["ptx"]
    name = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    number = re.search(r"\d+", name[1]) if name else None
    if name is None or number is None:
        raise RuntimeError("the compiled kernel's PTX names no target")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        tool = get_ptxas(int(number[0])).path
        command = [tool, "-v", f"--gpu-name={name[1]}", str(path), "-o", str(path.with_suffix(".cubin"))]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return _number(r"Used (\d+) registers", log), _number(r"(\d+) bytes spill stores", log)


def _amd(compiled: Any) -> tuple[int, int]:
    """Vector registers and spills, as the assembly's metadata states them."""
    text = compiled.asm["amdgcn"]
    return _number(r"\.vgpr_count:\s+(\d+)", text), 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's report has no {pattern!r}")
    return int(found[1])
