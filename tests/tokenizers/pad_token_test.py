"""The padding of an exported reward model is a special token that ends no text."""

import json

import pytest
import tokenizers

from tunix.tokenizers import pad_token, tokenizer_adapter


def adapter(special, *, others=("a", "b"), **ids):
    """Return a tokenizer with special tokens (ids 0, 1, ...) and others behind them."""
    words = {text: i for i, text in enumerate([*special, *others])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    raw.add_special_tokens(list(special))
    roles = {role: words[text] for role, text in ids.items() if role != "more_eos"}
    more = tuple(words[text] for text in ids.get("more_eos", ()))
    found = tokenizer_adapter.SpecialIds(**roles, more_eos=more)
    return tokenizer_adapter.TokenizerAdapter(raw, special_ids=found)


@pytest.mark.parametrize(
    ("special", "ids", "expected"),
    [
        pytest.param(["</s>", "<x>", "<p>"], {"eos": "</s>", "pad": "<p>"}, "<p>", id="its own"),
        pytest.param(["</s>", "<x>"], {"eos": "</s>", "pad": "</s>"}, "<x>", id="pad is the end"),
        pytest.param(
            ["</s>", "<p>", "<x>"],
            {"eos": "</s>", "pad": "<p>", "more_eos": ["<p>"]},
            "<x>",
            id="pad is another end",
        ),
        pytest.param(
            ["</s>", "<x>", "<reserved_0>", "<pad_0>"],
            {"eos": "</s>"},
            "<pad_0>",
            id="made",
        ),
        pytest.param(["</s>", "<x>", "<reserved_0>"], {"eos": "</s>"}, "<reserved_0>", id="spare"),
        pytest.param(["<s>", "</s>", "<x>"], {"eos": "</s>", "bos": "<s>"}, "<x>", id="BOS last"),
        pytest.param(["<s>", "</s>"], {"eos": "</s>", "bos": "<s>"}, "<s>", id="only BOS"),
    ],
)
def test_the_choice(special, ids, expected):
    assert pad_token.choose(adapter(special, **ids), 10) == (expected, special.index(expected))


def test_a_token_without_embedding_is_none():
    tokenizer = adapter(["</s>", "<x>", "<pad>"], eos="</s>", pad="<pad>")
    assert pad_token.choose(tokenizer, 2) == ("<x>", 1)


def test_without_a_choice_the_reason_is_given():
    with pytest.raises(tokenizer_adapter.TokenizerError, match=r"tokens \[0\] end texts"):
        pad_token.choose(adapter(["</s>"], eos="</s>", pad="</s>"), 10)


def test_every_file_that_names_the_padding_says_the_same(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "</s>"}}')
    pad_token.declare(tmp_path, "<ü>")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / name).read_text()) == {"pad_token": "<ü>"}
    (tmp_path / "other").mkdir()
    pad_token.declare(tmp_path / "other", "<ü>")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["tokenizer_config.json"]
