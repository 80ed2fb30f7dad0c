"""Text before, text after: what the rewrite and each method write into a Program."""

from __future__ import annotations

import re

import pytest
from random_programs import Config, build

from tersor.ir.dialect import DIALECT
from tersor.ir.text import program_text
from tersor.passes.spec import parse_spec

PLAIN = Config(
    layers=2, heads=1, kv_heads=1, head_dim=4, padding=True, window=3, positions=False, dynamic=False
)


def lines(config: Config, spec: str = "") -> list[str]:
    """Every operation without its layer; long names of values shortened."""
    program = build(config)
    if spec:
        drop = parse_spec(f"token-drop:{spec}")
        sites = drop.legality(program)
        assert isinstance(sites, list), sites
        program = drop.rewrite(program, sites)
    text = program_text(program, full=True)
    text = re.sub(r"_(default|tensor|int|scalar)(?=[_\s,\])]|$)", "", text, flags=re.M)
    return [line.split("   #")[0].strip() for line in text.splitlines() if line.startswith("  %")]


def test_the_structure_is_written_around_one_choice() -> None:
    """Two sequences of 7: the first token and half of the other six stay, with their padding and positions."""
    before, after = lines(PLAIN), lines(PLAIN, "method=norm,keep=0.5,layers=0,prefix=1")
    new = [
        line
        for line in after
        if line not in before and not re.search(r"= (linear|gelu|add|reshape|transpose|layer_norm)\(", line)
    ]
    assert new == [
        "%linalg_vector_norm = linalg_vector_norm(%add) {dim=[-1]} -> f32[2, 7]",
        "%select_tokens = select_tokens(%linalg_vector_norm, %ne) {keep_per_mille=500, prefix=1, last=0} -> i64[2, 4]",
        "%gather_tokens = gather_tokens(%add, %select_tokens) {dim=1} -> f32[2, 4, 4]",
        "%gather_tokens_1 = gather_tokens(%ne, %select_tokens) {dim=1} -> bool[2, 4]",
        (
            "%attention_1 = attention(%transpose_4, %transpose_5, %transpose_6, padding=%gather_tokens_1, "
            "query_positions=%select_tokens, key_positions=%select_tokens) "
            "{scale=0.5, causal=false, window=3, softcap=0.0} -> f32[2, 1, 4, 4]"
        ),
        "%scatter_tokens = scatter_tokens(%add, %select_tokens, %add_3) -> f32[2, 7, 4]",
    ]
    assert (
        "%layer_norm_4 = layer_norm(%scatter_tokens, @.weight, @.bias) {normalized_shape=[4]} -> f32[2, 7, 4]"
        in after
    )
    assert [line for line in before if line not in after and "7" not in line.split("->")[1]] == []


SELECT = "select_tokens {keep_per_mille=500, prefix=1, last=0}"
SETTINGS = "scale=0.5, causal=false, window=0, softcap=0.0"


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("norm", [SELECT, "gather_tokens", "scatter_tokens"]),
        ("random", [SELECT, "gather_tokens", "scatter_tokens"]),
        (
            "received-attention",
            [f"attention_importance {{{SETTINGS}, iterations=1}}", SELECT, "gather_tokens", "scatter_tokens"],
        ),
        ("cls-attention", [f"attention_weights {{{SETTINGS}}}", SELECT, "gather_tokens", "scatter_tokens"]),
        (
            "hired",
            [f"attention_weights {{{SETTINGS}}}"] * 2 + [SELECT] + ["gather_tokens"] + ["scatter_tokens"],
        ),
        (
            "zero-tprune",
            [
                f"attention_importance {{{SETTINGS}, iterations=10}}",
                SELECT.replace("500", "750"),
                "gather_tokens",
                "gather_tokens",
                "scatter_tokens",
                SELECT,
                "gather_tokens",
                "scatter_tokens",
            ],
        ),
        (
            "tome",
            [
                "match_tokens {keep_per_mille=500, prefix=1, last=0}",
                "merge_tokens",
                "gather_tokens",
            ],
        ),
    ],
)
def test_every_method_writes_few_operators_of_the_dialect(method: str, written: list[str]) -> None:
    config = Config(layers=2, heads=1, kv_heads=1, head_dim=4, positions=False, dynamic=False)
    found = []
    for line in lines(config, f"method={method},keep=0.5,layers=0,prefix=1,proportional=false"):
        name = re.search(r"= (\w+)\(", line)
        if name is not None and name[1] in DIALECT and name[1] != "attention":
            attributes = re.search(r"\{(.*)\}", line)
            shown = attributes is not None and name[1] != "gather_tokens"
            found.append(f"{name[1]} {{{attributes[1]}}}" if shown and attributes else name[1])
    assert found == written


def test_kept_tokens_that_stand_in_for_others_reach_the_next_attention_as_a_mask_of_its_keys() -> None:
    config = Config(layers=2, heads=1, kv_heads=1, head_dim=4, positions=False, dynamic=False)
    spec = "method=norm,keep=0.5,layers=0,prefix=1"
    after, plain = lines(config, spec), lines(config, f"{spec},proportional=false")
    (attention,) = (line for line in after if "= attention(" in line and line not in plain)
    assert attention == (
        "%attention_1 = attention(%transpose_4, %transpose_5, %transpose_6, %unsqueeze_2) "
        f"{{{SETTINGS}}} -> f32[2, 1, 4, 4]"
    )
    assert "%unsqueeze_2 = unsqueeze(%unsqueeze_1) {dim=1} -> f32[2, 1, 1, 4]" in after


def test_pooling_needs_no_operator_of_its_own() -> None:
    config = Config(layers=2, heads=1, kv_heads=1, head_dim=4, positions=False, dynamic=False)
    after = lines(config, "method=pool,keep=0.5,layers=0,prefix=1")
    assert sum("scatter_add(" in line for line in after) == 2, "the sum of the values and that of the sizes"
    assert not any("attention_importance" in line or "attention_weights" in line for line in after)


def test_a_symbolic_length_stays_symbolic_in_every_count() -> None:
    config = Config(layers=2, positions=False, dynamic=True)
    after = lines(config, "method=random,keep=0.5,layers=0+1,prefix=1")
    counts = {line.split("-> ")[1] for line in after if "= select_tokens(" in line}
    assert len(counts) == 2
    assert all("tokens" in count and "batch" in count for count in counts)
