"""Rows that attention sees nothing of, by a mask of finite numbers, and what else is in them.

Where nothing else is, they are padding as a whole; else what the model computes of them is a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import huggingface
from finite_masks import WIDTH, attended
from torch import Tensor, nn

import tersor
from tersor.codegen.onnx.session import runtime
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program

MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
NOTHING = torch.tensor([[1] * 6, [0] * 6])


class AudioAndVideo(nn.Module):
    """Frames of one length; a clip may have no video."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video, self.head = nn.Linear(10, WIDTH), nn.Linear(12, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, audio: Tensor, video: Tensor, mask: Tensor) -> Tensor:
        a, v = self.audio(audio), self.video(video)
        return self.head(a + attended(a, v, mask, -1e9) + v * mask[..., None].to(v.dtype))


class TextAndPatches(nn.Module):
    """Text attends to patches, which attend to each other; a sample may have no picture."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.patch = nn.Embedding(64, WIDTH), nn.Linear(12, WIDTH)

    def forward(self, ids: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        t, p = self.text(ids), self.patch(patches)
        p = p + attended(p, p, mask, -1e4)
        return t + attended(t, p, mask, -1e4)


class TextAndPicture(nn.Module):
    """A sample may have no text."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.picture = nn.Embedding(64, WIDTH), nn.Linear(12, WIDTH)

    def forward(self, ids: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
        t = self.text(ids)
        return attended(t, t, mask, -1e9).mean(1) + self.picture(picture)


class Documents(nn.Module):
    """Means of sentences, of which some may be empty: 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten(0, 1)
        x = self.table(flat)
        first = attended(x, x, flat != 0, -1e4)[:, 0]
        return self.head(first.unflatten(0, ids.shape[:2]).mean(1))


class Entities(nn.Module):
    """One layer reads the tokens of entities alone; a text may have none."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor, entities: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + attended(x, x, entities, -1e4)
        return self.head(x + attended(x, x, mask, -1e4))


def documents() -> tuple[Tensor, Tensor]:
    full = torch.randint(1, 64, (2, 3, 6))
    empty = full.clone()
    empty[1, 2] = 0
    return full, empty


FULL, EMPTY = documents()
FRAMES = {"audio": torch.randn(2, 6, 10), "video": torch.randn(2, 6, 12)}
PATCHES = {"ids": torch.randint(0, 64, (2, 5)), "patches": torch.randn(2, 6, 12)}
PICTURE = {"ids": torch.randint(0, 64, (2, 6)), "picture": torch.randn(2, 12)}
TEXT = {"ids": torch.randint(0, 64, (2, 6)), "mask": torch.ones(2, 6, dtype=torch.int64)}
CASES: dict[str, tuple[type[nn.Module], Mapping[str, Tensor], Mapping[str, Tensor]]] = {
    "no video": (AudioAndVideo, {**FRAMES, "mask": MASK}, {**FRAMES, "mask": NOTHING}),
    "no picture": (TextAndPatches, {**PATCHES, "mask": MASK}, {**PATCHES, "mask": NOTHING}),
    "no text": (TextAndPicture, {**PICTURE, "mask": MASK}, {**PICTURE, "mask": NOTHING}),
    "no entities": (Entities, {**TEXT, "entities": MASK}, {**TEXT, "entities": NOTHING}),
    "no words": (Documents, {"ids": FULL}, {"ids": EMPTY}),
}


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_what_the_model_makes_of_them(name: str, target: str) -> None:
    kind, full, empty = CASES[name]
    torch.manual_seed(0)
    model = kind().eval()
    for example in (full, empty):
        fast = tersor.optimize_model(model, [], target, example_inputs=dict(example))
        for inputs in (full, empty):
            torch.testing.assert_close(fast(**inputs), model(**inputs), atol=1e-5, rtol=1e-5)


def test_two_texts_of_one_length_are_captured() -> None:
    """Masks that Hugging Face's own code makes have one meaning, whatever is tried."""
    sizes = dict(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = huggingface("T5Config", "T5ForConditionalGeneration", **sizes)()
    example = {"input_ids": torch.randint(1, 50, (2, 6)), "attention_mask": MASK}
    capture(model, {**example, "decoder_input_ids": torch.randint(1, 50, (2, 6))})


class Encoder(nn.Module):
    """Its rows hold nothing but tokens, told by a mask or by ids that are 0."""

    def __init__(self, by_mask: bool) -> None:
        super().__init__()
        self.by_mask, self.table, self.head = by_mask, nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.table(ids)
        x = x + attended(x, x, ids != 0 if mask is None else mask, -1e9)
        return x, self.head(x[:, 0])


def has_padding(program: Program) -> bool:
    (node,) = (n for n in program.graph.nodes if "attention" in str(n.target))
    return node.args[4] is not None


@pytest.mark.parametrize("by_mask", [True, False])
def test_where_nothing_else_is_in_them_they_are_padding(by_mask: bool) -> None:
    example: dict[str, Any] = {"ids": torch.randint(1, 64, (2, 6))}
    if by_mask:
        example["mask"] = MASK
    assert has_padding(capture(Encoder(by_mask).eval(), example))


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("by_mask", [True, False])
def test_where_they_are_padding_they_are_refused_and_other_rows_are_not(
    by_mask: bool, target: str, tmp_path: Path
) -> None:
    """What tells a row of no token from one of no entity is nowhere in the graph."""
    torch.manual_seed(0)
    model = Encoder(by_mask).eval()
    example = {"ids": torch.randint(1, 64, (2, 6)), **({"mask": MASK} if by_mask else {})}
    fast = tersor.optimize_model(model, [], target, example_inputs=example)
    name = "mask" if by_mask else "ids"
    assert fast.program.fillers == {name: ((0,),)}
    # Two of its twelve tokens are padding.
    told = f"outputs are compared at the tokens that '{name}' lets attention see: the others (16.7%)"
    assert any(note.startswith(told) for note in fast.report.notes) == by_mask
    fast.save(tmp_path / "out")
    for built in (fast, tersor.load(tmp_path / "out")):
        torch.testing.assert_close(built(**example)[1], model(**example)[1], atol=1e-5, rtol=1e-5)
        empty = example[name].clone()
        empty[1] = 0
        with pytest.raises(InputError, match=rf"row \[1\] of input '{name}' holds nothing but 0"):
            built(**example | {name: empty})


def test_a_file_refuses_them_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = {"ids": torch.randint(1, 64, (2, 6)), "mask": MASK}
    model = Encoder(True).eval()
    fast = tersor.optimize_model(model, [], "onnx", example_inputs=example)
    (file,) = fast.export_onnx(tmp_path / "model.onnx")
    session = runtime().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in example.items()})[1]
    torch.testing.assert_close(torch.from_numpy(found), model(**example)[1], atol=1e-5, rtol=1e-5)
    with pytest.raises(Exception, match="a row of mask without a token"):
        session.run(None, {"ids": example["ids"].numpy(), "mask": NOTHING.numpy()})


def test_a_text_of_nothing_is_refused_where_another_text_is_made_of_it() -> None:
    sizes = dict(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = huggingface("T5Config", "T5ForConditionalGeneration", **sizes)()
    example = {"input_ids": torch.randint(1, 50, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    example["decoder_input_ids"] = torch.randint(1, 50, (2, 5))
    fast = tersor.optimize_model(model, [], "torch", example_inputs=example)
    example["attention_mask"][1] = 0
    with pytest.raises(InputError, match=r"row \[1\] of input 'attention_mask' holds nothing but 0"):
        fast(**example)


@pytest.mark.parametrize("seed", range(6))
def test_of_a_coarse_model_too(seed: int) -> None:
    """Its results are rounded so far that zeros may pass for a mean."""
    torch.manual_seed(seed)
    model = AudioAndVideo().to(torch.bfloat16).eval()
    example = {name: value.bfloat16() for name, value in FRAMES.items()}
    fast = tersor.optimize_model(model, [], "torch", example_inputs={**example, "mask": MASK})
    inputs = {**example, "mask": NOTHING}
    torch.testing.assert_close(fast(**inputs), model(**inputs), atol=2e-2, rtol=2e-2)


class Paddings(nn.Module):
    """Keys that ``real`` tells, of ids and two masks."""

    def __init__(self, real: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.real, self.table = real, nn.Embedding(64, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor, other: Tensor) -> Tensor:
        x = self.table(ids)
        return x + attended(x, x, self.real(ids, mask, other), -1e9) + 0 * (mask + other)[..., None]


MEETINGS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Mapping[str, Tensor]]] = {
    "two ids of one number": (lambda i, m, o: (i != 0) & (i != 1), {"ids": torch.tensor([[5] * 6, [1] * 6])}),
    "two ids in turns": (lambda i, m, o: (i != 0) & (i != 1), {"ids": torch.tensor([[5] * 6, [0, 1] * 3])}),
    "two masks": (
        lambda i, m, o: (m != 0) & (o != 0),
        {"mask": torch.tensor([[1] * 6, [1, 0] * 3]), "other": torch.tensor([[1] * 6, [0, 1] * 3])},
    ),
    "a mask and ids": (
        lambda i, m, o: (m != 0) & (i != 0),
        {"ids": torch.tensor([[5] * 6, [5, 0] * 3]), "mask": torch.tensor([[1] * 6, [0, 1] * 3])},
    ),
}


@pytest.mark.parametrize("name", MEETINGS)
@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_several_leave_nothing_of(name: str, rows: int) -> None:
    torch.manual_seed(0)
    real, changed = MEETINGS[name]
    model = Paddings(real).eval()
    example = {
        "ids": torch.randint(2, 64, (rows, 6)),
        "mask": torch.ones(rows, 6).long(),
        "other": torch.ones(rows, 6).long(),
    }
    fast = tersor.optimize_model(model, [], "torch", example_inputs=example)
    assert_right_or_refused(
        fast, model, {"ids": torch.full((2, 6), 7), "mask": MASK, "other": MASK, **changed}
    )


def assert_right_or_refused(fast: Any, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    if fast.program.fillers:
        with pytest.raises(InputError, match="nothing but"):
            fast(**inputs)
    else:
        torch.testing.assert_close(fast(**inputs), model(**inputs), atol=1e-5, rtol=1e-5)


class TokensFirst(Encoder):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        assert mask is not None
        return super().forward(ids, mask.T)[0]


def test_a_mask_that_is_turned_is_tried_both_ways() -> None:
    torch.manual_seed(0)
    model = TokensFirst(True).eval()
    example = {"ids": torch.randint(1, 64, (3, 6)), "mask": torch.ones(6, 3).long()}
    fast = tersor.optimize_model(model, [], "torch", example_inputs=example)
    example["mask"][:, 1] = 0
    assert_right_or_refused(fast, model, example)


def test_an_example_of_one_row_of_fixed_sizes() -> None:
    torch.manual_seed(0)
    model = Encoder(True).eval()
    example = {"ids": torch.randint(1, 64, (1, 6)), "mask": torch.ones(1, 6).long()}
    fast = tersor.optimize_model(model, [], "torch", example_inputs=example, dynamic={})
    with pytest.raises(InputError, match="nothing but 0"):
        fast(ids=example["ids"], mask=torch.zeros(1, 6).long())


class TwoSegments(nn.Module):
    """One layer reads the question and the next the text."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.types = nn.Embedding(64, WIDTH), nn.Embedding(2, WIDTH)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        x = self.table(ids) + self.types(types)
        x = x + attended(x, x, types == 0, -1e9)
        return x + attended(x, x, types == 1, -1e9)


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_rows_of_both_segments_are_taken_where_rows_of_one_are_not(target: str) -> None:
    torch.manual_seed(0)
    model = TwoSegments().eval()
    example = {"ids": torch.randint(0, 64, (2, 6)), "types": torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1] * 3])}
    fast = tersor.optimize_model(model, [], target, example_inputs=example)
    torch.testing.assert_close(fast(**example), model(**example), atol=1e-5, rtol=1e-5)
    for segment in (0, 1):
        example["types"][1] = segment
        assert_right_or_refused(fast, model, example)


class OfQueries(Encoder):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        assert mask is not None
        x = self.table(ids)
        hidden = torch.zeros(mask.shape).masked_fill(mask == 0, -1e9)
        return (x @ x.transpose(1, 2) / 4 + hidden).softmax(-1) @ x


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool])
def test_masks_of_any_width_are_tried(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = OfQueries(True).eval()
    ids, mask = torch.randint(4, 64, (2, 7)), torch.ones(2, 7, 7).tril().to(dtype)
    program = capture(model, {"ids": ids, "mask": torch.ones_like(mask)})
    torch.testing.assert_close(program(ids=ids, mask=mask), model(ids, mask), atol=1e-5, rtol=1e-5)
