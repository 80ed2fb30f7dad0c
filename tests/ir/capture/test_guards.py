"""A branch on sizes is traced one way; the Program takes no size for which the model goes the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.capture.guards import interval
from tersor.ir.errors import CaptureError, InputError

FREE = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}


class Branches(nn.Module):
    """``[batch, tokens, 4]``, doubled where ``condition(batch, tokens)`` says so."""

    def __init__(self, condition: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.condition(x.shape[0], x.shape[1]) else x


class Stretches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * max(1.0, x.shape[1] / 64)


RANGES = {
    "above": (lambda b, n: n > 64, (1, 64)),
    "from": (lambda b, n: n >= 9, (9, None)),
    "below": (lambda b, n: n < 100_000, (1, 99_999)),
    "one size": (lambda b, n: n == 197, (1, 196)),
    "floor": (lambda b, n: n // 4 > 2, (12, None)),
}


@pytest.mark.parametrize("case", RANGES)
def test_a_comparison_becomes_a_range(case):
    condition, expected = RANGES[case]
    program = capture(Branches(condition), {"x": torch.randn(2, 12, 4)})
    assert program.ranges["tokens"] == expected
    assert not program.notes


SINGLE = {
    "equal": lambda b, n: n == 1,
    "different": lambda b, n: n != 1,
    "below": lambda b, n: n < 2,
    "above": lambda b, n: n > 1,
    "with the batch": lambda b, n: b * n == b,
}


@pytest.mark.parametrize("case", SINGLE)
@pytest.mark.parametrize("dynamic", ["auto", {"x": {1: "length"}}], ids=["auto", "named"])
def test_a_branch_at_one_that_the_exporter_writes_no_guard_for_bounds_the_size(case, dynamic):
    model = Branches(SINGLE[case])
    program = capture(model, {"x": torch.randn(2, 12, 4)}, dynamic=dynamic)
    (name,) = {"tokens", "length"} & set(program.inputs[0].shape)
    assert program.ranges[name] == (2, None)
    assert "something else at 1" in program.least[name]
    for length in (2, 3, 30):
        x = torch.randn(2, length, 4)
        assert torch.equal(program(x), model(x))
    with pytest.raises(InputError, match=f"{name} = 1; 2 to any are taken: the model does something else"):
        program(torch.randn(2, 1, 4))


class Squeezed(nn.Module):
    """Rejects a length of one, of which nothing can be learnt."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            raise ValueError("too short")
        return x * 2


def test_lengths_of_one_stay_where_nothing_speaks_against_them():
    for model in (Branches(lambda b, n: n > 64), Squeezed()):
        program = capture(model, {"x": torch.randn(2, 12, 4)})
        assert program.ranges["tokens"][0] == 1
        assert not program.notes
    x = torch.randn(2, 1, 4)
    whole = capture(Branches(lambda b, n: n == 1), {"x": x}, dynamic={})
    assert torch.equal(whole(x), x * 2)


def test_a_length_in_a_python_maximum_is_bounded_by_where_it_takes_over():
    model = Stretches()
    program = capture(model, {"x": torch.randn(2, 12, 4)})
    x = torch.randn(2, 64, 4)
    assert torch.equal(program(x), model(x))
    with pytest.raises(InputError, match="tokens = 100; the model takes 1 to 64"):
        program(torch.randn(2, 100, 4))


FIXED = {
    "parity": (lambda b, n: n % 2 == 0, (2, 12), ("batch", 12, 4), "dim 1 of 'x' is fixed at 12"),
    "no multiple": (lambda b, n: n % 7 == 3, (2, 12), ("batch", 12, 4), "dim 1 of 'x' is fixed at 12"),
    "rows": (lambda b, n: b % 2 == 0, (2, 12), (2, "tokens", 4), "dim 0 of 'x' is fixed at 2"),
    "two sizes": (lambda b, n: b < n, (2, 12), ("batch", 12, 4), "dim 1 of 'x' is fixed at 12"),
}


@pytest.mark.parametrize("case", FIXED)
def test_a_condition_that_is_no_range_fixes_the_dim_and_says_so(case):
    condition, sizes, shape, note = FIXED[case]
    model = Branches(condition)
    program = capture(model, {"x": torch.randn(*sizes, 4)})
    assert program.inputs[0].shape == shape
    assert len(program.notes["capture"]) == 1
    assert program.notes["capture"][0].startswith(f"{note}: the model branches on ")
    low, high = program.ranges.get("batch", (1, 40))
    for batch in range(1, 40):
        x = torch.randn(batch, 12, 4)
        if shape[0] in ("batch", batch) and low <= batch <= (high or 40):
            assert torch.equal(program(x), model(x))
        else:
            with pytest.raises(InputError):
                program(x)


def test_a_dim_that_was_asked_for_is_not_fixed_but_refused_with_the_condition():
    model = Branches(lambda b, n: n % 2 == 0)
    with pytest.raises(CaptureError, match=r"'length' .* x\.size\(\)\[1\] % 2 == 0.* leave the dim out"):
        capture(model, {"x": torch.randn(2, 12, 4)}, dynamic={"x": {1: "length"}})
    assert (
        capture(model, {"x": torch.randn(2, 12, 4)}, dynamic={"x": {0: "rows"}}).inputs[0].shape[0] == "rows"
    )


def test_an_archive_keeps_the_conditions_it_was_exported_with(tmp_path):
    model = Branches(lambda b, n: n % 2 == 0 and b < 9)
    x = torch.randn(2, 12, 4)
    exported = torch.export.export(model, (x,), dynamic_shapes=(FREE,), strict=False)
    torch.export.save(exported, tmp_path / "model.pt2")
    program = capture(tmp_path / "model.pt2")
    assert program.inputs[0].shape == ("batch", 12, 4)
    assert program.ranges == {"batch": (1, 8)}
    assert "fixed at 12" in program.notes["capture"][0]
    assert torch.equal(program(x), model(x))


def test_a_condition_in_an_archive_that_would_run_code_is_refused(tmp_path, capsys):
    model = Branches(lambda b, n: n % 2 == 0)
    exported = torch.export.export(model, (torch.randn(2, 12, 4),), dynamic_shapes=(FREE,), strict=False)
    exported._guards_code.append("print('hostile') is None")
    torch.export.save(exported, tmp_path / "model.pt2")
    with pytest.raises(InputError, match="could run any code"):
        capture(tmp_path / "model.pt2")
    assert "hostile" not in capsys.readouterr().out


class Equal(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y


def test_dims_that_the_model_holds_equal_get_one_name():
    program = capture(
        Equal(), {"x": torch.randn(2, 12), "y": torch.randn(12, 5)},
        dynamic={"x": {0: "rows", 1: "inner"}, "y": {0: "again", 1: "columns"}},
    )  # fmt: skip
    assert [spec.shape for spec in program.inputs] == [("rows", "inner"), ("inner", "columns")]


@given(low=st.integers(1, 30), length=st.integers(1, 10_000), inside=st.integers(0, 10_000))
def test_the_interval_around_the_example_is_exact(low, length, inside):
    high, example = low + length, low + inside % (length + 1)
    assert interval(lambda n: low <= n <= high, example) == (low, high)
    assert interval(lambda n: n >= low, example) == (low, None)


@given(divisor=st.integers(2, 64), example=st.integers(1, 500))
def test_divisibility_is_no_interval(divisor, example):
    assert interval(lambda n: (n % divisor == 0) == (example % divisor == 0), example) is None


def test_a_root_that_was_rounded_bounds_the_size():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * int(x.shape[1] ** 0.5)

    program = capture(Root(), {"x": torch.randn(2, 10, 4)})
    assert program.ranges["tokens"] == (9, 15)
    assert program.inputs[0].shape == ("batch", "tokens", 4)


@pytest.mark.parametrize("number", [math.log, float])
def test_a_size_that_becomes_a_number_is_fixed_and_noted(number):
    class Number(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * number(x.shape[1])

    program = capture(Number(), {"x": torch.randn(2, 10, 4)})
    assert program.inputs[0].shape == ("batch", 10, 4)
    assert "dim 1 of 'x' is fixed at 10" in program.notes["capture"][0]


class Named(nn.Module):
    """Keys that are no names, and two inputs whose joined names are one."""

    def forward(self, b: dict[str, Tensor], b_c: Tensor) -> Tensor:
        x = b["x-y"] * 2 if b["x-y"].shape[1] < 30 else b["x-y"]
        return x.sum() + b["c"].sum() + (b_c * 3 if b_c.shape[1] > 5 else b_c)


def test_conditions_of_an_archive_are_those_of_the_inputs_whatever_their_keys(tmp_path):
    inputs = ({"c": torch.randn(2, 3, 4), "x-y": torch.randn(2, 12, 4)}, torch.randn(2, 9, 4))
    exported = torch.export.export(Named(), inputs, dynamic_shapes=({"c": FREE, "x-y": FREE}, FREE))
    torch.export.save(exported, tmp_path / "model.pt2")
    program = capture(tmp_path / "model.pt2")
    assert not program.notes
    c, xy, after = (program.ranges[spec.shape[1]] for spec in program.inputs)
    assert (c, xy, after) == ((1, None), (1, 29), (6, None))
    assert all(dim.isidentifier() for dim in program.ranges)


def test_an_input_in_capitals_varies():
    class Capital(nn.Module):
        def forward(self, X: Tensor) -> Tensor:
            return X * 2 if X.shape[1] < 30 else X

    program = capture(Capital(), {"X": torch.randn(2, 12, 4)})
    assert program.inputs[0].shape == ("batch", "tokens", 4)
    assert program.ranges["tokens"] == (1, 29)
    assert not program.notes


class Reads(nn.Module):
    """One stream reads another; PyTorch asks whether their memory lies alike, which it does for one token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project = nn.Embedding(50, 32), nn.Linear(32, 32)
        self.reads, self.norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        text, image = self.table(ids), self.project(image)
        return self.norm(image + self.reads(image, text, text)[0]), text.mean(1)


def test_a_size_of_one_alone_fixes_none_of_two() -> None:
    model = Reads().eval()
    program = capture(model, {"image": torch.randn(2, 6, 32), "ids": torch.randint(0, 50, (2, 5))})
    assert "capture" not in program.notes
    for tokens in (1, 2, 11):
        inputs = {"image": torch.randn(3, tokens, 32), "ids": torch.randint(0, 50, (3, 7))}
        for found, want in zip(program(**inputs), model(**inputs), strict=True):
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


class Neighbours(nn.Module):
    """Every token with those beside it, or, in the middle, with what lies between the ends."""

    def __init__(self, middle: bool, apart: int = 0) -> None:
        super().__init__()
        self.middle, self.apart = middle, apart

    def forward(self, x):
        if self.middle:
            y = torch.cat([x[:, :1], x[:, 1:-1] * 2, x[:, -1:]], 1)
        else:
            y = nn.functional.pad(x[:, 1:], (0, 0, 0, 1)) + nn.functional.pad(x[:, :-1], (0, 0, 1, 0))
        return y * 3 if self.apart and x.shape[1] == self.apart else y


@pytest.mark.parametrize("middle", [False, True])
def test_sizes_that_slices_leave_out_are_tried(middle):
    model = Neighbours(middle)
    program = capture(model, {"x": torch.randn(2, 12, 4)})
    assert program.ranges["tokens"] == (1, None)
    for length in range(1, 6):
        x = torch.randn(3, length, 4)
        assert torch.equal(program(x), model(x))


def test_a_size_that_is_something_else_ends_the_range():
    program = capture(Neighbours(False, apart=2), {"x": torch.randn(2, 12, 4)})
    assert program.ranges["tokens"] == (3, None)
