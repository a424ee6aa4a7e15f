"""Translation pairs of both common layouts become prompts with completions."""

import pytest

from tests.data import tokenizers
from tunix.data import errors, sft_data, translation
from tunix.utils import config

PREFIX, SUFFIX = "Translate this into French:\n", "\n"


def pair(**changes):
    options = {"source": "en", "target": "fr", "prefix": PREFIX, "suffix": SUFFIX}
    return translation.TranslationConfig(**(options | changes))


def load(rows, settings, **options):
    tokenizer = tokenizers.make(bos="<bos>")
    batches, account = sft_data.load(
        rows, tokenizer, sft_data.SftDataConfig(translation=settings, batch_size=1, **options)
    )
    batch = next(iter(batches))
    tokens, weights = batch["input_tokens"][0], batch["input_mask"][0]
    length = int(batch["segment_ids"].sum())
    text = tokenizer.decode(tokens[:length].tolist())
    return text, tokenizer.decode(tokens[weights > 0].tolist()), account


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"translation": {"en": "the fox", "fr": "le renard"}}, pair()),
        ({"src": "the fox", "dst": "le renard"}, pair(source="src", target="dst")),
        ({"src": b"the fox", "dst": b"le renard"}, pair(source="src", target="dst")),
    ],
    ids=["OPUS-100", "MTNT", "MTNT of TFDS"],
)
def test_the_target_is_trained_and_the_instruction_is_not(row, settings):
    text, trained, account = load([row], settings)
    assert text == "<bos>Translate this into French:\nthe fox\nle renard<|endoftext|>"
    assert trained == "le renard<|endoftext|>"
    assert account.rows == 1


def test_a_pair_may_be_a_chat():
    text, trained, _ = load(
        [{"translation": {"en": "a", "fr": "b"}}], pair(suffix="", as_chat=True)
    )
    assert "<|im_start|>user\nTranslate this into French:\na<|im_end|>" in text
    assert trained == "b<|im_end|>"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"translation": {"en": "a", "fr": ""}},
            "row 1: column 'translation': expected text in 'fr'",
        ),
        ({"translation": {"en": "a", "de": "b"}}, "expected text in 'fr', found only ['de', 'en']"),
        ({"translation": "a"}, "column 'translation' must hold texts by language, found str"),
        ({"english": "a", "fr": "b"}, "row 1: expected text in 'en', found only ['english', 'fr']"),
    ],
    ids=["empty", "another language", "text", "other columns"],
)
def test_a_pair_without_a_side_is_named(row, problem):
    with pytest.raises(errors.DataError) as caught:
        load([{"translation": {"en": "a", "fr": "b"}}, row], pair())
    assert problem in str(caught.value)


def test_translating_to_the_same_language_is_refused():
    with pytest.raises(config.ConfigError, match="source and target are both 'en'"):
        pair(target="en")
