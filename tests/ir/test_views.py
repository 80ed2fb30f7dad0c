"""Views and block names."""

from __future__ import annotations

import pytest
from random_programs import Config, build

from tersor.ir.layer_path import block_path
from tersor.ir.views import is_view


def test_views_are_the_operators_that_share_memory() -> None:
    program = build(Config(layers=1, noise=True))
    by_op = {str(n.target).split(".")[1]: is_view(n) for n in program.graph.nodes if n.op == "call_function"}
    views = {name for name, view in by_op.items() if view}
    assert {"reshape", "transpose", "slice", "dropout"} & views == {"reshape", "transpose", "slice"}
    assert not views & {"linear", "add", "attention", "contiguous", "layer_norm", "gelu", "zeros"}


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("encoder.layer.3.attention.self", "encoder.layer.3"),
        ("blocks.11", "blocks.11"),
        ("embeddings.LayerNorm", "embeddings.LayerNorm"),
        ("vision.layers.0.experts.2", "vision.layers.0"),
        ("", ""),
    ],
)
def test_a_block_is_everything_up_to_the_first_number(path: str, block: str) -> None:
    assert block_path(path) == block
