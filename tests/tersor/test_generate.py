"""``generate`` of the front door: text, ids and tensors, streams and stops, before and after saving."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_folder import save_text_model

import tersor
from tersor import InputError, optimize_model
from tersor.verification import verify_artifact

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def fast(folder: Path) -> Any:
    return optimize_model(folder, ["kv-cache"], "onnx", threads=1)


def by_transformers(folder: Path, ids: torch.Tensor, new: int) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)  # type: ignore[no-any-return]


def test_ids_go_in_and_come_out_as_of_transformers(fast: Any, folder: Path) -> None:
    ids = torch.randint(2, 256, (2, 9))
    expected = by_transformers(folder, ids, 15)
    assert torch.equal(fast.generate(ids, max_new_tokens=15), expected)
    assert fast.generate(ids.tolist(), max_new_tokens=15) == expected.tolist()
    assert torch.equal(torch.as_tensor(fast.generate(ids.numpy(), max_new_tokens=15)), expected)
    rows = [list(row) for row in ids.numpy()]
    assert fast.generate(rows, max_new_tokens=15, batch_size=1) == expected.tolist()


def test_texts_past_what_the_model_was_made_for_are_warned_of(fast: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"up to 130 tokens .* made for texts of 128 \(max_position_embeddings\)"
    ) as found:
        fast.generate([[7] * 100, [5]], max_new_tokens=30)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.generate([[7] * 100, [5]], max_new_tokens=28)


def test_padding_is_no_part_of_a_prompt(fast: Any) -> None:
    ids = torch.randint(2, 256, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    both = fast.generate(ids * mask, attention_mask=mask, max_new_tokens=8)
    alone = fast.generate(ids[1:, 4:], max_new_tokens=8)
    assert torch.equal(both[1, 9:], alone[0, 5:])
    assert torch.equal(both[:, :9], ids * mask)


@pytest.mark.parametrize(
    "options",
    [
        {"pad_token_id": 3, "max_new_tokens": 8},
        {"pad_token_id": 3, "max_length": 14},
        {"pad_token_id": 3, "eos_token_id": [3, 5], "max_new_tokens": 8},
        {"eos_token_id": list(range(255, 100, -1)), "max_new_tokens": 8},
    ],
    ids=str,
)
def test_without_a_mask_padding_is_what_transformers_takes_for_it(
    fast: Any, folder: Path, options: dict[str, Any]
) -> None:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    ids = torch.randint(4, 256, (2, 9))
    ids[1, :4] = 3
    model: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.generate(ids, do_sample=False, **options)
    assert torch.equal(fast.generate(ids, **options), expected)
    assert torch.equal(fast.generate(input_ids=ids, **options), expected)


def test_text_comes_out_for_text_and_in_pieces(fast: Any) -> None:
    pieces: list[str] = []
    text = fast.generate(PROMPT, max_new_tokens=30, stream=pieces.append)
    assert "".join(pieces) == text
    assert len(pieces) > 1
    ids = fast.generator.tokenizer(PROMPT)["input_ids"]
    assert text == fast.generator.tokenizer.decode(fast.generate([ids], max_new_tokens=30)[0][len(ids) :])
    assert fast.generate([PROMPT, "Hello"], max_new_tokens=30)[0] == text


def test_a_stop_text_ends_it_wherever_tokens_begin_and_end(fast: Any) -> None:
    whole = fast.generate(PROMPT, max_new_tokens=30)
    stop = whole[5:8]  # three tokens
    text = fast.generate(PROMPT, max_new_tokens=30, stop=stop)
    assert text == whole[: whole.index(stop) + 3]
    assert fast.generate(PROMPT, max_new_tokens=30, stop=["never said", stop]) == text
    assert fast.generate(PROMPT, max_new_tokens=30, stop=None) == whole


def test_a_stop_text_may_be_long_and_may_begin_in_the_prompt(fast: Any) -> None:
    whole = fast.generate(PROMPT, max_new_tokens=120)
    long = whole[2:90]
    assert fast.generate(PROMPT, max_new_tokens=120, stop=long) == whole[: whole.index(long) + len(long)]
    border = PROMPT[-2:] + whole[0]
    assert fast.generate(PROMPT, max_new_tokens=20, stop=border) == whole[0]
    # One that the prompt holds as a whole is none that generation comes to.
    assert fast.generate(PROMPT, max_new_tokens=20, stop=PROMPT[:5]) == fast.generate(
        PROMPT, max_new_tokens=20
    )


def test_a_tokenizer_that_is_given_counts_for_that_call(fast: Any) -> None:
    class Other:
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [5, 6, 7]}

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return " ".join(map(str, tokens))

    before = fast.generate(PROMPT, max_new_tokens=5)
    other = fast.generate(PROMPT, max_new_tokens=5, tokenizer=Other())
    assert other == " ".join(map(str, fast.generate([[5, 6, 7]], max_new_tokens=5)[0][3:]))
    assert fast.generate(PROMPT, max_new_tokens=5) == before


def test_options_that_a_model_is_loaded_with_hold_for_generation(fast: Any, tmp_path: Path) -> None:
    fast.save(tmp_path / "out")
    loaded = tersor.load(tmp_path / "out", threads=2)
    assert loaded.generator.options["threads"] == 2
    assert loaded.generate(PROMPT, max_new_tokens=5) == fast.generate(PROMPT, max_new_tokens=5)


def test_nothing_follows_an_end_token(tmp_path: Path, fast: Any) -> None:
    ids = torch.randint(2, 256, (1, 6), generator=torch.Generator().manual_seed(3))
    free = fast.generate(ids, max_new_tokens=12)[0, 6:].tolist()
    end = free[5]
    ending = optimize_model(save_text_model(tmp_path / "ending", end), ["kv-cache"], "torch")
    assert ending.generate(ids, max_new_tokens=12)[0, 6:].tolist() == free[: free.index(end) + 1]
    two = torch.cat([ids, ids.flip(1)])
    rows = ending.generate(two, max_new_tokens=12)
    assert (rows[0, 6 + free.index(end) + 1 :] == 0).all()  # the model's padding


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_an_artifact_generates_verifies_and_answers_like_the_model(
    folder: Path, fast: Any, target: str, tmp_path: Path
) -> None:
    made = optimize_model(folder, ["kv-cache"], target)
    made.save(tmp_path / "out")
    assert verify_artifact(tmp_path / "out", folder).ok
    loaded = tersor.load(tmp_path / "out")
    assert loaded.generate(PROMPT, max_new_tokens=20) == fast.generate(PROMPT, max_new_tokens=20)
    ids = torch.randint(2, 256, (2, 7))
    mask = torch.ones_like(ids)
    assert [spec.name for spec in loaded.inputs] == ["input_ids", "attention_mask"]
    torch.testing.assert_close(
        loaded(ids, mask).logits, tersor.capture(folder)(ids, mask).logits, rtol=1e-4, atol=1e-4
    )


def test_a_model_without_a_cache_says_what_to_do(folder: Path) -> None:
    plain = optimize_model(folder, [], "torch")
    with pytest.raises(InputError, match="convert it with -p kv-cache"):
        plain.generate(PROMPT)


def test_a_model_without_a_language_head_says_so() -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    headless = optimize_model(LlamaModel(config).eval(), ["kv-cache"], "torch")
    with pytest.raises(InputError, match="last_hidden_state, and not scores over a vocabulary"):
        headless.generate([[5, 6]])


def test_a_mask_belongs_to_a_tensor(fast: Any) -> None:
    with pytest.raises(InputError, match="attention_mask belongs to a tensor"):
        fast.generate([[5, 6]], attention_mask=[[0, 1]])


def test_a_model_without_a_tokenizer_takes_ids_only(folder: Path) -> None:
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    # Of the folder that it was loaded from it has the tokenizer.
    assert optimize_model(model, ["kv-cache"], "torch").generate(PROMPT, max_new_tokens=3)
    model.name_or_path = ""
    bare = optimize_model(model, ["kv-cache"], "torch")
    assert len(bare.generate([[5, 6]], max_new_tokens=3)[0]) == 5
    with pytest.raises(InputError, match="came without a tokenizer"):
        bare.generate(PROMPT)
    with pytest.raises(InputError, match="came without a tokenizer"):
        bare.generate([[5]], stop="x")


@pytest.mark.parametrize(
    ("given", "options", "reason"),
    [
        ("", {}, "prompt 0 is empty"),
        ([], {}, "there is no prompt"),
        (torch.zeros(3, dtype=torch.int64), {}, "give integers"),
        (torch.zeros(1, 3), {}, "give integers"),
        (7, {}, "a int is no prompt"),
        (torch.ones(1, 3, dtype=torch.int64), {"attention_mask": torch.ones(1, 4)}, "attention_mask is"),
        ([[5, 256]], {}, "256"),
        (PROMPT, {"stop": ""}, "is no text"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens=0"),
        (PROMPT, {"top_p": 2.0}, "top_p=2.0"),
        (PROMPT, {"max_tokens": 3}, "no option 'max_tokens'; did you mean 'max_new_tokens'"),
        ([[5], [6]], {"batch_size": 0}, "batch_size=0"),
        ([[5], [6]], {"batch_size": 1.5}, "batch_size=1.5"),
        ([[5, 2**32 + 5]], {}, "token id 4294967301; the model takes 0 to 255"),
        ([[5, 2**70]], {}, "the model takes 0 to 255"),
        ([[5, -1]], {}, "token id -1"),
        (torch.ones(1, 3, dtype=torch.int8), {}, "int64 or int32"),
        ("a\udcffb", {}, "its character 1 is half of one"),
        (None, {}, "one of inputs and input_ids"),
        ([[5]], {"input_ids": [[5]]}, "one of inputs and input_ids"),
        (torch.ones(1, 3, dtype=torch.int64), {"max_length": 3}, "the prompts have 3 tokens already"),
        (PROMPT, {"attention_mask": torch.ones(1, 4)}, "texts have no padding"),
        (torch.ones(1, 3, dtype=torch.int64), {"max_length": "x"}, "max_length='x'"),
        (np.array([["a", "b"]], dtype=object), {}, "input_ids is no tensor"),
        (torch.ones(1, 3, dtype=torch.int64), {"attention_mask": "x"}, "attention_mask is no tensor"),
        (torch.ones(2, 2, dtype=torch.int64), {"attention_mask": [[1, 1], [1]]}, "as many in every row"),
        (
            torch.ones(1, 2, dtype=torch.int64),
            {"attention_mask": [[-1e9, 0.0]]},
            "other numbers than 0 and 1",
        ),
        (torch.ones(1, 2, dtype=torch.int64), {"attention_mask": [[float("nan"), 1]]}, "than 0 and 1"),
        (PROMPT, {"stop": 5}, "stop=5 is no text"),
        (PROMPT, {"tokenizer": 3}, "tokenizer=3 is none"),
        (PROMPT, {"stream": "x"}, "cannot be called"),
        (PROMPT, {"seed": "x"}, "seed='x'"),
        (PROMPT, {"temperature": "0.8"}, "temperature='0.8'"),
        (PROMPT, {"temperature": 1e-45}, "give a number from 1e-06 up"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(fast: Any, given: Any, options: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        fast.generate(given, **options)


def test_a_stream_that_is_interrupted_leaves_the_model_as_it_was(fast: Any) -> None:
    before = fast.generate(PROMPT, max_new_tokens=10)

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast.generate(PROMPT, max_new_tokens=10, stream=interrupt)
    assert fast.generate(PROMPT, max_new_tokens=10) == before


def test_options_that_change_nothing_are_taken_as_transformers_takes_them(fast: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    expected = fast.generate(ids, max_new_tokens=4)
    count = np.int64(4)
    assert torch.equal(
        fast.generate(ids, max_new_tokens=count, use_cache=True, num_beams=1, top_k=None), expected
    )
    with pytest.raises(InputError, match="num_beams"):
        fast.generate(ids, num_beams=2)
    with pytest.raises(InputError, match=r"settings by name: \*\*generation_config"):
        fast.generate(ids, generation_config=object())
