"""What PyTorch would evaluate, import, look up or write into source is read first, string by string."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from pt2_files import PROGRAM, edited, members, save, save_small, write
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv, PowByNatural

from tersor.ir.capture import capture
from tersor.ir.capture.pt2 import strings
from tersor.ir.capture.pt2.archive import load_archive
from tersor.ir.errors import InputError


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("small") / "small.pt2")


def everywhere(old: str, new: str) -> Callable[[bytes], bytes]:
    """Puts ``new`` for every ``old``."""

    def change(data: bytes) -> bytes:
        quoted = json.dumps(old).encode(), json.dumps(new).encode()
        assert quoted[0] in data
        return data.replace(*quoted)

    return change


def expressions(run: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert b"Mul(Integer(" in data
        return data.replace(b"Mul(Integer(", f"Mul(Integer(0*{run} + ".encode())

    return change


def program(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    return lambda data: edited(data, change)


def call_system(run: str) -> Callable[[bytes], bytes]:
    def change(held: Any) -> None:
        node = held["graph_module"]["graph"]["nodes"][-1]
        node |= {
            "target": "torch.os.mkdir",
            "inputs": [{"name": "", "arg": {"as_string": run.split("'")[-2]}, "kind": 1}],
        }

    return program(change)


def signature(field: str, value: Any) -> Callable[[bytes], bytes]:
    def change(held: Any) -> None:
        held["graph_module"]["module_call_graph"][0]["signature"][field] = value

    return program(change)


def text_input(checked: str, stated: str) -> Callable[[bytes], bytes]:
    """A text input, which PyTorch checks with a line of source for what the graph says that it is."""

    def change(held: Any) -> None:
        module = held["graph_module"]
        specs = module["signature"]["input_specs"]
        place = next(i for i, s in enumerate(specs) if s.keys() & {"user_input", "constant_input"})
        module["graph"]["inputs"][place] = {"as_string": checked}
        specs[place] = {"constant_input": {"name": "mode", "value": {"as_string": stated}}}

    return program(change)


def conditions(run: str) -> Callable[[bytes], bytes]:
    text = f"L['x'].size()[0] != L[\"a' + {run} + 'b\"].size()[0]"
    return program(lambda held: held.update(guards_code=[text]))


def spec(kind: str, context: Any) -> str:
    node = {"type": kind, "context": context, "children_spec": []}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [node]}])


ENUM = json.dumps({"__enum__": True, "fqn": "marking_module:E", "name": "a"})
FACTORY = {"default_factory_module": "marking_module", "default_factory_name": "f", "dict_context": []}
ATTACKS = {
    "an expression": (expressions, "is no arithmetic"),
    "a name of a value": (lambda run: everywhere("linear", f"linear=0;{run};linear"), "no name of a value"),
    "a line in a name": (lambda run: everywhere("linear", f"linear\n{run}\n"), "no name of a value"),
    "an argument's name": (
        lambda run: signature("forward_arg_names", [f"x=({run})", "pair", "scale"]),
        "no name of a value",
    ),
    "a tensor's place": (lambda run: everywhere("shift", f'shift") or {run} or ("'), "no place in a module"),
    "a class": (lambda run: everywhere("shift", "__class__.forward"), "no place in a module"),
    "a function": (call_system, "it calls 'torch.os.mkdir'"),
    "a text input": (lambda run: text_input(f"' or {run} or '", "a"), "more than letters"),
    "a condition": (conditions, "no arithmetic on sizes"),
    "an enum": (lambda run: signature("out_spec", spec("builtins.dict", ENUM)), "a type to import"),
    "a default": (lambda run: signature("in_spec", spec("collections.defaultdict", FACTORY)), "to import"),
    "an object": (
        lambda run: program(
            lambda held: held["graph_module"]["graph"].update(custom_obj_values={"x": {"name": "x"}})
        ),
        "fills custom_obj_values",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_string_of_an_archive_runs(small, tmp_path, monkeypatch, attack):
    canary, imported = tmp_path / "canary", tmp_path / "imported"
    (tmp_path / "marking_module.py").write_text(f"import os\nos.mkdir({str(imported)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    change, message = ATTACKS[attack]
    found = members(small)
    found[PROGRAM] = change(f"__import__('os').mkdir('{canary}')")(found[PROGRAM])
    path = write(tmp_path / "bad.pt2", found)
    try:
        with pytest.raises(InputError, match=message) as caught:
            capture(path)
    finally:
        assert not canary.exists()
        assert not imported.exists()
    assert f"{path}: {PROGRAM}: " in str(caught.value)


class Told(nn.Module):
    def forward(self, mode: str, x: Tensor) -> Tensor:
        return x * 2 if mode == "double" else x


def test_what_a_signature_says_of_a_text_input_is_not_run(tmp_path):
    """PyTorch checks the caller's text against the graph's, the only one that becomes source."""
    canary = tmp_path / "canary"
    path = save(Told(), ("double", torch.ones(2, 3)), None, tmp_path / "told.pt2")
    found = members(path)
    evil = f"' or __import__('os').mkdir({str(canary)!r}) or '"
    found[PROGRAM] = text_input("double", evil)(found[PROGRAM])
    exported = load_archive(write(path, found))
    assert evil in exported.graph_signature.user_inputs
    exported.module()("double", torch.ones(2, 3))
    assert not canary.exists()


n = sympy.Symbol("s7", positive=True, integer=True)


@pytest.mark.parametrize(
    "size",
    [
        n, 2 * n - 1, FloorDiv(3 * n, 4), sympy.Max(1, sympy.Min(n, 8)), n**2, 2 ** (n - 1), PowByNatural(n, 3),
        sympy.Rational(1, 2) * n, sympy.Float(0.25) * n, sympy.sqrt(n), sympy.Eq(n, 3), sympy.Ne(n, 3) & (n < 9),
        sympy.Not(n > 4), sympy.true, sympy.oo, sympy.Integer(-3), sympy.floor(n / 3), sympy.Mod(n, 5),
        sympy.Piecewise((n, n < 4), (4, True)),
    ],
)  # fmt: skip
def test_a_size_that_the_exporter_writes_stays_what_it_is(size):
    text = sympy.srepr(size)
    known = {"FloorDiv": FloorDiv, "PowByNatural": PowByNatural}
    assert sympy.sympify(strings.expression(text), locals=known) == sympy.sympify(text, locals=known)


@pytest.mark.parametrize(
    "text",
    [
        "exit()", "Symbol('s0').__class__", "(lambda: 1)()", "[1 for _ in x]", "Symbol('x; y')", "Integer('1+exit()')",
        "Float('exit()')", "Function('f')(1)", "Symbol('s0', cls=Function)", "Symbol(*a)", "Symbol('s0', **a)", "S",
        "Integer(1) if exit() else 2", "f'{exit()}'", "Pow(Integer(9), Integer(9999999))", "2 ** 99999999",
        "Pow(Integer(9), Pow(Integer(64), Integer(64)))", "9 ^ 99999999", "'text'", "", "(" * 500, "Integer(1),",
        "Add(Integer(1)\n)\nexit()", "x!", "Symbol('s0')\x00",
    ],
)  # fmt: skip
def test_an_expression_that_is_no_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match="the size"):
        strings.expression(text)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.linear.default", "torch.ops.aten.add_.Tensor", "_operator.floordiv", "torch.sym_max",
        "math.trunc", "torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.tersor.attention.default",
    ],
)  # fmt: skip
def test_operators_of_the_ir_are_handed_on(target):
    assert strings.operator(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system", "torch.hub.load", "torch.load", "torch.ops.load_library", "_operator.attrgetter",
        "_operator.methodcaller", "torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "os.system",
        "torch.ops.aten.__class__.mro", "torch.ops.aten.add.op", "torch.ops.prim.Print.default", "#a:b", "",
        "torch.ops.higher_order.call_torchbind", "math.sqrt.__call__", "torch.ops.aten.add.Tensor.x", "builtins.eval",
    ],
)  # fmt: skip
def test_other_functions_are_refused(target):
    with pytest.raises(ValueError, match=r"it calls|has no operator"):
        strings.operator(target)


def test_every_operator_that_takes_a_file_is_refused():
    """By the schema, not by a list: PyTorch may add one."""
    for found in torch._C._jit_get_all_schemas():
        namespace, _, name = found.name.partition("::")
        if namespace == "aten" and any(argument.name == "filename" for argument in found.arguments):
            with pytest.raises(ValueError, match="reads or writes files"):
                strings.operator(f"torch.ops.aten.{name}.{found.overload_name or 'default'}")
