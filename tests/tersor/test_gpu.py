"""Models that are on a GPU: what they become is what the same models on the CPU do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import DECODERS, decoder
from kernel_places import PLACES

import tersor

pytestmark = pytest.mark.skipif("gpu" not in PLACES, reason="there is no GPU here")
DROP = "token-drop:method=zero-tprune,early=3,keep=0.6,layers=0"


def texts(*lengths: int) -> dict[str, torch.Tensor]:
    longest = max(lengths)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(3, 100, (len(lengths), longest)), "attention_mask": mask}


def on_the_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.mark.parametrize("passes", [[], [DROP]], ids=["plain", "dropped"])
def test_torch_runs_it_where_it_is(tiny_bert: Any, passes: list[str], tmp_path: Path) -> None:
    reference = tersor.optimize_model(copy.deepcopy(tiny_bert), passes)
    fast = tersor.optimize_model(tiny_bert.cuda(), passes)
    fast.save(tmp_path / "out")
    for inputs in (texts(7), texts(13, 4, 9)):
        want = reference(**inputs)
        for model in (fast, tersor.load(tmp_path / "out")):
            got = model(**on_the_gpu(inputs))
            assert got[0].device.type == "cuda"
            torch.testing.assert_close(got[0].cpu(), want[0], atol=1e-4, rtol=1e-4)
    tersor.load(tmp_path / "out").verify()


@pytest.mark.parametrize("passes", [[], [DROP]], ids=["plain", "dropped"])
@pytest.mark.parametrize("target", ["onnx", "triton"])
def test_other_targets_take_it_from_there(tiny_bert: Any, passes: list[str], target: str) -> None:
    reference = tersor.optimize_model(copy.deepcopy(tiny_bert), passes)
    fast = tersor.optimize_model(tiny_bert.cuda(), passes, target)
    for inputs in (texts(7), texts(13, 4, 9)):
        want = reference(**inputs)
        torch.testing.assert_close(fast(**inputs)[0], want[0], atol=1e-4, rtol=1e-4)
        got = fast(**on_the_gpu(inputs))
        torch.testing.assert_close(got[0].cpu(), want[0], atol=1e-4, rtol=1e-4)


def test_capturing_leaves_it_where_it_is(tiny_bert: Any) -> None:
    tiny_bert.register_buffer("extra", torch.ones(3))
    model = tiny_bert.cuda()
    model.table = torch.ones(3, device="cuda")
    tensors = [*model.parameters(), *model.buffers(), model.table]
    before = [(tensor.data_ptr(), tensor.device) for tensor in tensors]
    program = tersor.capture(model, on_the_gpu(texts(7, 5)))
    assert [(tensor.data_ptr(), tensor.device) for tensor in tensors] == before
    held = [*program.weights.values(), *program.example_inputs.values()]
    assert {tensor.device.type for tensor in held} == {"cpu"}


def test_what_is_tied_stays_tied() -> None:
    model: Any = copy.deepcopy(decoder("gemma3")).cuda()
    on_the_cpu = tersor.capture(copy.deepcopy(decoder("gemma3")))
    weights = tersor.capture(model).weights.values()
    assert len({w.data_ptr() for w in weights}) == len({w.data_ptr() for w in on_the_cpu.weights.values()})


def test_an_archive_of_a_gpu_is_read(tiny_vit: Any, tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = tiny_vit(pixels)[0]
        exported = torch.export.export(tiny_vit.cuda(), (pixels.cuda(),), strict=False)
    torch.export.save(exported, tmp_path / "vit.pt2")
    fast = tersor.optimize_model(str(tmp_path / "vit.pt2"), target="onnx")
    torch.testing.assert_close(fast(pixels)[0], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["torch", "triton", "onnx"])
def test_promises_are_checked_and_speed_is_measured_there(tiny_bert: Any, target: str) -> None:
    batches = [on_the_gpu(texts(64, 40)), on_the_gpu(texts(33))]
    passes = ["token-drop:method=norm,keep=0.6,layers=0"]
    fast = tersor.optimize_model(tiny_bert.cuda(), passes, target, calibration=batches)
    assert fast.report.steps[-1].latency_ratio is not None
    assert fast(**batches[0])[0].is_cuda


@pytest.mark.parametrize("target", ["torch", "triton"])
@pytest.mark.parametrize("name", DECODERS)
def test_it_generates_the_same_tokens(name: str, target: str) -> None:
    model = copy.deepcopy(decoder(name))
    prompts = [[5], list(range(3, 20))]
    passes = ["kv-cache", "speculate"]
    want = tersor.optimize_model(model, passes).generate(prompts, max_new_tokens=12)
    fast = tersor.optimize_model(model.cuda(), passes, target)
    assert fast.generate(prompts, max_new_tokens=12) == want
