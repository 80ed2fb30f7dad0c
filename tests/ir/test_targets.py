"""Every operator has one name, and only operators of the IR have one."""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir.dialect import DIALECT
from tersor.ir.targets import find_target, target_name

aten = torch.ops.aten


@pytest.mark.parametrize(
    "target",
    [
        aten.add.Tensor, aten.sym_size.int, aten.layer_norm.default, operator.getitem, operator.floordiv, operator.pow,
        operator.rshift, math.ceil, torch.sym_max, torch._sym_sqrt, max, *(op.overload for op in DIALECT.values()),
    ],
    ids=target_name,
)  # fmt: skip
def test_a_target_is_found_by_its_name(target: Any) -> None:
    assert find_target(target_name(target)) is target


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (aten.add_.Tensor, "writes to an operand"),
        (aten.from_file.default, "reads or writes files"),
        (aten.save.default, "reads or writes files"),
        (os.system, "neither an ATen operator"),
        (torch.add, "neither an ATen operator"),
        ("add", "neither an ATen operator"),
        (None, "neither an ATen operator"),
    ],
)
def test_what_the_ir_does_not_allow_has_no_name(target: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        target_name(target)


@given(st.text(max_size=12) | st.tuples(*[st.from_regex(r"\w{0,8}", fullmatch=True)] * 3).map(".".join))
def test_a_name_gives_an_operator_of_the_ir_or_a_value_error(name: str) -> None:
    try:
        found = find_target(name)
    except ValueError:
        return
    assert target_name(found) == name
