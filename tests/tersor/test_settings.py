"""What a model came with for ``generate``, and options of a call: the same tokens as of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import huggingface
from chances import chances_of
from text_folder import save_text_model

import tersor
from tersor import InputError, optimize_model
from tersor.runtime.processors import OPTIONS, Text, processors_of
from tersor.runtime.sampling import Sampling

END = 200
PROMPT = [65, 66, 67, 65, 66, 67, 65]
NEW = 16
# Each changes what is said behind the prompt, alone or with the one that it needs.
CHANGES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 3.0},
    {"encoder_no_repeat_ngram_size": 1, "repetition_penalty": 0.5},
    {"max_new_tokens": 5},
    {"max_length": len(PROMPT) + 4},
    {"max_length": len(PROMPT) + 4, "max_new_tokens": 6},
    {"min_new_tokens": 12, "eos_token_id": "the third"},
    {"min_length": len(PROMPT) + 9, "eos_token_id": "the third"},
    {"eos_token_id": "the third"},
    {"eos_token_id": ["the third", 7]},
    {"forced_eos_token_id": 9, "max_new_tokens": 6},
    {"suppress_tokens": ["the first", "the second"]},
    {"begin_suppress_tokens": ["the first"]},
    {"bad_words_ids": [["the first"]]},
    {"bad_words_ids": [["the first", "the second"]]},
    {"sequence_bias": [[["the second"], -30.0]]},
    {"exponential_decay_length_penalty": [3, 1.8], "eos_token_id": 7},
    {"do_sample": True, "top_k": 1, "suppress_tokens": ["the first"]},
]


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """What the model says of itself."""
    folder = save_text_model(tmp_path_factory.mktemp("free") / "model")
    return by_transformers(folder, {"max_new_tokens": NEW})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return optimize_model(save_text_model(tmp_path_factory.mktemp("plain") / "model"), ["kv-cache"], "torch")


def filled(value: Any, free: list[int]) -> Any:
    if isinstance(value, list):
        return [filled(each, free) for each in value]
    names = {"the first": free[0], "the second": free[1], "the third": free[2]}
    return names.get(value, value) if isinstance(value, str) else value


def by_transformers(folder: Path, options: dict[str, Any]) -> list[int]:
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        result = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return result[0, len(PROMPT) :].tolist()  # type: ignore[no-any-return]


def with_settings(folder: Path, settings: dict[str, Any]) -> Path:
    save_text_model(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_settings_that_a_model_came_with_and_options_of_a_call_are_transformers_own(
    change: dict[str, Any], free: list[int], plain: Any, tmp_path: Path
) -> None:
    settings = {name: filled(value, free) for name, value in change.items()}
    settings.setdefault("max_new_tokens", None if "max_length" in settings else NEW)
    folder = with_settings(tmp_path / "model", {n: v for n, v in settings.items() if v is not None})
    expected = by_transformers(folder, {})
    assert expected != free
    made = optimize_model(folder, ["kv-cache", "speculate:drafter=ngram"], "torch")
    made.save(tmp_path / "out")
    assert tersor.load(tmp_path / "out").generate([PROMPT])[0][len(PROMPT) :] == expected
    assert plain.generate([PROMPT], **settings)[0][len(PROMPT) :] == expected
    # What a call says counts more.
    said = made.generate([PROMPT], max_new_tokens=2, temperature=0, forced_eos_token_id=None)
    assert said[0][len(PROMPT) :] == expected[:2]


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_what_settings_leave_out_is_not_what_the_configuration_says(
    name: str, free: list[int], tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    def edit(file: Path, **change: Any) -> None:
        found = {**json.loads(file.read_text()), **change}
        file.write_text(json.dumps({n: v for n, v in found.items() if v is not None}))

    folder = save_text_model(tmp_path / "model")
    token = free[1] if name == "eos_token_id" else PROMPT[1]
    edit(folder / "config.json", **{name: token})
    edit(folder / "generation_config.json", max_new_tokens=NEW, **{name: None})
    expected = by_transformers(folder, {})
    assert len(expected) == NEW
    in_memory = LlamaForCausalLM.from_pretrained(folder).eval()
    for model in (folder, in_memory):
        made = optimize_model(model, ["kv-cache"], "torch")
        assert made.generate(torch.tensor([PROMPT]))[0, len(PROMPT) :].tolist() == expected
    made.save(tmp_path / "out")
    again = tersor.load(tmp_path / "out")
    assert again.generate(torch.tensor([PROMPT]))[0, len(PROMPT) :].tolist() == expected
    # Where there are no settings, transformers makes them of the configuration.
    (folder / "generation_config.json").unlink()
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        plain: Any = LlamaForCausalLM.from_pretrained(folder).eval()
        own = plain.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(optimize_model(folder, ["kv-cache"], "torch").generate(ids, max_new_tokens=NEW), own)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_where_nothing_says_how_many_there_are_twenty_within_the_context(kind: str) -> None:
    sizes = dict(vocab_size=90, eos_token_id=None, bos_token_id=None)
    if kind == "GPT2":
        sizes |= dict(n_embd=16, n_layer=1, n_head=2, n_positions=64)
    else:
        sizes |= dict(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=64,
        )  # fmt: skip
    torch.manual_seed(0)
    model = huggingface(
        f"{kind}Config", "GPT2LMHeadModel" if kind == "GPT2" else "LlamaForCausalLM", **sizes
    )()
    fast = optimize_model(model, ["kv-cache"], "torch", example_inputs={"input_ids": torch.ones(2, 8).long()})
    for length in (5, 55, 63):
        ids = torch.randint(0, 90, (2, length))
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False)
        assert expected.shape[1] == min(length + 20, 64)
        assert torch.equal(fast.generate(ids), expected)
        assert fast.generate(ids.tolist()) == expected.tolist()
    with pytest.raises(InputError, match="max_length=64"):
        fast.generate(torch.randint(0, 90, (2, 64)))


def test_processors_are_those_of_transformers_in_its_order() -> None:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    options: dict[str, Any] = {
        "sequence_bias": [[[3], 1.0]], "encoder_repetition_penalty": 1.1, "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[4]], "min_length": 3,
        "min_new_tokens": 2, "forced_bos_token_id": 5, "forced_eos_token_id": 6, "remove_invalid_values": True,
        "exponential_decay_length_penalty": (3, 1.1), "suppress_tokens": [7], "begin_suppress_tokens": [8],
        "temperature": 0.7, "top_h": 0.5, "top_k": 9, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9,
        "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "renormalize_logits": True,
    }  # fmt: skip
    assert set(options) == set(OPTIONS)
    given = GenerationConfig(**options, do_sample=True, max_length=20)
    given._eos_token_tensor = torch.tensor([1])
    ids = torch.tensor([PROMPT])
    theirs = LlamaForCausalLM(config)._get_logits_processor(given, ids.shape[1], ids)
    always, draws = processors_of(options, Text(PROMPT, 20, [1]), draws=True)
    assert [type(p) for p in always + draws] == [type(p) for p in theirs]
    tokens, scores = torch.randint(0, 90, (1, 12)), torch.randn(1, 90)
    ours = scores
    for processor in always + draws:
        ours = processor(tokens, ours)
    torch.testing.assert_close(ours, theirs(tokens, scores))


@pytest.mark.parametrize(
    "extra", [{"top_h": 0.4}, {"min_p": 0.3}, {"typical_p": 0.5}, {"eta_cutoff": 0.1}], ids=str
)
def test_draws_from_the_largest_alone_are_draws_from_all(extra: dict[str, float]) -> None:
    from tersor.runtime.sampling import Sampler

    logits = torch.randn(40 * 512) * 3
    sampling = Sampling(1.0, top_k=20, seed=3, others=extra)
    chances = chances_of(Sampler(sampling), [1], logits)
    drawn = {Sampler(Sampling(1.0, 20, seed=s, others=extra)).choose([1], logits) for s in range(60)}
    assert drawn <= set(chances.nonzero()[:, 0].tolist())


def test_a_model_that_draws_by_its_settings_draws(tmp_path: Path) -> None:
    folder = with_settings(tmp_path / "model", {"do_sample": True, "temperature": 2.0, "pad_token_id": 3})
    made = optimize_model(folder, ["kv-cache"], "torch")
    first, again, other = (made.generate([PROMPT], seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert made.generate([PROMPT], seed=1, temperature=2.0) == first
    likeliest = made.generate([PROMPT], temperature=0)
    assert likeliest == made.generate([PROMPT], do_sample=False) != first
    assert made.generator.likeliest(PROMPT, 20) == likeliest[0][len(PROMPT) :]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_beams": 4}, "settings for beam search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "settings for contrastive search"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"token_healing": True}, "token_healing=True"),
    ],
)
def test_settings_without_a_form_here_are_refused(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    made = optimize_model(with_settings(tmp_path / "model", settings), ["kv-cache"], "torch")
    with pytest.raises(InputError, match=reason):
        made.generate([PROMPT])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"do_sample": False, "temperature": 0.7}, "contradict each other"),
        ({"do_sample": "yes"}, "do_sample='yes'"),
        ({"max_length": 3}, "max_length=3 leaves no room"),
        ({"max_length": 0}, "max_length=0"),
        ({"min_p": 3.0, "temperature": 1.0}, "min_p=3.0"),
        ({"suppress_tokens": "x"}, "suppress_tokens='x'"),
        ({"bad_words_ids": [[999]]}, r"bad_words_ids=\[\[999\]\]"),
        ({"eos_token_id": "x"}, "eos_token_id='x'"),
        ({"pad_token_id": 1.5}, "pad_token_id=1.5"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
        ({"pad_token_id": 10**30}, "pad_token_id=1000"),
        ({"forced_eos_token_id": [1, 999]}, r"forced_eos_token_id=\[1, 999\]"),
        ({"num_beams": 4}, "num_beams=4 has no form here"),
        ({"renormalize_logits": "yes", "temperature": 1.0}, "renormalize_logits='yes'"),
        ({"remove_invalid_values": 1}, "remove_invalid_values=1 makes no sense"),
        ({"use_cache": False}, "use_cache=False has no form here"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 has no form here"),
        ({"stops": "x"}, "did you mean 'stop'"),
        ({"top_k": "3"}, "top_k='3' is no number of tokens"),
        ({"top_k": 2.5, "temperature": 1.0}, "top_k=2.5 is no number of tokens"),
        ({"suppress_tokens": list(range(256))}, r"no token may follow .* \(suppress_tokens=\[0, 1, 2"),
        ({"repetition_penalty": 1e-300}, r"no token may follow .*repetition_penalty=1e-300"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_one_clear_error(
    plain: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        plain.generate([PROMPT], **options)


@pytest.mark.parametrize("most", [{"max_new_tokens": 10**30}, {"max_length": 10**12}], ids=str)
def test_texts_may_be_longer_than_memory_as_long_as_they_end(plain: Any, most: dict[str, int]) -> None:
    found = plain.generate([PROMPT], eos_token_id=list(range(1, 256)), suppress_tokens=[0], **most)
    assert len(found[0]) == len(PROMPT) + 1


def test_numbers_may_be_of_numpy_or_torch(plain: Any) -> None:
    expected = plain.generate([PROMPT], temperature=1.0, top_k=3, seed=5, eos_token_id=[3, 4])
    for ids in (np.array([3, 4]), torch.tensor([3, 4])):
        found = plain.generate(
            [PROMPT], temperature=np.float64(1), top_k=np.int64(3), seed=np.int64(5), eos_token_id=ids
        )
        assert found == expected


def test_a_damaged_file_of_settings_is_refused(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "model")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json is no readable JSON"):
        tersor.capture(folder)
