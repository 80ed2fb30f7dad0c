"""Shape inference: fake values for every node, and the names of symbolic dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental import _config as config
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from .errors import VerifierError

if TYPE_CHECKING:
    from .program import Program

Size = int | torch.SymInt


class SymbolTable:
    """A fresh fake mode and its named symbolic sizes."""

    def __init__(self) -> None:
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=False)
        # `Inference` knows equal calls, and of others a cache that hashes expressions takes longer than the call.
        self.mode.cache_enabled = False
        self.names: dict[str, str] = {}
        self._symbols: dict[str, torch.SymInt] = {}

    def symbol(self, name: str, hint: int) -> torch.SymInt:
        """The symbolic size called ``name``; ``hint`` is the size it has in the example."""
        if name not in self._symbols:
            # A hint of 0 or 1 would be taken for a fixed size, and broadcasting rules would differ.
            source = ConstantSource(f"{name}_{len(self._symbols)}")
            symbol = self.shape_env.create_symbol(
                max(2, hint),
                source,
                dynamic_dim=DimDynamic.DYNAMIC,
                constraint_dim=None,
                do_not_specialize_zero_one=True,
            )
            self.names[str(symbol)] = name
            size = self.shape_env.create_symintnode(symbol, hint=max(2, hint), source=source)
            assert isinstance(size, torch.SymInt)
            self._symbols[name] = size
        return self._symbols[name]

    def tensor(self, sizes: Sequence[Size], dtype: torch.dtype) -> FakeTensor:
        with self.mode:
            return torch.empty(tuple(sizes), dtype=dtype)  # type: ignore[return-value]

    def constant(self, tensor: Tensor) -> FakeTensor:
        """The fake value of a weight, every size fixed."""
        with self.mode:
            return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)  # type: ignore[return-value]


def fake_mode(program: Program) -> FakeTensorMode:
    """The fake mode that the program's values live in."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return SymbolTable().mode


def fake_call(node: fx.Node) -> Any:
    """What ``node`` returns for the fake values of its operands; call inside the program's fake mode."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    try:
        # Without the Python dispatcher some operators (baddbmm) refuse symbolic sizes.  What torch prints of a failure
        # is in the error.
        for_all = for_all_sizes() if _has_ones(args) else nullcontext()
        with redirect_stderr(StringIO()), enable_python_dispatcher(), for_all:
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        where = node.meta.get("layer", "")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VerifierError(
            f"{node.name} ({node.target}{', in ' + where if where else ''}) rejects its operands: {reason}; "
            f"operands {[describe(a) for a in args]}"
        ) from error


def _has_ones(args: Any) -> bool:
    """Whether a size that is not fixed is 1 (or 0) in the example, as a count of tokens that stay may be.

    Broadcasting would take it for 1 everywhere.
    """
    for arg in args if isinstance(args, list | tuple) else (args,):
        if isinstance(arg, list | tuple):
            if _has_ones(arg):
                return True
            continue
        for size in arg.shape if isinstance(arg, Tensor) else (arg,):
            if isinstance(size, torch.SymInt) and size.node.has_hint() and size.node.hint < 2:
                return True
    return False


@contextmanager
def for_all_sizes() -> Iterator[None]:
    """Within it, whether a size is 1 is not answered from the example's sizes, nor is anything else of sizes."""
    before = config.backed_size_oblivious
    config.backed_size_oblivious = True
    try:
        yield
    finally:
        config.backed_size_oblivious = before


def expression(size: Size) -> sympy.Expr:
    """A size as a sympy expression in the program's symbols."""
    if isinstance(size, torch.SymInt):
        return size.node.expr
    return sympy.Integer(int(size))


def same_size(left: Size, right: Size) -> bool:
    """Whether two sizes are equal for every value of the symbols (no guard is added)."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    one, other = expression(left), expression(right)
    if one == other:
        return True
    difference = (one - other).expand()
    # A polynomial is 0 for all values where nothing of it is left; sympy's simplification takes long to import alone.
    return bool(difference == 0 or (not difference.is_polynomial() and sympy.simplify(difference) == 0))


def same_shape(left: Sequence[Size], right: Sequence[Size]) -> bool:
    """Whether two shapes are equal for every value of the symbols."""
    return len(left) == len(right) and all(map(same_size, left, right))


def size_text(size: Size, symbols: Mapping[str, str]) -> str:
    """A size with the program's own dimension names, such as ``batch`` or ``(7*tokens + 9)//10``."""
    expr = expression(size)
    named = expr.xreplace(
        {s: sympy.Symbol(symbols.get(str(s), str(s)), integer=True) for s in expr.free_symbols}
    )
    return str(named)


def describe(value: Any) -> str:
    """A value's type in the form ``f32[batch, 6, 64]``."""
    if isinstance(value, torch.Tensor):
        dims = ", ".join(str(d) for d in value.shape)
        return f"{dtype_text(value.dtype)}[{dims}]"
    return repr(value)


def dtype_text(dtype: torch.dtype) -> str:
    short = {
        torch.float32: "f32",
        torch.float16: "f16",
        torch.bfloat16: "bf16",
        torch.float64: "f64",
        torch.int64: "i64",
        torch.int32: "i32",
        torch.int16: "i16",
        torch.int8: "i8",
        torch.uint8: "u8",
        torch.bool: "bool",
    }
    return short.get(dtype, str(dtype).removeprefix("torch."))
