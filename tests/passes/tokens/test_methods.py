"""What each method chooses, against NumPy written from its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import Config, build
from torch import Tensor

from tersor.ir.dialect import is_dialect
from tersor.ir.program import GraphInterpreter, Program
from tersor.passes.spec import parse_spec

Captured = Callable[[str], Program]
Drop = Callable[[Program, str], Program]


def values_of(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    class Recorder(GraphInterpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Recorder(program).run(*(inputs[spec.name] for spec in program.inputs))
    return seen


def nodes(program: Program, name: str) -> list[torch.fx.Node]:
    return [n for n in program.graph.nodes if is_dialect(n, name)]


def probabilities(seen: dict[str, Any], node: torch.fx.Node) -> np.ndarray:
    """Attention of an unmasked node, ``[batch, heads, queries, keys]``."""
    query, key = (seen[n.name].double() for n in node.args[:2])  # type: ignore[union-attr]
    return torch.softmax(query @ key.transpose(-1, -2) * node.kwargs["scale"], -1).numpy()


def attention_like(program: Program) -> list[torch.fx.Node]:
    return [n for n in program.graph.nodes if is_dialect(n, "attention", "attention_importance")]


def test_received_attention_keeps_the_largest_column_sums(captured: Captured, dropped: Drop) -> None:
    program = dropped(captured("vit"), "token-drop:method=received-attention,keep=0.5,layers=0")
    seen = values_of(program, program.example_inputs)
    sums = probabilities(seen, attention_like(program)[0]).sum(axis=(1, 2))
    kept = seen[nodes(program, "select_tokens")[0].name].numpy()
    for row in range(2):
        assert set(kept[row]) == {0, *(1 + np.argsort(-sums[row, 1:])[:8])}


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_cls_attention_keeps_the_largest_of_its_first_row(
    captured: Captured, dropped: Drop, heads: str
) -> None:
    program = dropped(captured("vit"), f"token-drop:method=cls-attention,keep=0.5,layers=0,heads={heads}")
    seen = values_of(program, program.example_inputs)
    rows = probabilities(seen, attention_like(program)[0])[:, :, 0]
    score = getattr(rows, heads)(axis=1)
    kept = seen[nodes(program, "select_tokens")[0].name].numpy()
    for row in range(2):
        assert set(kept[row]) == {0, *(1 + np.argsort(-score[row, 1:])[:8])}


def test_fusion_replaces_the_lowest_kept_token_by_the_weighted_mean(
    captured: Captured, dropped: Drop
) -> None:
    program = dropped(captured("vit"), "token-drop:method=cls-attention,keep=0.5,layers=0,fuse=true")
    seen = values_of(program, program.example_inputs)
    score = probabilities(seen, attention_like(program)[0])[:, :, 0].mean(axis=1)
    gather = nodes(program, "gather_tokens")[0]
    hidden, kept = (seen[n.name].double().numpy() for n in gather.args[:2])  # type: ignore[union-attr]
    (stream,) = (n for n in program.graph.nodes if n.target is torch.ops.aten.where.self)
    for row, index in enumerate(kept.astype(int)):
        carrier = min((i for i in index if i > 0), key=lambda i: score[row, i])
        group = [carrier, *(i for i in range(17) if i not in index)]
        weight = score[row, group] / score[row, group].sum()
        expected = hidden[row, index]
        expected[list(index).index(carrier)] = weight @ hidden[row, group]
        assert np.allclose(seen[stream.name][row], expected, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.0, 9.0), (0.0, 5e-6), (5e-6, 9.0)])
@pytest.mark.parametrize(("similar", "fallen", "gone"), [(0.5, 4, 4), (0.3, 5, 3), (0.7, 2, 6)])
def test_zero_tprune_ranks_by_numpy_pagerank_then_prunes_the_similar(
    captured: Captured, dropped: Drop, similar: float, fallen: int, gone: int, low: float, high: float
) -> None:
    """``fallen`` of 16 patches go in stage I and ``gone`` in stage S, halves of an odd and of an even number."""
    spec = f"token-drop:method=zero-tprune,keep=0.5,layers=0,similar={similar},early=30,low={low},high={high}"
    left_out = 0
    program = dropped(captured("vit"), spec)
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = values_of(program, {"pixel_values": pixels})
    graph = probabilities(seen, attention_like(program)[0])
    key = seen[attention_like(program)[0].args[1].name].double().numpy().mean(axis=1)  # type: ignore[union-attr]
    kept = seen[nodes(program, "select_tokens")[-1].name].numpy()
    for row in range(8):
        ranks = np.full((4, 17), 1 / 17)
        for _ in range(30):
            ranks = np.einsum("hq,hqk->hk", ranks, graph[row])
        ranks = ranks * 17
        spread = ((ranks - 1) ** 2).mean(axis=1)
        heads = (spread >= low) & (spread <= high)
        left_out += int((~heads).sum()) if heads.any() else 0
        heads = heads if heads.any() else np.ones(4, dtype=bool)
        importance = np.sqrt((ranks[heads] ** 2).mean(axis=0))
        first = [0, *sorted(1 + np.argsort(-importance[1:])[: 16 - fallen])]
        order = sorted(first, key=lambda i: -importance[i])
        half = (len(order) + 1) // 2
        upper, lower = order[:half], order[half:]
        unit = key[row] / np.linalg.norm(key[row], axis=1, keepdims=True)
        similarity = {i: max(float(unit[i] @ unit[j]) for j in upper) for i in lower if i != 0}
        alike = sorted(similarity, key=lambda i: -similarity[i])[:gone]
        assert set(kept[row]) == set(first) - set(alike)
    assert (left_out > 0) == ((low, high) != (0.0, 9.0))


@pytest.mark.parametrize(("layers", "iterations"), [(7, [7, 7, 7, 5, 2, 2, 2]), (4, [7, 7, 7, 2])])
def test_zero_tprune_iterates_by_whether_a_layer_is_of_the_first_or_the_last_three(
    dropped: Drop, layers: int, iterations: list[int]
) -> None:
    spec = f"token-drop:method=zero-tprune,keep=0.9,layers=0-{layers - 1},early=7,middle=5,late=2"
    program = dropped(build(Config(layers=layers, positions=False, tokens=24)), spec)
    assert [node.kwargs["iterations"] for node in nodes(program, "attention_importance")] == iterations


def test_permuting_the_patches_permutes_what_zero_tprune_and_tome_see() -> None:
    """Without positions a transformer does not know the order, and neither does a score."""
    config = Config(layers=2, heads=2, head_dim=4, positions=False, tokens=9, seed=3)
    drop = parse_spec("token-drop:method=zero-tprune,keep=0.5,layers=0,prefix=0")
    sites = drop.legality(build(config))
    assert isinstance(sites, list)
    program = drop.rewrite(build(config), sites)
    x, order = torch.randn(2, 9, config.width), torch.randperm(9)
    kept = values_of(program, {"features": x})[nodes(program, "select_tokens")[-1].name]
    permuted = values_of(program, {"features": x[:, order]})[nodes(program, "select_tokens")[-1].name]
    for row in range(2):
        assert set(order[permuted[row]].tolist()) == set(kept[row].tolist())


def allotted(program: Program, seen: dict[str, Any], partitions: int, content: int) -> np.ndarray:
    kept = seen[nodes(program, "select_tokens")[0].name].numpy()
    tiles = np.arange(content) * partitions // content
    return np.stack([np.bincount(tiles[row[row > 0] - 1], minlength=partitions) for row in kept])


@given(seed=st.integers(0, 1000), partitions=st.integers(1, 5), keep=st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=25, deadline=None)
def test_hired_budgets_follow_the_masses_and_respect_the_sizes(
    seed: int, partitions: int, keep: float
) -> None:
    config = Config(layers=2, heads=2, head_dim=4, positions=False, tokens=9, dynamic=True)
    drop = parse_spec(f"token-drop:method=hired,keep={keep},layers=0,prefix=1,partitions={partitions}")
    sites = drop.legality(build(config))
    assert isinstance(sites, list)
    program = drop.rewrite(build(config), sites)
    content = 16
    x = 2 * torch.randn(2, 1 + content, config.width, generator=torch.Generator().manual_seed(seed))
    seen = values_of(program, {"features": x})
    budgets = allotted(program, seen, partitions, content)
    total = int(np.ceil(content * keep - 1e-9))
    sizes = np.bincount(np.arange(content) * partitions // content, minlength=partitions)
    score = probabilities(seen, attention_like(program)[0])[:, :, 0, 1:].mean(axis=1)
    tiles = np.arange(content) * partitions // content
    kept = seen[nodes(program, "select_tokens")[0].name].numpy()
    for row in range(2):
        assert budgets[row].sum() == total
        assert (budgets[row] <= sizes).all()
        masses = np.array([score[row, tiles == t].sum() for t in range(partitions)])
        expected = np.zeros(partitions, dtype=int)
        for _ in range(total):  # highest averages, one seat at a time
            quotient = np.where(expected < sizes, masses / (expected + 0.5), -1)
            expected[int(quotient.argmax())] += 1
        assert budgets[row].tolist() == expected.tolist()
        for tile in range(partitions):
            best = np.flatnonzero(tiles == tile)
            best = best[np.argsort(-score[row, best], kind="stable")][: budgets[row, tile]]
            assert set(best + 1) <= set(kept[row])


def test_a_tile_with_all_the_mass_gets_everything_up_to_its_size() -> None:
    config = Config(layers=2, heads=1, kv_heads=1, head_dim=2, positions=False)
    drop = parse_spec("token-drop:method=hired,keep=0.5,layers=0,prefix=1,partitions=4")
    sites = drop.legality(build(config))
    assert isinstance(sites, list)
    program = drop.rewrite(build(config), sites)
    # The class token attends to what is equal to it: itself and the second tile.
    for name, weight in program.weights.items():
        if "norm1" in name:
            program.weights[name] = torch.full_like(weight, float("weight" in name))
        elif "query" in name or "key" in name:
            program.weights[name] = 40 * torch.eye(2) if weight.dim() == 2 else torch.zeros(2)
    like, unlike = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    x = torch.stack([like, *[unlike] * 4, *[like] * 4, *[unlike] * 8])[None]
    budgets = allotted(program, values_of(program, {"features": x}), partitions=4, content=16)[0]
    assert budgets.sum() == 8
    assert budgets[1] == 4


@pytest.mark.parametrize("tokens", [6, 9, 16])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.75])
def test_pooling_averages_equal_runs_of_each_rows_real_tokens(tokens: int, keep: float) -> None:
    config = Config(layers=2, heads=2, head_dim=4, padding=True, tokens=tokens)
    drop = parse_spec(f"token-drop:method=pool,groups=equal,keep={keep},layers=0,prefix=1,last=1")
    sites = drop.legality(build(config))
    assert isinstance(sites, list)
    program = drop.rewrite(build(config), sites)
    mask = torch.ones(3, tokens, dtype=torch.int64)
    mask[1, tokens - 2 :] = 0
    mask[2, 1:3] = 0  # a hole
    inputs = {"features": torch.randn(3, tokens, config.width), "attention_mask": mask}
    seen = values_of(program, inputs)
    select, gather = nodes(program, "select_tokens")[0], nodes(program, "gather_tokens")
    hidden = next(seen[g.args[0].name] for g in gather if seen[g.args[0].name].dim() == 3)  # type: ignore[union-attr]
    pooled = next(
        n for n in program.graph.nodes if n.target is torch.ops.aten.where.self and seen[n.name].dim() == 3
    )
    for row in range(3):
        positions = np.flatnonzero(mask[row].numpy())
        content = len(positions) - 2
        share = int(np.ceil(content * keep - 1e-9))
        runs = [0, *(1 + np.arange(content) * share // content), share + 1]
        expected = [hidden[row, positions[np.array(runs) == r]].mean(0) for r in range(share + 2)]
        columns = mask[row].bool()[seen[select.name][row]]
        assert torch.allclose(seen[pooled.name][row, columns], torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("tokens", [6, 9, 16])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.75])
def test_pooling_ends_runs_between_the_neighbours_that_differ_most(tokens: int, keep: float) -> None:
    config = Config(layers=2, heads=2, head_dim=4, padding=True, tokens=tokens)
    drop = parse_spec(f"token-drop:method=pool,keep={keep},layers=0,prefix=1,last=1")
    sites = drop.legality(build(config))
    assert isinstance(sites, list)
    program = drop.rewrite(build(config), sites)
    mask = torch.ones(3, tokens, dtype=torch.int64)
    mask[1, tokens - 2 :] = 0
    mask[2, :2] = 0
    inputs = {"features": torch.randn(3, tokens, config.width), "attention_mask": mask}
    seen = values_of(program, inputs)
    key = seen[attention_like(program)[0].args[1].name].double().numpy().mean(axis=1)  # type: ignore[union-attr]
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    select, gather = nodes(program, "select_tokens")[0], nodes(program, "gather_tokens")
    hidden = next(seen[g.args[0].name] for g in gather if seen[g.args[0].name].dim() == 3)  # type: ignore[union-attr]
    pooled = next(
        n for n in program.graph.nodes if n.target is torch.ops.aten.where.self and seen[n.name].dim() == 3
    )
    for row in range(3):
        positions = np.flatnonzero(mask[row].numpy())
        content = positions[1:-1]
        apart = [2.0, *(1 - (key[row, content[1:]] * key[row, content[:-1]]).sum(axis=-1))]
        share = int(np.ceil(len(content) * keep - 1e-9))
        starts = [positions[0], *sorted(content[np.argsort(apart)[::-1][:share]]), positions[-1]]
        runs = np.searchsorted(starts, positions, side="right")
        expected = [hidden[row, positions[runs == r]].mean(0) for r in range(1, share + 3)]
        columns = mask[row].bool()[seen[select.name][row]]
        assert seen[select.name][row][columns].tolist() == starts
        assert torch.allclose(seen[pooled.name][row, columns], torch.stack(expected), atol=1e-5)


def test_pooling_squares_of_a_grid_averages_neighbours_in_both_directions(
    captured: Captured, dropped: Drop
) -> None:
    program = dropped(captured("vit"), "token-drop:method=pool,keep=0.25,layers=0,groups=squares")
    seen = values_of(program, program.example_inputs)
    gather = nodes(program, "gather_tokens")[0]
    hidden = seen[gather.args[0].name]  # type: ignore[union-attr]
    pooled = next(n for n in program.graph.nodes if n.target is torch.ops.aten.where.self)
    squares = hidden[:, 1:].reshape(2, 2, 2, 2, 2, 32).mean(dim=(2, 4)).reshape(2, 4, 32)
    assert torch.allclose(seen[pooled.name], torch.cat([hidden[:, :1], squares], 1), atol=1e-5)


def test_merged_tokens_come_back_as_what_they_were_merged_into(captured: Captured, dropped: Drop) -> None:
    program = dropped(captured("vit"), "token-drop:method=tome,keep=0.5,layers=1")
    seen = values_of(program, program.example_inputs)
    kept, source, target, _ = seen[nodes(program, "match_tokens")[0].name]
    hidden = program.run(program.example_inputs)[0]
    for row in range(2):
        for gone, column in zip(source[row], target[row], strict=True):
            assert torch.equal(hidden[row, gone], hidden[row, kept[row, column]])


def test_proportional_attention_adds_the_log_of_the_size_once_at_every_site(
    captured: Captured, dropped: Drop
) -> None:
    program = dropped(captured("bert"), "token-drop:method=tome,keep=0.6,layers=0-1")
    seen = values_of(program, program.example_inputs)
    sizes = [seen[n.name][1] for n in nodes(program, "merge_tokens")]
    for node, size in zip(attention_like(program)[1:], sizes, strict=True):
        assert torch.allclose(seen[node.args[3].name][:, 0, 0], size.clamp(min=1).log())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zero-tprune,similar=2", "outside 0 to 1"),
        ("zero-tprune,early=0", "at least 1"),
        ("hired,partitions=0", "too small"),
        ("random,keep=0", "keep"),
        ("random,layers=2+1", "ascending"),
        ("random,keep=0.5+0.6,layers=1", "2 values for 1 layers"),
        ("random,restore=both", "scatter"),
        ("random,flops=0.5,keep=0.6", "flops= and keep= say the same thing"),
        ("random,flops=0.5,keep=0.7", "flops= and keep= say the same thing"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        parse_spec(f"token-drop:method={spec}")
    assert "\n" not in str(caught.value)
