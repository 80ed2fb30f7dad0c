"""The cache's bookkeeping: whatever was appended, taken back and moved, it is that of the tokens that are left."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCABULARY
from decoders import PAGED, decoder_on
from guesses import draft_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.passes.cache.layout import CacheLayout
from tersor.passes.registry import find_methods
from tersor.runtime import kv_cache
from tersor.runtime.decoder import Decoder
from tersor.runtime.kv_cache import KvCache
from tersor.runtime.tree import TokenTree, side_by_side

_STEP, _ROLLBACK = 6, 4
# Every layout that is found; pages that are smaller than windows.
SMALL = {"paged": PAGED}
LAYOUTS = [SMALL.get(name, f"kv-cache:layout={name}") for name in find_methods(CacheLayout)]


def small_cache(decoder: Decoder, rows: int) -> KvCache:
    """One whose windows move often."""
    return KvCache(
        decoder.stepping, decoder.program.inputs, rows, longest_step=_STEP, longest_rollback=_ROLLBACK
    )


def rebuilt(decoder: Decoder, tokens: list[int]) -> KvCache:
    cache = small_cache(decoder, 1)
    if tokens:
        decoder.prefill(cache, 0, tokens)
    return cache


def assert_same_sight(decoder: Decoder, cache: KvCache, row: int, tokens: list[int]) -> None:
    """What the next token sees is what it sees behind a prompt of ``tokens``."""
    other = rebuilt(decoder, tokens)
    assert cache.lengths[row] == len(tokens)
    mine, theirs = cache.states(row), other.states(0)
    for slots in decoder.stepping.slots:
        reach = min(len(tokens), slots.window - 1) if slots.window else len(tokens)
        filled = int(cache.inputs(row)[slots.length])
        expected = int(other.inputs(0)[slots.length])
        assert filled >= reach
        for state in slots.states:
            assert (mine[state.name].shape[1], theirs[state.name].shape[1]) == (filled, expected)
            torch.testing.assert_close(
                mine[state.name][:, filled - reach :],
                theirs[state.name][:, expected - reach :],
                rtol=0,
                atol=1e-5,
            )


actions = st.one_of(
    st.tuples(st.just("step"), st.integers(1, _STEP), st.just(0)),
    st.tuples(st.just("try"), st.integers(1, _STEP), st.integers(0, 2**_STEP - 1)),
    st.tuples(st.just("tree"), st.integers(1, _STEP), st.integers(0, 2**_STEP - 1)),
    st.tuples(st.just("rollback"), st.integers(0, _ROLLBACK), st.integers(0, 1)),
)
Plan = list[tuple[str, int, int]]
histories = given(
    name=st.sampled_from(["gemma3", "mistral"]),
    layout=st.sampled_from(LAYOUTS),
    plan=st.lists(actions, max_size=12),
    seed=st.integers(0, 99),
)


def random_tree(count: int, generator: torch.Generator) -> TokenTree:
    """One of ``count`` nodes at most, whose chains begin alike now and then."""
    chains = [draft_of(torch.randint(3, 6, (count,), generator=generator).tolist()) for _ in range(3)]
    tree = TokenTree.of(7, chains)
    return tree.part(range(1, min(count, len(tree))))


def path_to(tree: TokenTree, node: int) -> list[int]:
    """The nodes that lead to one, itself included."""
    return [] if node < 0 else [*path_to(tree, tree.parents[node]), node]


def check_history(name: str, layout: str, plan: Plan, seed: int) -> None:
    decoder = decoder_on(name, "torch", layout)
    generator = torch.Generator().manual_seed(seed)
    cache = small_cache(decoder, 2)
    rows: list[list[int]] = [[], []]
    taken_back = [0, 0]
    for kind, count, choice in plan:
        new = torch.randint(0, VOCABULARY, (2, count), generator=generator).tolist()
        if kind == "step":
            decoder.step(cache, new)
            rows, taken_back = [r + n for r, n in zip(rows, new, strict=True)], [0, 0]
        elif kind == "try":
            # Accepted are some first tokens, as of a chain that was drafted.
            cache.reserve(count)
            decoder.try_step(cache, new)
            for row in range(2):
                kept = min(count, (choice >> row) % (count + 1))
                cache.commit(row, count, range(kept))
                rows[row] = rows[row] + new[row][:kept]
            taken_back = [0, 0]
        elif kind == "tree":
            trees = [random_tree(count, generator), random_tree(1 + choice % count, generator)]
            tokens, branching = side_by_side(trees)
            cache.reserve(len(tokens[0]))
            decoder.try_step(cache, tokens, branching)
            for row, tree in enumerate(trees):
                path = path_to(tree, (choice >> row) % len(tree))
                cache.commit(row, len(tokens[0]), path)
                rows[row] = rows[row] + [tree.tokens[node] for node in path]
            taken_back = [0, 0]
        elif count + taken_back[choice] <= min(_ROLLBACK, len(rows[choice])):
            cache.rollback(choice, count)
            rows[choice] = rows[choice][: len(rows[choice]) - count]
            taken_back[choice] += count
    for row in range(2):
        assert_same_sight(decoder, cache, row, rows[row])


@settings(max_examples=40, deadline=None)
@histories
def test_any_history_leaves_the_cache_of_the_tokens_that_are_left(
    name: str, layout: str, plan: Plan, seed: int
) -> None:
    check_history(name, layout, plan, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@histories
def test_any_of_a_thousand_histories_does(name: str, layout: str, plan: Plan, seed: int) -> None:
    check_history(name, layout, plan, seed)


def test_accepted_nodes_of_a_tree_move_next_to_what_was_filled() -> None:
    decoder = decoder_on("llama", "torch")
    cache = small_cache(decoder, 1)
    decoder.prefill(cache, 0, [5, 6, 7])
    cache.reserve(4)
    before = {name: buffer.clone() for name, buffer in cache.buffers.items()}
    decoder.try_step(cache, [[1, 2, 3, 4]])
    written = {name: buffer[0, :, 3:7].clone() for name, buffer in cache.buffers.items()}
    cache.commit(0, 4, [0, 2, 3])
    assert cache.lengths == [6]
    for name, buffer in cache.buffers.items():
        assert torch.equal(buffer[0, :, :3], before[name][0, :, :3])
        assert torch.equal(buffer[0, :, 3:6], written[name][:, [0, 2, 3]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_each_row_keeps_the_path_that_was_right_in_it(name: str, layout: str) -> None:
    decoder = decoder_on(name, "torch", layout)
    cache = small_cache(decoder, 3)
    rows, new = [[5, 6, 7], [8], [9, 10]], [[20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42, 43]]
    for row, tokens in enumerate(rows):
        decoder.prefill(cache, row, tokens)
    paths = [[0, 2, 3], [0, 1], [0, 3]]
    trees = [tree_of_path(tokens, path) for tokens, path in zip(new, paths, strict=True)]
    tokens, branching = side_by_side(trees)
    cache.reserve(len(tokens[0]))
    decoder.try_step(cache, tokens, branching)
    for row, path in enumerate(paths):
        cache.commit(row, len(tokens[0]), path)
    for row, path in enumerate(paths):
        assert_same_sight(decoder, cache, row, rows[row] + [new[row][node] for node in path])


def tree_of_path(tokens: list[int], path: list[int]) -> TokenTree:
    """Nodes in the order of ``tokens``, of which those of ``path`` follow each other and others the first."""
    tree = TokenTree(tokens[:1])
    last = 0
    for node, token in enumerate(tokens[1:], 1):
        parent = last if node in path else 0
        assert tree._child(parent, token, False) == node
        last = node if node in path else last
    return tree


def test_a_window_has_as_many_slots_after_a_thousand_tokens_as_after_one() -> None:
    decoder = decoder_on("mistral", "torch")
    cache = small_cache(decoder, 1)
    before = {name: (buffer.shape, buffer.data_ptr()) for name, buffer in cache.buffers.items()}
    for _ in range(1000):
        cache.reserve(1)
        cache.advance([1])
    assert {name: (buffer.shape, buffer.data_ptr()) for name, buffer in cache.buffers.items()} == before
    assert cache.lengths == [1000]


def test_a_buffer_that_grows_keeps_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", 4)
    decoder = decoder_on("llama", "torch")
    cache = small_cache(decoder, 2)
    rows = [[5, 6, 7], [8]]
    for row, tokens in enumerate(rows):
        decoder.prefill(cache, row, tokens)
    for token in range(10, 30):
        decoder.step(cache, [[token], [token + 1]])
        rows = [rows[0] + [token], rows[1] + [token + 1]]
    assert all(buffer.shape[2] >= 23 for buffer in cache.buffers.values())
    for row in range(2):
        assert_same_sight(decoder, cache, row, rows[row])


def test_a_window_keeps_what_may_be_looked_at_after_taking_back_as_much_as_is_allowed() -> None:
    decoder = decoder_on("mistral", "torch")
    cache = small_cache(decoder, 1)
    tokens = list(range(3, 60))
    for token in tokens:
        decoder.step(cache, [[token]])
        if len(decoder.stepping.slots) and cache.lengths[0] > 20:
            cache.rollback(0, _ROLLBACK)
            decoder.step(cache, [tokens[cache.lengths[0] : cache.lengths[0] + _ROLLBACK]])
    assert_same_sight(decoder, cache, 0, tokens[: cache.lengths[0]])


def test_what_a_window_has_lost_cannot_be_taken_back_to() -> None:
    decoder = decoder_on("mistral", "torch")
    cache = small_cache(decoder, 1)
    decoder.prefill(cache, 0, list(range(3, 33)))
    with pytest.raises(ValueError, match="a window of 5 is no longer all there"):
        cache.rollback(0, 20)
    with pytest.raises(ValueError, match="has 30 tokens, of which 31 cannot be taken back"):
        cache.rollback(0, 31)
    with pytest.raises(ValueError, match="longer than the 6"):
        cache.reserve(7)


def test_rows_that_end_and_rows_that_begin_leave_the_others_as_they_are() -> None:
    decoder = decoder_on("gemma3", "torch")
    cache = small_cache(decoder, 3)
    rows = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
    for row, tokens in enumerate(rows):
        decoder.prefill(cache, row, tokens)
    with pytest.raises(ValueError, match="room for 3 rows"):
        cache.add()
    cache.remove(0)
    rows = [rows[2], rows[1]]
    decoder.step(cache, [[20, 21], [22, 23]])
    rows = [rows[0] + [20, 21], rows[1] + [22, 23]]
    assert cache.add() == 2
    rows.append([30, 31])
    decoder.prefill(cache, 2, rows[2])
    cache.remove(2)
    cache.add()
    decoder.prefill(cache, 2, rows[2])
    decoder.step(cache, [[40], [41], [42]])
    for row, tokens in enumerate(rows):
        assert_same_sight(decoder, cache, row, [*tokens, 40 + row])
