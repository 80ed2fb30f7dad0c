"""A method of the user's that fails is one error of theirs, with its name, the place and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from random_programs import Config, build
from torch import fx

from tersor.ir.builder import Builder
from tersor.ir.errors import InputError, RefusedError
from tersor.ir.program import Program
from tersor.passes.contract import Pass, Promise, Refusal, Site
from tersor.passes.pipeline import run
from tersor.passes.registry import unregistered
from tersor.passes.tokens.drop import TokenDrop
from tersor.passes.tokens.method import Reduction, Scorer, TokenMethod, TokenSite

aten = torch.ops.aten
PROGRAM = build(Config(layers=2, padding=True))


def norm(g: Builder, site: TokenSite) -> fx.Node:
    return g.call(aten.linalg_vector_norm.default, g.mean(site.key, [1]), 2.0, [-1])


def scoring(function: Callable[..., Any]) -> TokenMethod:
    """A method that scores by ``function``."""

    @unregistered
    class Broken(Scorer):
        name: ClassVar[str] = "broken"

        def score(self, g: Builder, site: TokenSite) -> fx.Node:
            return function(g, site)  # type: ignore[no-any-return]

    return Broken()


def reducing(change: Callable[..., Any]) -> TokenMethod:
    """A method that hands on what ``change`` makes of a good reduction."""

    @unregistered
    class Broken(TokenMethod):
        name: ClassVar[str] = "broken"

        def reduce(self, g: Builder, site: TokenSite) -> Reduction:
            return change(g, site, scoring(norm).reduce(g, site))  # type: ignore[no-any-return]

    return Broken()


def dropped(method: TokenMethod) -> Program:
    return run(PROGRAM, [TokenDrop(method=method, keep=(0.5,), layers=(0,))])[0]


def test_the_methods_that_are_broken_work_otherwise() -> None:
    dropped(scoring(norm))
    dropped(reducing(lambda g, site, reduction: reduction))


def fails(*_: Any) -> fx.Node:
    raise KeyError("nothing there")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            fails,
            rf"at test_blame.py:{fails.__code__.co_firstlineno + 1}, in fails: KeyError: 'nothing there'",
        ),
        (lambda g, site: None, "select_tokens.*'None'"),
        (lambda g, site: 3.0, "select_tokens.*'3.0'"),
        (lambda g, site: site.key, r"\[batch, tokens\]"),
        (lambda g, site: g.mean(norm(g, site), [1]), "select_tokens.* rejects its operands"),
        (lambda g, site: g.call(aten.slice.Tensor, norm(g, site), 1, 1), "tokens"),
        (lambda g, site: g.call(aten.mm.default, norm(g, site), norm(g, site)), "mm"),
        (lambda g, site: g.call(torch.add, norm(g, site), 1.0), "neither an ATen operator"),
        (lambda g, site: g.call(aten.add.Tensor, norm(g, site), torch.ones(1)), "Tensor"),
        (lambda g, site: fx.Graph().placeholder("elsewhere"), "KeyError"),
    ],
)
def test_a_score_that_is_none_names_the_method(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"your method 'broken' .*{reason}"):
        dropped(scoring(function))


@pytest.mark.parametrize(
    "change",
    [
        lambda g, site, r: None,
        lambda g, site, r: r.hidden,
        lambda g, site, r: Reduction(r.hidden, g.call(aten.to.dtype, r.index, torch.float32), r.restore),
        lambda g, site, r: Reduction(site.hidden, r.index, r.restore),
        lambda g, site, r: Reduction(g.mean(r.hidden, [2]), r.index, r.restore),
        lambda g, site, r: Reduction(r.hidden, g.add(r.index, 1000), r.restore),
        lambda g, site, r: Reduction(r.hidden, r.index, lambda g, base, reduced: None),
        lambda g, site, r: Reduction(r.hidden, r.index, lambda g, base, reduced: reduced),
    ],
)
def test_a_reduction_that_is_none_names_the_method(change: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="your method 'broken' "):
        dropped(reducing(change))


def test_a_refusal_of_a_method_stays_a_refusal() -> None:
    def refuses(*_: Any) -> fx.Node:
        raise RefusedError("not here")

    with pytest.raises(RefusedError, match=r"\Anot here\Z"):
        dropped(scoring(refuses))


def passing(sites: Any) -> Pass:
    """A pass that finds ``sites`` and rewrites to nothing."""

    @unregistered
    class Broken(Pass):
        name: ClassVar[str] = "broken-pass"
        family: ClassVar[str] = "test"
        promise: ClassVar[Promise] = Promise.EXACT

        def legality(self, program: Program) -> list[Site] | Refusal:
            return sites  # type: ignore[no-any-return]

        def rewrite(self, program: Program, sites: list[Site]) -> Program:
            return None  # type: ignore[return-value]

    return Broken()


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        (None, "legality returned a NoneType"),
        ([Site("here")], "rewrite returned a NoneType"),
        (Refusal("why not", "no_such_node"), "no_such_node"),
    ],
)
def test_a_pass_that_returns_nothing_is_named(sites: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"your pass 'broken-pass' .*{reason}"):
        run(PROGRAM, [passing(sites)])
