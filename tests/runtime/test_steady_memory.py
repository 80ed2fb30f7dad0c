"""Steps of steady decoding take no memory for keys and values: measured, by the peak of the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from architectures import LLAMA, huggingface
from decoders import PAGED, PROMPTS
from guesses import draft_of

from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.passes.pipeline import run
from tersor.runtime import kv_cache
from tersor.runtime.decoder import Decoder
from tersor.runtime.kv_cache import KvCache
from tersor.runtime.tree import TokenTree, side_by_side

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

# Of the smallest buffer. Scores, and what each token of a tree sees, are kept several times over, how many by the
# machine.
_A_COPY = 0.75
# Slots of a row, and how many of them are filled.
_CAPACITY, _FILLED = 30_000, 28_000


def growth_of_peak(step: Callable[[], object]) -> int:
    """By how many bytes twenty steps raise the most memory that the process has held.

    What the process has freed and still holds would hide a copy: it is given back to the system first.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    for _ in range(20):
        step()
    return _peak() - before


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@cache
def wide(target: str, spec: str) -> Decoder:
    """Two heads of queries share one of keys that is so wide that scores are small beside what is kept."""
    sizes = dict(LLAMA, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=128)
    program, _ = run(capture(huggingface("LlamaConfig", "LlamaForCausalLM", **sizes)()), [spec, "speculate"])
    return Decoder(program, find_target(target).lower)


def filled(decoder: Decoder, rows: int) -> KvCache:
    """Rows whose slots all but a few thousand are filled, as if they had been read."""
    cache = decoder.new_cache(rows)
    for row in range(rows):
        decoder.prefill(cache, row, PROMPTS[1])
    for _ in range(_FILLED // cache.longest_step):
        cache.reserve(cache.longest_step)
        cache.advance([cache.longest_step] * rows)
    return cache


def one(decoder: Decoder, cache: KvCache) -> None:
    decoder.step(cache, [[5]] * cache.rows)


def a_tree(decoder: Decoder, cache: KvCache) -> None:
    cache.reserve(4)
    tree = TokenTree.of(5, [draft_of([6, 7]), draft_of([6, 9])])
    decoder.try_step(cache, *side_by_side([tree] * cache.rows))


@pytest.mark.parametrize("step", [one, a_tree])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_no_step_copies_what_the_cache_holds(
    target: str,
    rows: int,
    step: Callable[[Decoder, KvCache], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = wide(target, "kv-cache")
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", _CAPACITY)
    cache = filled(decoder, rows)
    smallest = min(buffer.nbytes for buffer in cache.buffers.values())
    assert smallest > 10 << 20
    # The first step is measured too: a copy in it would be room in the runtime's arena for the copies of the next ones.
    assert growth_of_peak(lambda: step(decoder, cache)) < _A_COPY * smallest


@pytest.mark.parametrize("rows", [1, 2])
def test_pages_are_gathered_in_memory_that_the_next_step_has_again(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps over pages read copies of those of a row, layer by layer; no later step takes more for it."""
    decoder = wide("onnx", PAGED)
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", _CAPACITY)
    cache = filled(decoder, rows)
    held = {name: buffer.data_ptr() for name, buffer in cache.buffers.items()}
    smallest = min(buffer.nbytes for buffer in cache.buffers.values())
    copies = growth_of_peak(lambda: one(decoder, cache))
    # All that a layer makes of its keys and values on the way, and what the arena keeps of it.
    assert copies < 16 * smallest
    assert growth_of_peak(lambda: one(decoder, cache)) < _A_COPY * smallest
    assert {name: buffer.data_ptr() for name, buffer in cache.buffers.items()} == held


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_a_copy_would_be_noticed(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = wide(target, "kv-cache")
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", _CAPACITY)
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, PROMPTS[1])
    smallest = min((buffer for buffer in cache.buffers.values()), key=lambda buffer: buffer.nbytes)

    def copying_step() -> None:
        copy = bytearray(b"1") * smallest.nbytes
        decoder.step(cache, [[5]])
        del copy

    assert growth_of_peak(copying_step) > _A_COPY * smallest.nbytes
