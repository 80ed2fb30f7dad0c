"""Text that is told token by token is what the tokenizer makes of all tokens at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_folder import save_text_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tersor.text import Written, load_tokenizer, opening, stops_at


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(save_text_model(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def of_pieces() -> Any:
    """As Llama's and Gemma's: a piece begins with the space before it, and bytes stand for what no piece does."""
    pieces = ["▁", "▁a", "▁the", "cat", "s", "▁sat", "é", "."]
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(vocabulary)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def of_words() -> Any:
    """As BERT's: a piece that begins no word says so."""
    vocabulary = ["[UNK]", "[SEP]", "cat", "##s", "sat", ".", "n", "'", "t"]
    tokenizer = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="[SEP]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def tidying() -> Any:
    """As Llama 3's: spaces before marks and in contractions are taken away from what was decoded."""
    vocabulary = ["[UNK]", "do", "n", "'", "t", "##s", ".", "i", "'", "m", "!", "n't", "'s", ",", "ve", "re"]
    words = {word: number for number, word in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


def test_a_text_that_takes_a_space_away_stops(tidying: Any) -> None:
    tokens = tidying.convert_tokens_to_ids(["do", "n", "'", "t"])
    assert tidying.decode(tokens) == "don't"
    stops = stops_at(tidying, ["don't"])
    assert [stops(tokens[: 1 + last]) for last in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("name", ["of_bytes", "of_pieces", "of_words", "tidying"])
def test_pieces_add_up_to_the_text(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=24))
    def check(tokens: list[int]) -> None:
        written = Written(tokenizer)
        pieces = [written.append(token) for token in tokens]
        pieces.append(written.finish())
        assert written.text == tokenizer.decode(tokens, skip_special_tokens=True)
        # Bytes that are no characters may be shown otherwise once more of them follow.
        assert "".join(pieces) == written.text or "\N{REPLACEMENT CHARACTER}" in written.text

    check()


def test_a_character_is_told_when_it_is_whole(of_bytes: Any) -> None:
    written = Written(of_bytes)
    tokens = of_bytes("a€b")["input_ids"]
    assert [written.append(token) for token in tokens] == ["a", "", "", "€", "b"]


def test_few_tokens_are_decoded_for_each(of_bytes: Any) -> None:
    class Counting:
        most = 0

        def decode(self, tokens: list[int], **options: Any) -> str:
            self.most = max(self.most, len(tokens))
            return str(of_bytes.decode(tokens, **options))

    counting = Counting()
    written = Written(counting)
    for token in of_bytes("of a long text, a few tokens at its end " * 20)["input_ids"]:
        written.append(token)
    assert counting.most <= 3


def test_what_texts_open_with_is_what_the_tokenizer_puts_before_them(of_words: Any, of_pieces: Any) -> None:
    assert opening(of_words) == opening(of_pieces) == []
    enclosing, before = (
        processors.TemplateProcessing(single=single, special_tokens=[("[SEP]", 1), ("[UNK]", 0)])
        for single in ("[SEP] $A [UNK]", "[SEP] [SEP] $A")
    )
    for template, begun in ((enclosing, [1]), (before, [1, 1])):
        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
        tokenizer.post_processor = template
        assert opening(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) == begun
