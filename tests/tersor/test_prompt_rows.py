"""Rows of ids with padding in front, behind and between: the tokens of transformers, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import VOCABULARY, decoder

from tersor import InputError, optimize_model

NEW = 6


def pair(name: str) -> tuple[Any, Any]:
    model = decoder(name)
    ids = torch.randint(3, VOCABULARY, (1, 9))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, optimize_model(model, ["kv-cache"], "torch", example_inputs=given)


def masked(*gaps: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of 30 ids, with padding at ``gaps`` of the second."""
    ids = torch.randint(3, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for gap in gaps:
        mask[1, gap] = 0
    return ids, mask


def theirs(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_padding_in_front_is_that_of_transformers(name: str) -> None:
    model, fast = pair(name)
    ids, mask = masked(slice(0, 11))
    found = fast.generate(ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=None)
    assert torch.equal(found[:, 30:], theirs(model, ids, mask))


def test_padding_between_tokens_is_that_of_transformers_where_all_are_seen() -> None:
    model, fast = pair("llama")
    ids, mask = masked(slice(24, 28))
    found = fast.generate(ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=None)
    assert torch.equal(found[:, 30:], theirs(model, ids, mask))


def test_rows_of_no_tokens_are_empty_prompts() -> None:
    _, fast = pair("gemma3")
    with pytest.raises(InputError, match="prompt 0 is empty"):
        fast.generate(torch.ones(1, 0, dtype=torch.int64))


def test_padding_between_tokens_is_refused_where_layers_look_so_many_places_back() -> None:
    _, fast = pair("gemma3")
    ids, mask = masked(slice(0, 2), slice(24, 28))
    with pytest.raises(
        InputError, match=r"row 1 has padding between its tokens, and layers .* look \d+ places"
    ):
        fast.generate(ids, attention_mask=mask, max_new_tokens=NEW)
