"""Every registered pass, with every method that fills its slot, keeps its promise on random transformers."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from random_programs import Config, build, configs, inputs_of
from token_choices import kept_indices, with_outputs
from torch import Tensor

from tersor.ir.builder import Builder
from tersor.ir.dialect.select_tokens import kept_count
from tersor.ir.program import Program
from tersor.ir.text import program_text
from tersor.ir.verifier import verify
from tersor.passes.contract import Method, Pass, Promise, Refusal, Site
from tersor.passes.registry import find_methods, find_passes, registered, unregistered
from tersor.passes.spec import parse_spec, slot_of
from tersor.passes.tokens.drop import TokenDrop

Inputs = dict[str, Tensor]


def specs() -> Iterator[str]:
    """Every pass by its spec; one that has a slot, with each method that fills it."""
    for name, kind in find_passes().items():
        hints = typing.get_type_hints(kind)
        slots = {f.name: base for f in fields(kind) if (base := slot_of(hints[f.name])) is not None}
        for slot, base in slots.items():
            yield from (f"{name}:{slot}={method}" for method in find_methods(base))
        if not slots:
            yield name


def is_approximate(spec: str) -> bool:
    return parse_spec(spec).promised is Promise.APPROXIMATE


# Most of them without causality, which many methods refuse, and with padding, about which most is promised.
transformers = st.one_of(configs(), configs(causal=False, padding=True), configs(causal=False, padding=True))
cheap = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def rewritten(instance: Pass, program: Program) -> Program | None:
    """The Program after the pass, held against the contract; None where the pass refuses, for a reason."""
    before = program_text(program, full=True)
    sites = instance.legality(program)
    if isinstance(sites, Refusal):
        event("refused")
        assert sites.reason
        assert not sites.node or program.find(sites.node) is not None
        return None
    assert all(isinstance(site, Site) and program.find(site.node) is not None for site in sites)
    result, again = (instance.rewrite(program, sites).finished() for _ in range(2))
    assert program_text(program, full=True) == before, "the Program that was given is unchanged"
    assert program_text(result, full=True) == program_text(again, full=True), "rewriting is deterministic"
    verify(result, shapes=instance.promised is not Promise.EXACT)
    event("rewritten")
    return result


def inputs_for(program: Program, config: Config, seed: int, left: bool) -> Inputs:
    """Inputs at a size other than the example's where that is allowed; rows padded at their start if ``left``."""
    sizes = dict(batch=3, tokens=8) if config.dynamic else dict(batch=config.batch, tokens=config.tokens)
    inputs = inputs_of(program, config, seed=seed, **sizes)
    if left and config.padding and config.output != "first":
        lengths = inputs["attention_mask"].sum(1).tolist()
        for name, value in inputs.items():
            inputs[name] = torch.stack(
                [row.roll(len(row) - length, 0) for row, length in zip(value, lengths, strict=True)]
            )
    return inputs


def real_tokens(inputs: Inputs) -> Tensor:
    content = next(value for name, value in inputs.items() if name != "attention_mask")
    return inputs.get("attention_mask", torch.ones(content.shape[:2])).bool()


def content_of(output: Tensor, inputs: Inputs) -> Tensor:
    """An output's values at real tokens; all of them where it is no output per token."""
    return output[real_tokens(inputs)] if output.dim() == 3 else output


def same_up_to_rounding(want: Tensor, got: Tensor) -> None:
    torch.testing.assert_close(got, want)


def same_most_likely_token(want: Tensor, got: Tensor) -> None:
    assert torch.equal(got.argmax(-1), want.argmax(-1))


def finite(want: Tensor, got: Tensor) -> None:
    assert bool(got.isfinite().all())


PROMISED: dict[Promise, Callable[[Tensor, Tensor], None]] = {
    Promise.EXACT: same_up_to_rounding,
    Promise.GREEDY_EXACT: same_most_likely_token,
    Promise.APPROXIMATE: finite,
}


def check_promise(instance: Pass, program: Program, inputs: Inputs) -> None:
    """Whatever a pass is, its outputs have shape and dtype of the others, repeat, and differ by what it promises."""
    result = rewritten(instance, program)
    if result is None:
        return
    want, got, again = program.run(inputs), result.run(inputs), result.run(inputs)
    for old, new, repeated in zip(want, got, again, strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert torch.equal(new, repeated), "running is deterministic"
        PROMISED[instance.promised](content_of(old, inputs), content_of(new, inputs))


def test_every_promise_and_every_method_is_held_below() -> None:
    assert PROMISED.keys() == set(Promise)
    methods = {type(m) for spec in specs() for m in parse_spec(spec).methods.values()}
    assert methods >= {m for m in find_methods(Method).values() if m.__module__.startswith("tersor.")}


@pytest.mark.parametrize("spec", list(specs()))
@given(
    config=transformers,
    seed=st.integers(0, 99),
    left=st.booleans(),
    before=st.none() | st.sampled_from([spec for spec in specs() if is_approximate(spec)]),
)
@cheap
def test_every_pass_keeps_its_promise_whatever_came_before(
    spec: str, config: Config, seed: int, left: bool, before: str | None
) -> None:
    program = build(config)
    if before is not None:
        program = rewritten(parse_spec(before), program) or program
    check_promise(parse_spec(spec), program, inputs_for(program, config, seed, left))


@unregistered
@dataclass(frozen=True)
class Louder(Pass):
    """A family of its own: every result of one operator is made larger, by as much as the method says."""

    name: ClassVar[str] = "test-louder"
    family: ClassVar[str] = "test-loudness"
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    by: Loudness = field(default_factory=lambda: Twice(), metadata={"help": "how much larger"})

    def legality(self, program: Program) -> list[Site] | Refusal:
        found = [n for n in program.graph.nodes if n.target is torch.ops.aten.gelu.default]
        return [Site(node.name) for node in found] or Refusal("nothing is there to be made larger")

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        for site in sites:
            node = work.find(site.node)
            g = Builder(work, node.next)
            larger = g.mul(node, self.by.factor)
            node.replace_all_uses_with(larger, delete_user_cb=lambda user, made=larger: user is not made)
        return work


class Loudness(Method):
    """Base of the methods of a slot that only this file has."""

    factor: ClassVar[float]


@unregistered
@dataclass(frozen=True)
class Twice(Loudness):
    """Twice as large."""

    name: ClassVar[str] = "test-twice"
    factor: ClassVar[float] = 2.0


@dataclass(frozen=True)
class Once(Twice):
    """Exactly as large."""

    name: ClassVar[str] = "test-once"
    promise: ClassVar[Promise | None] = Promise.EXACT
    factor: ClassVar[float] = 1.0


@dataclass(frozen=True)
class ClaimsToBeOnce(Twice):
    """Larger, and promises not to be."""

    name: ClassVar[str] = "test-claims-to-be-once"
    promise: ClassVar[Promise | None] = Promise.EXACT


@dataclass(frozen=True)
class PastAllNumbers(Twice):
    """So large that it is not finite."""

    name: ClassVar[str] = "test-past-all-numbers"
    factor: ClassVar[float] = float("inf")


@given(config=configs(mlp="gelu"))
@cheap
def test_a_family_of_ones_own_is_held_to_what_it_promises(config: Config) -> None:
    program = build(config)
    inputs = inputs_for(program, config, seed=0, left=False)
    with registered(Louder, Twice):
        test_every_promise_and_every_method_is_held_below()
        mine = [spec for spec in specs() if spec.startswith(f"{Louder.name}:")]
        assert [spec.partition("=")[2] for spec in mine] == [
            "test-claims-to-be-once",
            "test-once",
            "test-past-all-numbers",
            "test-twice",
        ]
        broken = []
        for spec in mine:
            try:
                check_promise(parse_spec(spec), program, inputs)
            except AssertionError:
                broken.append(spec.partition("=")[2])
    assert broken == ["test-claims-to-be-once", "test-past-all-numbers"]


def test_a_greedy_exact_pass_may_change_scores_and_not_which_is_largest() -> None:
    old = torch.tensor([[1.0, 3.0], [2.0, 1.0]])
    PROMISED[Promise.GREEDY_EXACT](old, old * 9)
    with pytest.raises(AssertionError):
        PROMISED[Promise.GREEDY_EXACT](old, -old)


@pytest.mark.parametrize("spec", [spec for spec in specs() if spec.startswith(f"{TokenDrop.name}:")])
@given(
    config=transformers, seed=st.integers(0, 99), left=st.booleans(), keep=st.sampled_from([0.5, 0.7, 1.0])
)
@cheap
def test_token_dropping_keeps_what_it_promises_about_rows_padding_and_ends(
    spec: str, config: Config, seed: int, left: bool, keep: float
) -> None:
    program = build(config)
    instance = parse_spec(f"{spec},keep={keep}")
    inputs = inputs_for(program, config, seed, left)
    result = rewritten(instance, program)
    if result is None:
        return
    got = result.run(inputs)
    if keep == 1.0:
        for old, new in zip(program.run(inputs), got, strict=True):
            torch.testing.assert_close(content_of(new, inputs), content_of(old, inputs), atol=1e-4, rtol=1e-4)
    sites = instance.legality(program)
    assert isinstance(sites, list)
    _check_kept_tokens(result, inputs, sites)
    _check_other_rows_and_padding_have_no_part(result, inputs, got, seed)


def _check_kept_tokens(program: Program, inputs: Inputs, sites: list[Site]) -> None:
    """Each row keeps its own share of its real tokens, both protected ends among them, at every site."""
    indices = with_outputs(program, [node.name for node in kept_indices(program)]).run(inputs)
    indices = indices[len(program.outputs) :]
    assert len(indices) == len(sites)
    for row, real in enumerate(real_tokens(inputs)):
        positions = real.nonzero().flatten().tolist()
        left = list(range(len(real)))
        expected = len(positions)
        for site, index in zip(sites, indices, strict=True):
            prefix, last, keep = (int(site.facts[name]) for name in ("prefix", "last", "keep"))
            fixed = prefix + last
            columns = index[row].tolist()
            assert columns == sorted(set(columns))
            left = [left[column] for column in columns]
            kept = [position for position in left if real[position]]
            expected = min(expected, int(kept_count(max(expected, fixed), fixed, keep)))
            assert len(kept) == expected
            assert {*positions[:prefix], *(positions[-last:] if last else [])} <= set(kept)


def _check_other_rows_and_padding_have_no_part(
    program: Program, inputs: Inputs, got: tuple[Tensor, ...], seed: int
) -> None:
    """A row's result is the same whatever stands in its padding and in the batch's other rows."""
    random = torch.Generator().manual_seed(seed + 1)
    real = real_tokens(inputs)
    for row in range(len(real)):
        other = {}
        for name, value in inputs.items():
            noise = value.flatten()[torch.randperm(value.numel(), generator=random)].reshape(value.shape)
            other[name] = noise.clone()
            if name == "attention_mask":
                other[name][:] = value.roll(1, 0)
                other[name][row] = value[row]
            else:
                other[name][row] = value[row]
                other[name][row][~real[row]] = noise[row][~real[row]]
        for old, new in zip(got, program.run(other), strict=True):
            mine, theirs = (x[row][real[row]] if x.dim() == 3 else x[row] for x in (old, new))
            torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)
