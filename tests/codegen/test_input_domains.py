"""A mask that is proved for zeros and ones takes no other number, in every target and in what it saved."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersor
from tersor.codegen.input_domains import InputDomain, check_inputs, input_domains
from tersor.codegen.target import find_target
from tersor.ir.archive import load, save
from tersor.ir.capture import capture
from tersor.ir.errors import ArtifactError, InputError
from tersor.ir.program import Program


class Encoder(nn.Module):
    """Attention under ``(1 - mask) * -1e4``, which lifts logits where ``mask`` is 2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.project(self.embed(ids)).unflatten(-1, (2, -1)).transpose(1, 2)
        bias = (1.0 - mask[:, None, None].to(x.dtype)) * -1e4
        return F.scaled_dot_product_attention(x, x, x, attn_mask=bias).transpose(1, 2).flatten(2)


def inputs(batch: int, tokens: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[-1, 2 * tokens // 3 :] = 0
    return {"ids": torch.randint(9, (batch, tokens)), "mask": mask}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return capture(model, inputs(2, 12))


MASK = InputDomain("mask", None, 1, "mask")
TOKENS = InputDomain("mask", None, None, "no token", (0,))


def test_domains_are_read_off_the_program_and_survive_saving(program: Program, tmp_path: Path) -> None:
    expected = (InputDomain("ids", 0, 8, "embedding"), MASK, TOKENS)
    assert input_domains(program) == expected
    assert input_domains(program.edit()) == expected
    save(program, tmp_path / "whole")
    save(program, tmp_path / "one.safetensors")
    for name in ("whole", "one.safetensors"):
        assert input_domains(load(tmp_path / name)) == expected


def check(executable, model: nn.Module) -> None:
    for batch, tokens in ((1, 6), (3, 9)):
        given = inputs(batch, tokens)
        torch.testing.assert_close(executable.run(given)[0], model(**given), atol=1e-5, rtol=1e-4)
        given["mask"][0, 1] = -1
        torch.testing.assert_close(executable.run(given)[0], model(**given), atol=1e-5, rtol=1e-4)
    for number in (2, 7):
        wrong = {**given, "mask": given["mask"].clone()}
        wrong["mask"][1, 4] = number
        text = rf"'mask' is {number} at \[1, 4\]; the model takes 1 or less .* give 0 and 1"
        with pytest.raises(InputError, match=text):
            executable.run(wrong)
    wrong = {**given, "ids": torch.full_like(given["ids"], 9)}
    with pytest.raises(InputError, match=r"'ids' is 9 at \[0, 0\]; the model takes 0 to 8 .* embedding"):
        executable.run(wrong)


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_every_target_and_what_it_saved_refuse_what_the_proof_leaves_out(
    program: Program, model: nn.Module, tmp_path: Path, target: str
) -> None:
    built = find_target(target).lower(program)
    built.save(tmp_path)
    check(built, model)
    check(find_target(target).executable.load(tmp_path), model)


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_a_loaded_artifact_refuses_as_the_model_that_was_saved(
    model: nn.Module, tmp_path: Path, target: str
) -> None:
    fast = tersor.optimize_model(model, [], target=target, example_inputs=inputs(2, 12))
    fast.save(tmp_path / "out")
    for built in (fast, tersor.load(tmp_path / "out")):
        given = inputs(2, 7)
        built(**given)
        given["mask"][0, 0] = 2
        with pytest.raises(InputError, match="'mask' is 2"):
            built(**given)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(input="other"),
        lambda d: d.update(reason="because"),
        lambda d: d.update(high="x"),
        lambda d: d.pop("low"),
    ],
)
def test_damaged_domains_are_refused_on_loading(program: Program, tmp_path: Path, damage) -> None:
    find_target("onnx").lower(program).save(tmp_path)
    settings = json.loads((tmp_path / "onnx.json").read_text())
    damage(settings["domains"][1])
    (tmp_path / "onnx.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match=r"onnx\.json"):
        find_target("onnx").executable.load(tmp_path)


def test_a_program_with_domains_of_unknown_inputs_is_refused(program: Program, tmp_path: Path) -> None:
    save(program, tmp_path)
    header = json.loads((tmp_path / "program.json").read_text())
    header["domains"] = {"other": [0, 1]}
    (tmp_path / "program.json").write_text(json.dumps(header))
    with pytest.raises(ArtifactError, match="other"):
        load(tmp_path)


def test_a_check_costs_microseconds() -> None:
    given = {"mask": torch.ones(4, 512, dtype=torch.long)}
    best = float("inf")
    for _ in range(50):
        start = time.perf_counter()
        check_inputs(given, (MASK,))
        best = min(best, time.perf_counter() - start)
    assert best < 5e-4
