"""Matrices in blocks of 4 or 8 bit numbers along their input dim, each block with a scale: ``MatMulNBits``.

Activations are rounded to 8 bits too, in blocks of each row by themselves: what a row gives does not depend on the
rows beside it, which ``DynamicQuantizeMatMul``, with one scale for all, does not hold to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir
import torch
from torch import Tensor

from .kind import Stored

if TYPE_CHECKING:
    from ..emitter import Emitter

MICROSOFT = "com.microsoft"
# Integer products; with float activations (level 0) ONNX Runtime takes some fifty times as long.
_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class Blocks(Stored):
    """``values[o, i] = scales[o, b] * (q[o, i] - zero[o, b]) + offsets[o, b]``, ``b`` the block that ``i`` lies in.

    Attributes:
        width: the input dim; the last block may go on beyond it.
        bits: 4 or 8.
        quants: uint8 ``[out, blocks, block_size * bits / 8]``; of two numbers in a byte the first is the lower.
        scales: float32 ``[out, blocks]``.
        zeros: uint8 ``[out, blocks]``; None: 8 of 4 bits, 128 of 8 bits.
        offsets: float32 ``[out, blocks]``; None: none.
    """

    rounds_activations: ClassVar[bool] = True

    width: int
    bits: int
    quants: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    offsets: Tensor | None = None

    @staticmethod
    def of(
        numbers: Tensor,
        width: int,
        bits: int,
        scales: Tensor,
        zeros: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Blocks:
        """From numbers ``[out, blocks, block_size]`` (uint8), one in a byte."""
        quants = numbers if bits == 8 else _packed(numbers)
        return Blocks(width, bits, quants.contiguous(), scales.contiguous(), zeros, offsets)

    @property
    def block_size(self) -> int:
        return int(self.quants.shape[2]) * 8 // self.bits

    @property
    def default_zero(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def nbytes(self) -> int:
        parts = (self.quants, self.scales, self.offsets, self._packed_zeros())
        return sum(part.nbytes for part in parts if part is not None)

    def values(self) -> Tensor:
        numbers = self.quants if self.bits == 8 else _unpacked(self.quants)
        zeros = self.default_zero if self.zeros is None else self.zeros[..., None].float()
        whole = (numbers.float() - zeros) * self.scales[..., None]
        if self.offsets is not None:
            whole = whole + self.offsets[..., None]
        return whole.flatten(1)[:, : self.width]

    def product(self, e: Emitter, name: str, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        zeros = self._packed_zeros()
        result = e.op(
            "MatMulNBits",
            x, self._quants(e, name), self._scales(e, name),
            None if zeros is None else e.initializer(f"{name}.zeros", zeros), None, bias,
            domain=MICROSOFT, K=self.width, N=int(self.quants.shape[0]), bits=self.bits, block_size=self.block_size,
            accuracy_level=_ACCURACY_LEVEL,
        )  # fmt: skip
        if self.offsets is None:
            return result
        # A block's offset is multiplied by the sum of its activations.
        assert self.width % self.block_size == 0, "a block with an offset is whole"
        blocks = int(self.scales.shape[1])
        rank = e.fake(x).dim()
        parts = e.op("Reshape", x, e.ints([*[0] * (rank - 1), blocks, self.block_size]))
        sums = e.op("ReduceSum", parts, e.ints([rank]), keepdims=0)
        by_block = e.op("Transpose", self._offsets(e, name), perm=[1, 0])
        return e.op("Add", result, e.op("MatMul", sums, by_block))

    def rows(self, e: Emitter, name: str, indices: ir.Value) -> ir.Value:
        rank = e.fake(indices).dim()

        def gathered(table: ir.Value) -> ir.Value:
            """``[..., blocks, 1]``"""
            return e.op("Unsqueeze", e.op("Gather", table, indices, axis=0), e.ints([-1]))

        numbers = e.op("Gather", self._quants(e, name), indices, axis=0)
        if self.bits == 4:
            low = e.op("BitwiseAnd", numbers, e.const(15, torch.uint8))
            high = e.op("BitShift", numbers, e.const(4, torch.uint8), direction="RIGHT")
            pair = [e.op("Unsqueeze", part, e.ints([-1])) for part in (low, high)]
            numbers = e.op(
                "Reshape", e.op("Concat", *pair, axis=-1), e.ints([*[0] * (rank + 1), self.block_size])
            )
        if self.zeros is None:
            zero = e.const(float(self.default_zero), torch.float32)
        else:
            zero = e.cast(gathered(e.initializer(f"{name}.row_zeros", self.zeros)), torch.float32)
        whole = e.op("Sub", e.cast(numbers, torch.float32), zero)
        whole = e.op("Mul", whole, gathered(self._scales(e, name)))
        if self.offsets is not None:
            whole = e.op("Add", whole, gathered(self._offsets(e, name)))
        padded = int(self.scales.shape[1]) * self.block_size
        flat = e.op("Reshape", whole, e.ints([*[0] * rank, padded]))
        if padded == self.width:
            return flat
        return e.op("Slice", flat, e.ints([0]), e.ints([self.width]), e.ints([rank]))

    def _quants(self, e: Emitter, name: str) -> ir.Value:
        return e.initializer(f"{name}.quants", self.quants)

    def _scales(self, e: Emitter, name: str) -> ir.Value:
        return e.initializer(f"{name}.scales", self.scales)

    def _offsets(self, e: Emitter, name: str) -> ir.Value:
        assert self.offsets is not None
        return e.initializer(f"{name}.offsets", self.offsets)

    def _packed_zeros(self) -> Tensor | None:
        """Zeros as the operator takes them: those of a row behind each other, of 4 bits two in a byte."""
        if self.zeros is None or self.bits == 8:
            return self.zeros
        zeros = self.zeros
        if zeros.shape[1] % 2:
            zeros = torch.nn.functional.pad(zeros, (0, 1), value=self.default_zero)
        return _packed(zeros)


def in_blocks(weight: Tensor, block_size: int) -> Tensor:
    """``[out, in]`` as ``[out, blocks, block_size]``, with zeros behind the end of a row."""
    missing = -int(weight.shape[1]) % block_size
    padded = torch.nn.functional.pad(weight, (0, missing)) if missing else weight
    return padded.reshape(weight.shape[0], -1, block_size)


def _packed(numbers: Tensor) -> Tensor:
    """Two 4 bit numbers of the last dim in one byte."""
    return numbers[..., 0::2] | (numbers[..., 1::2] << 4)


def _unpacked(packed: Tensor) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
