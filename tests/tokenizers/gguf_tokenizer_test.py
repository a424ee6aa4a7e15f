"""The tokenizer of a GGUF file equals the one its metadata was written from."""

import json

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import gguf_tokenizer, tokenizer_backends

TEXTS = st.text(alphabet="abtheqz 019.,'!\n\t\u00e9e\u0301\u4e2d\U0001f600<|_im\u2581", max_size=30)
SAMPLES = [
    "the quick  brown\tfox\n\njumps 12345 times, doesn't it? I'LL say <|im_end|>!",
    "caf\u00e9 cafe\u0301 \u4e2d\u6587 \U0001f600\u200d\u2764\ufe0f   \r\n",
    "",
]


def metadata_of(tokenizer, pre, **extra):
    """Write down a byte-level BPE tokenizer as llama.cpp does."""
    model = json.loads(tokenizer.to_str())["model"]
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    added = set(tokenizer.get_added_tokens_decoder()) - special
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)],
        "tokenizer.ggml.token_type": [
            5 if i not in by_id else 3 if i in special else 4 if i in added else 1
            for i in range(max(by_id) + 1)
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


def smollm():
    """Return a tokenizer split as the SmolLM2 repository says: digits, then GPT-2."""
    tokenizer = tiny_tokenizer.make()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return tokenizer


def qwen2():
    """Return the tokenizer that ``transformers`` builds for Qwen 2 from a vocabulary."""
    model = json.loads(tiny_tokenizer.make().to_str())["model"]
    theirs = transformers.Qwen2TokenizerFast(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    theirs.add_tokens(["<tool>"])
    return theirs.backend_tokenizer


def bpe(pre, **extra):
    return gguf_tokenizer.from_metadata(metadata_of(tiny_tokenizer.make(), pre, **extra), "x.gguf")


PAIRS = {
    "gpt-2": (tiny_tokenizer.make(), bpe("gpt-2")),
    "smollm": (smollm(), gguf_tokenizer.from_metadata(metadata_of(smollm(), "smollm"), "x")),
    "qwen2": (qwen2(), gguf_tokenizer.from_metadata(metadata_of(qwen2(), "qwen2"), "x")),
}


@pytest.mark.parametrize("pre", PAIRS)
@given(text=TEXTS)
def test_ids_equal_those_of_the_original(pre, text):
    original, ours = PAIRS[pre]
    ids = original.encode(text, add_special_tokens=False).ids
    assert ours.encode(text).ids == ids
    assert ours.decode(ids, False) == original.decode(ids, False)


@pytest.mark.parametrize("text", SAMPLES)
@pytest.mark.parametrize("pre", PAIRS)
def test_ids_equal_those_of_the_original_on_prose(pre, text):
    original, ours = PAIRS[pre]
    assert ours.encode(text).ids == original.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["don", "'t", "\u010a", "\u0120LL", "\u01201234", "!!"]),
        ("smollm", ["don", "'t", "\u010a", "\u0120LL", "\u0120", "1", "2", "3", "4", "!!"]),
        ("llama-bpe", ["don", "'t", "\u010a", "\u0120LL", "\u0120", "123", "4", "!!"]),
        ("qwen2", ["don", "'t", "\u010a", "\u0120LL", "\u0120", "1", "2", "3", "4", "!!"]),
    ],
)
def test_text_is_split_by_the_published_rule(pre, expected):
    pieces = bpe(pre).pre_tokenizer.pre_tokenize_str("don't\n LL 1234!!")
    assert [piece for piece, _ in pieces] == expected


def test_llama_3_takes_whole_words_before_merging_and_adds_bos():
    # "ab" is a token, but no merge leads to it.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<bos>"])
    )
    metadata = metadata_of(tokenizer, "llama-bpe", bos_token_id=0)
    metadata["tokenizer.ggml.tokens"].append("ab")
    metadata["tokenizer.ggml.token_type"].append(1)
    whole = gguf_tokenizer.from_metadata(metadata, "x")
    assert whole.encode("ab").tokens == ["<bos>", "ab"]
    metadata |= {"tokenizer.ggml.pre": "gpt-2"}
    assert gguf_tokenizer.from_metadata(metadata, "x").encode("ab").tokens == ["a", "b"]


def test_ends_are_added_where_the_header_asks_for_them():
    both = bpe("gpt-2", bos_token_id=3, add_bos_token=True, add_eos_token=True)
    assert both.encode("a").tokens == ["<bos>", "a", "<|im_end|>"]
    neither = bpe("llama-bpe", bos_token_id=3, add_bos_token=False)
    assert neither.encode("a").tokens == ["a"]


def test_ids_with_a_role_are_read():
    metadata = metadata_of(
        smollm(), "smollm", bos_token_id=3, padding_token_id=0, eot_token_id=5, eom_token_id=8
    )
    assert gguf_tokenizer.special_ids(metadata) == tokenizer_backends.SpecialIds(
        bos=3, eos=2, pad=0, more_eos=(5, 8)
    )


def test_an_unknown_pre_tokenizer_is_named_with_a_suggestion():
    with pytest.raises(tokenizer_backends.TokenizerError) as caught:
        bpe("smolm")
    assert "x.gguf: tokenizer.ggml.pre 'smolm' is not one of" in str(caught.value)
    assert "did you mean 'smollm'?" in str(caught.value)


def test_other_kinds_of_vocabulary_are_named():
    with pytest.raises(tokenizer_backends.TokenizerError, match="model is 'bert'"):
        gguf_tokenizer.from_metadata({"tokenizer.ggml.model": "bert"}, "x.gguf")


def test_a_file_without_a_tokenizer_lists_what_it_lacks():
    with pytest.raises(tokenizer_backends.TokenizerError, match=r"lacks .*tokens.*merges"):
        gguf_tokenizer.from_metadata({"general.name": "weights only"}, "x.gguf")
