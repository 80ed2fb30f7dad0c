"""Operators that hold Python functions: a branch, a loop or flexible attention is no part of a Program, and vmap is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from pt2_files import save
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import flex_attention

from tersor.ir.capture import capture
from tersor.ir.errors import CaptureError
from tersor.ir.verifier import verify

EXAMPLE = torch.randn(2, 5, 4)


class Applies(nn.Module):
    """``[batch, tokens, 4]`` through a linear layer and ``step``, unless told not to."""

    def __init__(self, step: Callable[[Tensor], Any], taken: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.step, self.taken = step, taken

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return self.step(y) if self.taken else y


class Holds(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + 1


def branches(y: Tensor) -> Any:
    return torch.cond(y.sum() > 0, lambda t: t * 2, lambda t: t - 1, (y,))


def loops(y: Tensor) -> Any:
    return while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, t * 2), (torch.tensor(0), y))[1]


def scans(y: Tensor) -> Any:
    return scan(lambda total, row: (total + row, total * row), torch.zeros(2, 4), y, dim=1)[1]


def maps(y: Tensor) -> Any:
    return map_rows(lambda row: row * 2, y)


def attends(y: Tensor) -> Any:
    return flex_attention(y[:, None], y[:, None], y[:, None])[:, 0]  # type: ignore[index]


REFUSED = [
    (branches, "cond", "torch.where"),
    (loops, "while_loop", "fixed number of steps"),
    (scans, "scan", "fixed number of steps"),
    (maps, "map", "torch.vmap"),
    (attends, "flex_attention", "scaled_dot_product_attention"),
]


@pytest.mark.parametrize(("step", "name", "mend"), REFUSED)
def test_an_operator_that_holds_functions_names_module_line_and_mend(
    step: Callable[[Tensor], Any], name: str, mend: str
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Holds(Applies(step)), {"x": EXAMPLE})
    text = str(caught.value)
    assert text.startswith(f"cannot capture Holds: it calls {name}, raised in inner (Applies) at {__file__}:")
    assert "    return" not in text
    assert mend in text


@pytest.mark.parametrize(("step", "name", "mend"), REFUSED)
def test_a_branch_that_no_call_takes_may_hold_such_an_operator(
    step: Callable[[Tensor], Any], name: str, mend: str
) -> None:
    model = Applies(step, taken=False).eval()
    program = capture(model, {"x": EXAMPLE})
    torch.testing.assert_close(program(EXAMPLE), model(EXAMPLE))


def test_a_branch_whose_condition_is_a_python_value_is_captured() -> None:
    model = Applies(lambda y: torch.cond(True, lambda t: t * 2, lambda t: t - 1, (y,))).eval()
    program = capture(model, {"x": EXAMPLE})
    x = torch.randn(3, 7, 4)
    torch.testing.assert_close(program(x), model(x))


def test_an_operator_that_only_the_exporter_meets_is_refused() -> None:
    def step(y: Tensor) -> Any:
        return branches(y) if torch.compiler.is_exporting() else y

    with pytest.raises(CaptureError, match=rf"it calls cond at {__file__}:\d+ .*, in inner"):
        capture(Holds(Applies(step)), {"x": EXAMPLE})


def test_a_refused_operator_leaves_export_as_it_was() -> None:
    with pytest.raises(CaptureError):
        capture(Applies(branches), {"x": EXAMPLE})
    torch.export.export(Applies(branches), (EXAMPLE,))


@pytest.mark.parametrize(("step", "name", "mend"), [row for row in REFUSED if row[0] is not attends])
def test_an_archive_with_such_an_operator_is_refused_before_it_runs(
    tmp_path: Path, step: Callable[[Tensor], Any], name: str, mend: str
) -> None:
    path = save(Holds(Applies(step)), (EXAMPLE,), None, tmp_path / "held.pt2")
    with pytest.raises(CaptureError) as caught:
        capture(path)
    text = str(caught.value)
    assert text.startswith(f"cannot capture {path}: it calls {name} at {__file__}:")
    assert ", in inner;" in text
    assert mend in text


def norms(y: Tensor) -> Tensor:
    return torch.vmap(torch.linalg.vector_norm)(y)


def products(y: Tensor) -> Tensor:
    return torch.vmap(torch.vmap(torch.dot))(y, y)


def by_parity(y: Tensor) -> Tensor:
    return norms(y) if y.shape[1] % 2 else norms(y + 1)


# Of products torch 2.11 asks for sizes that are symbols, and it writes no archive of what it calls for vmap.
since_2_13 = pytest.mark.skipif(Version(torch.__version__) < Version("2.13"), reason="torch itself fails")


@pytest.mark.parametrize("step", [norms, pytest.param(products, marks=since_2_13)])
def test_vmap_is_captured(step: Callable[[Tensor], Tensor]) -> None:
    model = Applies(step).eval()
    x = torch.randn(3, 7, 4)
    program = capture(model, {"x": EXAMPLE})
    verify(program)
    torch.testing.assert_close(program(x), model(x))


@since_2_13
@pytest.mark.parametrize("step", [norms, products])
def test_vmap_in_an_archive_is_captured(tmp_path: Path, step: Callable[[Tensor], Tensor]) -> None:
    model = Applies(step).eval()
    archived = capture(save(model, (EXAMPLE,), None, tmp_path / "mapped.pt2"))
    verify(archived)
    torch.testing.assert_close(archived(EXAMPLE), model(EXAMPLE))


def test_a_branch_on_a_size_beside_vmap_fixes_that_size() -> None:
    program = capture(Applies(by_parity), {"x": EXAMPLE})
    assert program.inputs[0].shape == ("batch", 5, 4)
    assert "branches on" in program.notes["capture"][0]
