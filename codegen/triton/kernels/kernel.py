"""What a kernel declares to the rest of the backend, and how it is launched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from ..match import Matcher

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Variant:
    """One instance of a kernel that is compiled ahead of time, for the table in ``docs/triton.md``.

    Attributes:
        pointers: element type of every pointer argument, such as ``{"query": "fp16"}``.
        constants: value of every ``tl.constexpr`` argument; None for a pointer that is absent.
        config: block sizes, warps and stages.
        floats: arguments of type float32; every other argument is an int32.
        aligned: integer arguments known to be multiples of 16, besides strides.
    """

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    config: triton.Config
    floats: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()

    @property
    def signature(self) -> dict[str, str]:
        return {name: self._type(name) for name in self.kernel.arg_names}

    @property
    def all_constants(self) -> dict[str, Any]:
        return {**self.constants, **self.config.kwargs}

    def _type(self, name: str) -> str:
        if name in self.all_constants:
            return "constexpr"
        if name in self.pointers:
            return "*" + self.pointers[name]
        return "fp32" if name in self.floats else "i32"


@dataclass(frozen=True)
class Kernel:
    """A fused kernel beside the reference that defines it.

    Attributes:
        name: how reports call it.
        launch: runs the kernel; arguments and results are those of ``reference``.
        reference: the specification, and what runs where ``guard`` gives a reason.
        guard: why the kernel does not take these arguments, or None.  Called with fake tensors when a graph is
            lowered, where a symbolic size must pass, and with the real ones before every launch.
        match: what the kernel stands for.  Asked of every node, it answers at one node of each such place: operators
            of the dialect and of ATen, several or one, which ``reference`` computes from the same operands.
        variants: instances to compile ahead of time.
    """

    name: str
    launch: Callable[..., Any]
    reference: Callable[..., Any]
    guard: Callable[..., str | None]
    match: Matcher
    variants: tuple[Variant, ...]


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported)."""
    return bool(triton.knobs.runtime.interpret)


def launcher(
    kernel: Any, configs: Sequence[triton.Config], key: Sequence[str], interpreted: Mapping[str, int]
) -> Callable[..., None]:
    """``launch(grid, **arguments)``: autotuned over ``configs`` on a GPU.

    The interpreter runs the blocks of ``interpreted``: timing it would say nothing, and small blocks make small
    tests cross block borders.
    """
    tuned = None if interpreting() else triton.autotune(configs=list(configs), key=list(key))(kernel)

    def launch(grid: Callable[[Mapping[str, int]], tuple[int, ...]], **arguments: Any) -> None:
        if tuned is None:
            kernel[grid](**arguments, **interpreted)
        else:
            tuned[grid](**arguments)

    return launch


def size_class(size: int) -> int:
    """The power of two at or above ``size``: lengths of one class share a tuned configuration."""
    return triton.next_power_of_2(max(size, 1))  # type: ignore[no-any-return]


def dtype_reason(name: str, dtype: torch.dtype) -> str | None:
    if dtype in FLOAT_DTYPES:
        return None
    return f"{name} is {str(dtype).removeprefix('torch.')}; the kernel takes float32, float16 and bfloat16"


def above(size: int | torch.SymInt, limit: int) -> bool:
    """Whether ``size`` is known and larger than ``limit``; a symbolic size is looked at again when it is known."""
    return isinstance(size, int) and size > limit
