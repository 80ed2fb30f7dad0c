"""Steps of steady decoding take no memory for keys and values: measured, by the peak of the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from decoders import PAGED, PROMPTS, decoder_on

from tersor.runtime import kv_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

# Of the smallest buffer. The scores of one query are an eighth of it where heads have eight numbers, and PyTorch makes
# several of them, how many by the machine.
_A_COPY = 0.75


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


@pytest.mark.parametrize(
    ("name", "target", "spec"),
    [
        ("llama", "onnx", "kv-cache"),
        ("llama", "onnx", PAGED),
        # Heads of keys that queries share are repeated by PyTorch, and pages are gathered.
        ("gpt2", "torch", "kv-cache"),
    ],
)
def test_no_step_copies_what_the_cache_holds(
    name: str, target: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_on(name, target, spec)
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", 200_000)
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, PROMPTS[1])
    smallest = min(buffer.nbytes for buffer in cache.buffers.values())
    assert smallest > 10 << 20
    # The first step is measured too: a copy in it would be room in the runtime's arena for the copies of the next ones.
    assert growth_of_peak(lambda: decoder.step(cache, [[5]])) < _A_COPY * smallest


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_a_copy_would_be_noticed(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_on("llama", target)
    monkeypatch.setattr(kv_cache, "_FIRST_CAPACITY", 200_000)
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, PROMPTS[1])
    smallest = min((buffer for buffer in cache.buffers.values()), key=lambda buffer: buffer.nbytes)

    def copying_step() -> None:
        copy = bytearray(b"1") * smallest.nbytes
        decoder.step(cache, [[5]])
        del copy

    assert growth_of_peak(copying_step) > _A_COPY * smallest.nbytes
