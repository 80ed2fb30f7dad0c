"""Rows that share pages: what they say, what they take and what they give back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from decoders import DECODERS, PAGED, PROMPTS, decoder_on, decoder_program, rows
from guesses import CHEAP, Eager, draft_of, guessing

from tersor.passes.pipeline import run
from tersor.passes.speculate.drafter import Drafter
from tersor.passes.speculate.easyspec import EasySpec
from tersor.passes.speculate.ngram import NGram
from tersor.passes.speculate.second_model import SecondModel
from tersor.passes.speculate.self_draft import SelfDraft
from tersor.passes.speculate.triforce import TriForce
from tersor.runtime import generation, kv_cache
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.kv_cache import KvCache
from tersor.runtime.page_pool import PagePool
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics
from tersor.runtime.tree import TokenTree, side_by_side

_PAGE = 4


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that pools grow in tests too.
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", 2 * _PAGE)


def pools(cache: KvCache) -> list[PagePool]:
    found = [store for store in cache._stores.values() if isinstance(store, PagePool)]
    assert found
    return found


def taken(cache: KvCache) -> list[int]:
    """Pages that are rows', of every pool."""
    return [pool.pages - pool.free for pool in pools(cache)]


def memory(cache: KvCache) -> dict[str, tuple[int, int]]:
    return {name: (buffer.data_ptr(), buffer.nbytes) for name, buffer in cache.buffers.items()}


def next_logits(name: str, texts: list[list[int]]) -> torch.Tensor:
    """What the model without a cache says behind each text: ``[rows, vocabulary]``."""
    given = rows([len(text) for text in texts])
    for row, text in enumerate(texts):
        given["input_ids"][row, : len(text)] = torch.tensor(text)
    logits = decoder_program(name).run(given)[0]
    return torch.stack([logits[row, len(text) - 1] for row, text in enumerate(texts)])


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_step_of_ragged_rows_says_what_whole_rows_say(name: str, target: str) -> None:
    decoder = decoder_on(name, target, PAGED)
    cache, texts = decoder.new_cache(3), [list(prompt) for prompt in PROMPTS]
    first = [decoder.prefill(cache, row, text) for row, text in enumerate(texts)]
    torch.testing.assert_close(torch.stack(first), next_logits(name, texts), rtol=0, atol=1e-4)
    for turn in range(2 * _PAGE + 1):
        new = [[3 + turn], [20 + turn], [40 - turn]]
        logits = decoder.step(cache, new)
        texts = [text + tokens for text, tokens in zip(texts, new, strict=True)]
        torch.testing.assert_close(logits[:, 0], next_logits(name, texts), rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_those_of_rows_with_slots_of_their_own(name: str, target: str) -> None:
    prompts = [*PROMPTS, [9, 8], [4], PROMPTS[1]]
    own = decoder_on(name, target, "kv-cache:layout=contiguous")
    shared = decoder_on(name, target, PAGED)
    plain = generate(own, prompts, Stopping(9), Sampling())
    ends = {plain[0][0], plain[1][3]}
    for stopping in (Stopping(9), Stopping(9, ends)):
        expected = generate(own, prompts, stopping, Sampling())
        for batch in (1, 2, None):
            assert generate(shared, prompts, stopping, Sampling(), batch=batch) == expected


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("name", ["gemma3", "llama", "gpt2"])
def test_a_path_of_a_tree_is_kept_across_the_end_of_a_page(name: str, target: str) -> None:
    decoder = decoder_on(name, target, PAGED)
    chains = [[3, 4, 5, 6], [3, 9, 10], [11, 12]]
    trees = [TokenTree.of(8, map(draft_of, chains)), TokenTree.of(8, map(draft_of, chains[1:]))]
    texts = [[5, 6, 7, 5, 6, 7], [9]]
    cache = decoder.new_cache(2)
    for row, text in enumerate(texts):
        decoder.prefill(cache, row, text)
    tokens, branching = side_by_side(trees)
    cache.reserve(len(tokens[0]))
    logits = decoder.try_step(cache, tokens, branching)
    paths = [[0, 1, 5, 6], [0, 4, 5]]  # slots 6, 7, 11, 12 become 6 to 9, and 1, 5, 6 become 1 to 3
    for row, (tree, path) in enumerate(zip(trees, paths, strict=True)):
        cache.commit(row, len(tokens[0]), path)
        texts[row] = texts[row] + [tree.tokens[node] for node in path]
    behind = torch.stack([logits[row, path[-1]] for row, path in enumerate(paths)])
    torch.testing.assert_close(behind, next_logits(name, texts), rtol=0, atol=1e-4)
    for token in range(20, 26):
        logits = decoder.step(cache, [[token], [token + 1]])
        texts = [texts[0] + [token], texts[1] + [token + 1]]
        torch.testing.assert_close(logits[:, 0], next_logits(name, texts), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "drafter",
    [
        NGram(),
        SelfDraft(exits=(1,)),
        SecondModel(),
        EasySpec(),
        TriForce(budget=4, chunk=2, refresh=3),
        TriForce(budget=4, chunk=2, refresh=3, under=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_guesses_change_no_token(name: str, drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "cost_curve", CHEAP)
    monkeypatch.setattr(generation, "Policy", Eager)
    decoder = decoder_on(name, "torch", PAGED)
    plain = generate(decoder, PROMPTS, Stopping(24), Sampling())
    for batch in (1, 3):
        # What a drafter has learned of the time it takes is forgotten: here it would be that of a busy machine.
        given, counts = guessing(decoder, replace(drafter)), Statistics()
        found = generate(
            decoder, PROMPTS, Stopping(24), Sampling(), None, statistics=counts, batch=batch, **given
        )
        assert found == plain
        assert counts.guesses


def test_rows_take_the_pages_of_their_tokens_and_give_them_back() -> None:
    decoder = decoder_on("llama", "torch", PAGED)
    cache = decoder.new_cache(3)
    for row, count in enumerate((5, 4, 9)):
        decoder.prefill(cache, row, [7] * count)
    assert taken(cache) == [2 + 1 + 3]
    cache.rollback(2, 4)
    assert taken(cache) == [2 + 1 + 2]
    decoder.step(cache, [[8], [9], [10]])
    assert taken(cache) == [2 + 2 + 2]
    cache.hold(0, 2, {name: state[:, :2] for name, state in cache.states(0).items()})
    assert taken(cache) == [1 + 2 + 2]
    cache.remove(0)
    assert taken(cache) == [2 + 2]
    cache.remove(1)
    cache.remove(0)
    assert taken(cache) == [0]


def test_a_window_gives_back_the_pages_behind_it() -> None:
    decoder = decoder_on("mistral", "torch", PAGED)
    (slots,) = decoder.stepping.slots
    cache = KvCache(decoder.stepping, decoder.program.inputs, 2, longest_step=6, longest_rollback=4)
    most = -(-(slots.window - 1 + 4 + _PAGE + 1) // _PAGE)
    for _ in range(50):
        decoder.step(cache, [[5], [6]])
        assert taken(cache)[0] <= 2 * most
    assert cache.lengths == [50, 50]


def test_a_pool_that_doubles_keeps_its_pages() -> None:
    decoder = decoder_on("llama", "torch", PAGED)
    cache = decoder.new_cache(2)
    (pool,) = pools(cache)
    texts: list[list[int]] = [[], []]
    sizes, before = [pool.pages], {name: buffer.clone() for name, buffer in cache.buffers.items()}
    for token in range(3, 30):
        held = {name: buffer.clone() for name, buffer in cache.buffers.items()}
        table = cache.inputs()["page_table"]
        cache.reserve(1)
        grown = cache.inputs()["page_table"]
        for row, text in enumerate(texts):
            blocks = -(-len(text) // _PAGE)
            assert torch.equal(table[row, :blocks], grown[row, :blocks])
        for name, buffer in cache.buffers.items():
            assert torch.equal(buffer[: len(held[name])], held[name])
        if pool.pages != sizes[-1]:
            sizes.append(pool.pages)
        decoder.step(cache, [[token], [token + 1]])
        texts = [texts[0] + [token], texts[1] + [token + 1]]
    assert sizes == [2, 4, 8, 16]
    assert all(not buffer.any() for buffer in before.values())
    again = decoder.new_cache(1)
    decoder.prefill(again, 0, texts[1])
    for name, state in cache.states(1).items():
        torch.testing.assert_close(state, again.states(0)[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_steady_decoding_allocates_nothing(target: str) -> None:
    """Texts that end and others that begin, for longer than the pool is: it stays where and as large as it is."""
    decoder = decoder_on("gemma3", target, PAGED)
    cache = decoder.new_cache(2)
    at = None
    for turn in range(24):
        while cache.rows and (cache.lengths[0] > 12 or turn % 3 == 2):
            cache.remove(0)
        while cache.rows < 2:
            decoder.prefill(cache, cache.add(), [5 + turn] * (1 + turn % 7))
        for _ in range(4):
            decoder.step(cache, [[9], [10]])
        if turn == 11:
            at = memory(cache)
    assert memory(cache) == at


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_in_onnx_runtime_does_not_copy_the_pool(
    count: int, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fastest(run: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return min(times)

    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", 1_000_000)
    decoder = decoder_on("llama", "onnx", PAGED)
    cache = decoder.new_cache(count)
    for row in range(count):
        decoder.prefill(cache, row, PROMPTS[1])
    cache.reserve(new)
    copying = fastest(lambda: [buffer.clone() for buffer in cache.buffers.values()])
    assert fastest(lambda: decoder.try_step(cache, [[5] * new] * count)) < copying / 2


def test_appending_a_thousand_tokens_to_a_window_takes_no_memory() -> None:
    decoder = decoder_on("mistral", "torch", PAGED)
    cache = KvCache(decoder.stepping, decoder.program.inputs, 1, longest_step=6, longest_rollback=4)
    for count in (100, 1000):
        while cache.lengths[0] < count:
            cache.reserve(1)
            cache.advance([1])
        if count == 100:
            before = memory(cache)
    assert memory(cache) == before


def test_memory_is_that_of_the_tokens_and_not_of_the_longest_row() -> None:
    lengths = [500, 3, 3, 3, 3, 3, 3, 3]
    used = {}
    for layout in ("kv-cache:layout=contiguous", PAGED):
        program, _ = run(decoder_program("llama"), [layout])
        assert program.stepping is not None
        cache = KvCache(program.stepping, program.inputs, len(lengths), longest_step=max(lengths))
        for row, count in enumerate(lengths):
            cache.reserve(count, row)
            cache.advance([count], row)
        used[layout] = cache.nbytes
        bytes_of_a_token = sum(
            4 * int(spec.shape[1]) * int(spec.shape[3])
            for spec in program.inputs
            if spec.name in cache.buffers
        )
    pages = sum(-(-count // _PAGE) for count in lengths)
    # The pool has doubled last when there was no page left.
    assert used[PAGED] <= 2 * pages * _PAGE * bytes_of_a_token
    assert used["kv-cache:layout=contiguous"] >= len(lengths) * max(lengths) * bytes_of_a_token
