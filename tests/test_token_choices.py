"""The comparison of token choices accepts ties between scores, and nothing else."""

from __future__ import annotations

import pytest
import torch
from random_programs import Config, build
from token_choices import Lower, assert_equal_to_torch, kept_indices, with_outputs

from tersor.codegen.target import Executable, find_target
from tersor.ir.builder import Builder
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program
from tersor.passes.spec import parse_spec

TOKENS = 8
CONFIG = Config(dynamic=False, tokens=TOKENS, positions=False)


def dropped(method: str) -> Program:
    drop = parse_spec(f"token-drop:method={method},keep=0.6,layers=0")
    sites = drop.legality(build(CONFIG))
    assert isinstance(sites, list), sites
    return drop.rewrite(build(CONFIG), sites)


def later_tokens_score_more(share: float, afterwards: float = 0.0) -> Lower:
    """Lowers to torch with every score raised by up to a share of it, and every gathered token by a number."""

    def lower(program: Program) -> Executable:
        work = program.edit()
        raised = 1 + share * torch.arange(TOKENS) / TOKENS
        for node in list(work.graph.nodes):
            g = Builder(work, node)
            if is_dialect(node, "select_tokens"):
                node.update_arg(0, g.mul(node.args[0], g.weight("raised", raised)))
            elif is_dialect(node, "gather_tokens") and afterwards:
                node.update_arg(0, g.add(node.args[0], afterwards))
        return find_target("torch").lower(work)

    return lower


def twins() -> dict[str, torch.Tensor]:
    """Every token twice, so that a choice of five in eight parts a pair."""
    return {"features": torch.randn(2, TOKENS // 2, CONFIG.width).repeat_interleave(2, 1)}


@pytest.mark.parametrize("method", ["norm", "received-attention"])
def test_the_other_of_two_equal_tokens_may_be_kept(method: str) -> None:
    program, inputs = dropped(method), twins()
    lower = later_tokens_score_more(2e-6)
    shown = with_outputs(program, [node.name for node in kept_indices(program)])
    assert not torch.equal(lower(shown).run(inputs)[-1], shown.run(inputs)[-1])
    assert_equal_to_torch(program, [inputs], lower)


def test_a_token_of_another_score_may_not() -> None:
    random = {"features": torch.randn(2, TOKENS, CONFIG.width)}
    with pytest.raises(AssertionError, match="chosen otherwise by"):
        assert_equal_to_torch(dropped("norm"), [random], later_tokens_score_more(9.0))


def test_what_is_computed_from_a_tie_has_to_be_equal() -> None:
    with pytest.raises(AssertionError, match="output differs by"):
        assert_equal_to_torch(dropped("norm"), [twins()], later_tokens_score_more(2e-6, afterwards=0.01))


def test_what_was_kept_is_returned_by_case_and_site() -> None:
    program = dropped("norm")
    ((kept,),) = assert_equal_to_torch(program, [twins()], find_target("torch").lower)
    assert kept.shape == (2, 5)
    assert len(kept_indices(program)) == 1
