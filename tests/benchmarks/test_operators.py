"""Both sides of every choice compute the same, and differ in the operators that the section says they differ in."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from benchmarks.operators import CHOICES, Case, Row, Side, attention_case, key_bias_case, norm_case, section
from tersor.codegen.onnx.session import CPU, session_from_model, session_options
from tersor.runtime.paired import PairedTiming

CASES = {
    "plain": lambda: attention_case(2, 9, 2, 2, 8),
    "padded": lambda: attention_case(2, 9, 2, 2, 8, padded=True),
    "causal": lambda: attention_case(2, 9, 4, 2, 8, causal=True),
    "causal, padded": lambda: attention_case(2, 9, 4, 2, 8, causal=True, padded=True),
    "windowed": lambda: attention_case(2, 9, 4, 2, 8, causal=True, window=3, padded=True),
    "key bias": lambda: key_bias_case(9),
    "norm": lambda: norm_case(9),
}


def sides(case: Case) -> dict[str, Side]:
    return {side.name: side for side in (case.before, *case.after)}


def run_operators(side: Side, folder: Path) -> list[str]:
    """What ONNX Runtime runs after its own fusions."""
    options, file = session_options(1), folder / "optimised.onnx"
    options.optimized_model_filepath = str(file)
    session_from_model(side.lowered(), options, [CPU])
    return [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]


@pytest.mark.parametrize("name", CASES)
def test_both_sides_of_a_comparison_compute_the_same(name: str) -> None:
    case = CASES[name]()
    results = {
        side.name: torch.from_numpy(side.call(1)()[0])
        for side in sides(case).values()
        if side.name != "no bias"
    }
    want = results.popitem()[1]
    for got in results.values():
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("key bias", "norm")])
def test_attention_is_by_the_operator_that_the_row_names(name: str, tmp_path: Path) -> None:
    kinds = {"MultiHeadAttention", "GroupQueryAttention", "Attention", "Softmax"}
    for title, side in sides(CASES[name]()).items():
        own = "Softmax" if title == "written out" else title.strip("`")
        assert kinds & set(run_operators(side, tmp_path)) == {own}


def test_a_key_bias_is_a_column_of_keys_or_an_operand() -> None:
    for title, side in sides(key_bias_case(9)).items():
        (node,) = (node for node in side.lowered().graph if node.op_type == "MultiHeadAttention")
        query, _, _, _, _, added = [*node.inputs, *[None] * 6][:6]
        assert query is not None
        # What reaches the operator with no column behind it is the model's input itself.
        assert query.is_graph_input() == (title != "a column")
        assert (added is not None) == (title == "written out")


def test_onnx_runtime_fuses_the_sum_on_one_side_only(tmp_path: Path) -> None:
    operators = {title: run_operators(side, tmp_path) for title, side in sides(norm_case(9)).items()}
    assert operators == {
        "`Sum`, `LayerNormalization`": ["Add", "Sum", "LayerNormalization"],
        "`SkipLayerNormalization`": ["SkipLayerNormalization"],
    }


def test_the_section_has_a_table_of_every_choice_and_its_threads() -> None:
    row = Row("1 x 2", "before", "after", PairedTiming(2e-3, 1e-3, 0.5, 0.4, 0.6, 9))
    text = section({name: [row] for name in CHOICES}, threads=3)
    assert "3 thread(s) an operator" in text
    for choice in CHOICES.values():
        assert f"### {choice.title}\n\n| {choice.size} | after / before |" in text
    assert text.count("| 1 x 2 | after / before | 2.000 | 1.000 | 0.500 (0.400 to 0.600) |") == len(CHOICES)
