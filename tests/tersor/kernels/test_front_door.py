"""A model optimised for ``triton`` is the one optimised for ``torch``, as it was made and as it was saved."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tersor
from tersor import InputError, OptimizedModel, Program, optimize_model
from tersor.passes.contract import Refusal
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.method import TokenMethod

METHODS = list(find_methods(TokenMethod))
SIZES: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


@cache
def captured(kind: str) -> Program:
    """``vit``: 17 tokens, norms before attention; ``bert``: any length, padding, norms after attention."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    if kind == "vit":
        return tersor.capture(ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES)).eval())
    return tersor.capture(BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **SIZES)).eval())


def texts(*lengths: int, left: bool = False) -> dict[str, Tensor]:
    """Rows of ids of these lengths, padded to the longest."""
    longest = max(lengths)
    random = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(0, 100, (len(lengths), longest), generator=random)
    place = torch.arange(longest).flip(0) if left else torch.arange(longest)
    mask = (place[None] < torch.tensor(lengths)[:, None]).to(torch.int64)
    return {"input_ids": ids, "attention_mask": mask}


def cases(kind: str) -> list[dict[str, Tensor]]:
    if kind == "vit":
        return [{"pixel_values": torch.randn(3, 3, 32, 32)}]
    return [texts(7), texts(13, 4, 9)]


def optimised(kind: str, method: str, target: str) -> OptimizedModel:
    return optimize_model(captured(kind), [f"token-drop:method={method},keep=0.6,layers=0"], target)


def assert_equal(got: Any, want: Any) -> None:
    assert type(got) is type(want)
    assert list(got) == list(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=2e-5, rtol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_every_method_gives_what_it_gives_on_torch(kind: str, method: str) -> None:
    assert not isinstance(parse_spec(f"token-drop:method={method}").legality(captured(kind)), Refusal)
    fast, reference = (optimised(kind, method, target) for target in ("triton", "torch"))
    executable: Any = fast.session.executable
    for inputs in cases(kind):
        assert_equal(fast(**inputs), reference(**inputs))
    assert executable.kernels.count("attention") + executable.kernels.count("attention_importance") == 2
    assert executable.fallbacks == ()


def test_scored_tokens_are_chosen_gathered_and_normed_by_the_kernel() -> None:
    fast: Any = optimised("vit", "received-attention", "triton").session.executable
    assert fast.kernels == ("attention_importance", "select_gather_norm", "attention")


def test_compact_outputs_keep_the_same_tokens() -> None:
    spec = "token-drop:method=zero-tprune,early=3,keep=0.6,layers=0,restore=compact"
    fast, reference = (optimize_model(captured("bert"), [spec], target) for target in ("triton", "torch"))
    for inputs in (*cases("bert"), texts(11, 5, left=True)):
        got, want = fast(**inputs), reference(**inputs)
        assert torch.equal(got.kept_index, want.kept_index)
        assert got[0].shape[1] < inputs["input_ids"].shape[1]
        torch.testing.assert_close(got[0], want[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "method"), [("vit", "cls-attention"), ("bert", "received-attention")])
def test_what_was_saved_is_loaded_and_verified(kind: str, method: str, tmp_path: Path) -> None:
    fast = optimised(kind, method, "triton")
    fast.save(tmp_path / "out")
    loaded = tersor.load(tmp_path / "out")
    executable: Any = loaded.session.executable
    assert (loaded.target, executable.kernels) == ("triton", fast.session.executable.kernels)  # type: ignore[attr-defined]
    for inputs in cases(kind):
        assert_equal(loaded(**inputs), fast(**inputs))
    loaded.verify()
    assert loaded.report.to_json() == fast.report.to_json()


def test_calibration_measures_the_deviation_that_torch_has() -> None:
    spec, batches = "token-drop:method=norm,keep=0.6,layers=0", [texts(9, 6), texts(5)]
    fast, reference = (
        optimize_model(captured("bert"), [spec], target, calibration=batches, require_speedup=False)
        for target in ("triton", "torch")
    )
    assert fast.report.deviation == reference.report.deviation
    assert fast.deviation().overall == pytest.approx(reference.deviation().overall, rel=1e-3)
    assert 0 < fast.deviation().overall < 1


def test_an_option_that_triton_does_not_have_is_named_before_the_model_is_read() -> None:
    for options in ({"ops": "ort"}, {"threads": 2}, {"compile": True}):
        with pytest.raises(InputError, match=f"target 'triton' has no option '{next(iter(options))}'"):
            optimize_model("no such model", target="triton", **options)  # type: ignore[arg-type]
