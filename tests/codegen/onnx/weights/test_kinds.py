"""A stored matrix stands for certain numbers, and what ONNX Runtime computes is the product with those."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.codegen.onnx.weights import kinds, storable, stored_weights
from tersor.codegen.onnx.weights.plan import stored_as
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program

# Of a product, by rounding activations to 8 bits.
ACTIVATIONS = 0.02
# Of weights, relatively, at most: by kinds whose rounding is known, and by any that is worth having.
KNOWN, ANY = {"int8": 0.008, "int4": 0.12, "fp16": 1e-3, "bf16": 8e-3}, 0.25
# All that are found, but those that have no form for just any weight.
WEIGHTS = {
    name: KNOWN.get(name, ANY)
    for name, kind in kinds().items()
    if kind.store(torch.randn(64, 64)) is not None
}


class Tied(nn.Module):
    """Rows of a table, a layer with a bias, and the table again as the last layer."""

    def __init__(self, rows: int, width: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        return nn.functional.linear(self.down(torch.relu(self.up(x))) + x, self.table.weight)


class Right(nn.Module):
    """Products with a matrix on their right, as GPT-2's layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(48, 70)), nn.Parameter(torch.randn(70))
        self.second = nn.Parameter(torch.randn(70, 33))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.first) @ self.second


def tied(rows: int = 90, width: int = 64, hidden: int = 96) -> Program:
    return capture(Tied(rows, width, hidden).eval(), {"input_ids": torch.randint(0, rows, (2, 5))})


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def of_products(kind: str) -> float:
    """By how much products may differ from those with the values."""
    stored = kinds()[kind].store(torch.randn(64, 64))
    return ACTIVATIONS if stored is not None and stored.rounds_activations else 1e-5


def with_values(program: Program, kind: str) -> Program:
    """The Program whose weights are what the kind stores of them."""
    work = program.edit()
    right = storable(program)
    for name, stored in stored_weights(program, kind).items():
        values = stored.values()
        work.weights[name] = values.t() if right[name] and not kinds()[kind].own_layout else values
    return work


@pytest.mark.parametrize("kind", WEIGHTS)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 70),
    width=st.integers(2, 200),
    spread=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_values_are_the_weight_but_for_rounding(
    kind: str, rows: int, width: int, spread: float, seed: int
) -> None:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread
    weight[0] = 0.0
    stored = kinds()[kind].store(weight)
    assert stored is not None
    values = stored.values()
    assert values.shape == weight.shape
    assert torch.equal(values[0], weight[0])
    assert (values - weight).norm() <= WEIGHTS[kind] * weight.norm()


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("width", "hidden"), [(64, 96), (40, 7), (16, 130)])
def test_the_product_is_that_with_the_values(kind: str, width: int, hidden: int) -> None:
    program = tied(90, width, hidden)
    ids = torch.randint(0, 90, (3, 7))
    (want,) = with_values(program, kind).run({"input_ids": ids})
    (got,) = OnnxExecutable.of(program, threads=1, weights=kind).run({"input_ids": ids})
    assert relative(got, want) < of_products(kind)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_matrices_on_the_right_are_stored_too(kind: str) -> None:
    program = capture(Right().eval(), {"x": torch.randn(4, 48)})
    assert sorted(storable(program).values()) == [True, True]
    x = torch.randn(5, 48)
    (want,) = with_values(program, kind).run({"x": x})
    (got,) = OnnxExecutable.of(program, threads=1, weights=kind).run({"x": x})
    assert relative(got, want) < of_products(kind)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_lookup_gives_the_stored_rows_exactly(kind: str) -> None:
    table = nn.Embedding(3000, 40)
    program = capture(table.eval(), {"input": torch.randint(0, 3000, (2, 5))})
    (name,) = storable(program)
    stored = stored_weights(program, kind)[name]
    ids = torch.randint(0, 3000, (3, 4))
    (got,) = OnnxExecutable.of(program, threads=1, weights=kind).run({"input": ids})
    torch.testing.assert_close(got, stored.values()[ids], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_a_row_gives_does_not_depend_on_the_rows_beside_it(kind: str) -> None:
    program = tied(500, 256, 640)
    executable = OnnxExecutable.of(program, threads=1, weights=kind)
    ids = torch.randint(0, 500, (8, 6))
    (together,) = executable.run({"input_ids": ids})
    alone = torch.cat([executable.run({"input_ids": row[None]})[0] for row in ids])
    one_by_one = torch.cat([executable.run({"input_ids": i[None, None]})[0][0] for i in ids[0]])
    # Sums of a row may come in another order; activations rounded by more than their own row would differ by 1e-2.
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[0], one_by_one, rtol=1e-4, atol=1e-4)


def test_kinds_whose_rounding_is_known_are_found() -> None:
    assert KNOWN.keys() <= WEIGHTS.keys()


def test_a_weight_is_stored_once_for_all_forms_of_a_program() -> None:
    program = tied()
    name = next(iter(storable(program)))
    first = stored_as(kinds()["int8"], program.weights[name], False)
    assert stored_weights(program.edit(), "int8")[name] is first


def test_weights_that_something_else_reads_stay_as_they_are() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.layer(x)) + self.layer.weight.sum()

    program = capture(Summed().eval(), {"x": torch.randn(4, 32)})
    assert list(storable(program)) == ["other.weight"]


def test_standard_operators_read_16_bits_only() -> None:
    program = tied()
    assert OnnxExecutable.of(program, ops="portable", weights="fp16")
    with pytest.raises(InputError, match="weights='int8' takes operators of ONNX Runtime's own"):
        OnnxExecutable.of(program, ops="portable", weights="int8")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "int7"}, "'int7' is none of fp32, "),
        ({"weights": "auto"}, "'auto' is settled by optimize_model"),
        ({"weights": "gguf"}, "none lies on the blocks of a GGUF file"),
        ({"weights": "int8", "weight_kinds": {"no.weight": "int4"}}, "'no.weight', which is no weight"),
    ],
)
def test_kinds_that_make_no_sense_are_named(options: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        OnnxExecutable.of(tied(), **options)


def test_single_weights_may_be_of_another_kind() -> None:
    program = tied()
    names = sorted(storable(program))
    stored = stored_weights(program, "int4", {names[0]: "int8", names[1]: "fp32"})
    assert [stored[n].bits if n in stored else None for n in names] == [8, None, 4]  # type: ignore[attr-defined]


def test_a_vocabularys_matrix_is_in_wider_blocks_of_8_bits() -> None:
    int8 = kinds()["int8"]
    sizes = [int8.store(torch.randn(rows, 128)).block_size for rows in (64, 1 << 15)]  # type: ignore[union-attr]
    assert sizes == [32, 128]


def test_rows_are_stored_some_at_a_time_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.codegen.onnx.weights import chunks

    weight = torch.randn(50, 70)
    for name in ("int8", "int4"):
        whole = kinds()[name].store(weight)
        with monkeypatch.context() as patch:
            patch.setattr(chunks, "_ELEMENTS", 7 * 70)
            parts = kinds()[name].store(weight)
        assert whole is not None
        assert parts is not None
        assert torch.equal(whole.values(), parts.values())
