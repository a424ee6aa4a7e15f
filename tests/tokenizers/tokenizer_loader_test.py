"""Tokenizers are found wherever models keep them, and every file has its say."""

import json

import pytest

from tests.tokenizers import tiny_tokenizer
from tunix.models import sources
from tunix.tokenizers import chat_template, tokenizer_adapter

IDS = {text: i for i, text in enumerate(tiny_tokenizer.SPECIAL)}


def write(directory, name, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name).write_text(text, encoding="utf-8")


@pytest.fixture
def model_dir(tmp_path):
    tokenizer = tiny_tokenizer.make()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_and_template_come_from_the_tokenizers_config(model_dir):
    write(
        model_dir,
        "tokenizer_config.json",
        {
            "bos_token": {"content": "<bos>", "lstrip": False},
            "eos_token": "<|endoftext|>",
            "pad_token": "<|end|>",
            "chat_template": tiny_tokenizer.CHATML,
        },
    )
    tokenizer = tokenizer_adapter.load_tokenizer(model_dir)
    assert (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (3, 0, 8)
    assert tokenizer.eos_ids() == (0, IDS["<|im_end|>"])
    assert tokenizer.has_chat_template


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        pytest.param(2, (0, 2), id="one id"),
        pytest.param([2, 0, 8], (0, 2, 8), id="a list; the tokenizer's own stays first"),
    ],
)
def test_generation_config_adds_stop_ids(model_dir, generation, expected):
    write(model_dir, "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    write(model_dir, "generation_config.json", {"eos_token_id": generation})
    write(model_dir, "config.json", {"eos_token_id": 5})
    assert tokenizer_adapter.load_tokenizer(model_dir).eos_ids() == expected


def test_without_other_files_the_models_config_names_the_ids(model_dir):
    write(model_dir, "config.json", {"bos_token_id": 3, "eos_token_id": [5, 6]})
    tokenizer = tokenizer_adapter.load_tokenizer(str(model_dir / "tokenizer.json"))
    assert (tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()) == (3, (5, 6), 5)


def test_a_tokenizer_without_bos_has_none_whatever_the_model_says(model_dir):
    write(model_dir, "tokenizer_config.json", {"bos_token": None, "eos_token": "<|im_end|>"})
    write(model_dir, "config.json", {"bos_token_id": 0, "eos_token_id": 0})
    assert tokenizer_adapter.load_tokenizer(model_dir).bos_id() is None


def test_truncation_and_padding_saved_with_a_tokenizer_are_switched_off(model_dir):
    tokenizer = tokenizer_adapter.load_tokenizer(model_dir)
    assert tokenizer.encode("a b c d e f") == tiny_tokenizer.make().encode("a b c d e f").ids
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"tokenizer_config.json": {"chat_template": "A"}}, "A", id="in the config"),
        pytest.param(
            {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "B"},
                                                         {"name": "default", "template": "A"}]}},
            "A", id="the default of several",
        ),
        pytest.param(
            {"tokenizer_config.json": {"chat_template": "B"}, "chat_template.json":
             {"chat_template": "A"}}, "A", id="in a file of its own",
        ),
        pytest.param(
            {"tokenizer_config.json": {"chat_template": "B"}, "chat_template.jinja": "A"},
            "A", id="as jinja",
        ),
    ],
)  # fmt: skip
def test_the_chat_template_is_found(model_dir, files, expected):
    for name, content in files.items():
        write(model_dir, name, content)
    tokenizer = tokenizer_adapter.load_tokenizer(model_dir)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == expected


def test_a_broken_template_names_its_model(model_dir):
    write(model_dir, "chat_template.jinja", "{% if %}")
    with pytest.raises(chat_template.ChatTemplateError, match=str(model_dir)):
        tokenizer_adapter.load_tokenizer(model_dir)


def test_a_special_token_outside_the_vocabulary_is_an_error(model_dir):
    write(model_dir, "tokenizer_config.json", {"eos_token": "<stop>"})
    with pytest.raises(tokenizer_adapter.TokenizerError, match="eos_token '<stop>' is not in"):
        tokenizer_adapter.load_tokenizer(model_dir)


def test_broken_json_is_named(model_dir):
    write(model_dir, "generation_config.json", "{")
    with pytest.raises(tokenizer_adapter.TokenizerError, match=r"generation_config\.json: not va"):
        tokenizer_adapter.load_tokenizer(model_dir)


def test_a_directory_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    write(tmp_path, "config.json", {})
    with pytest.raises(tokenizer_adapter.TokenizerError) as caught:
        tokenizer_adapter.load_tokenizer(tmp_path)
    assert "tokenizer.json, tokenizer.model, *.gguf" in str(caught.value)
    assert "found config.json" in str(caught.value)


@pytest.mark.parametrize("missing", ["/no/such/directory", "package:no_such_package"])
def test_a_missing_model_is_named(missing):
    with pytest.raises(sources.SourceError, match=missing.removeprefix("package:")):
        tokenizer_adapter.load_tokenizer(missing)


def test_a_file_of_another_kind_is_refused(tmp_path):
    write(tmp_path, "weights.bin", "")
    with pytest.raises(tokenizer_adapter.TokenizerError, match="not a tokenizer"):
        tokenizer_adapter.load_tokenizer(tmp_path / "weights.bin")


def test_a_sentencepiece_model_reads_the_configs_beside_it(tmp_path):
    pytest.importorskip("sentencepiece")
    from tests.tokenizers import tokenizer_adapter_test

    model = tokenizer_adapter_test.train_sentencepiece(user_defined_symbols=["<turn>"])
    (tmp_path / "tokenizer.model").write_bytes(model)
    write(tmp_path, "tokenizer_config.json", {"pad_token": "<turn>"})
    write(tmp_path, "generation_config.json", {"eos_token_id": [2, 7]})
    tokenizer = tokenizer_adapter.load_tokenizer(tmp_path)
    assert tokenizer.eos_ids() == (2, 7)
    assert tokenizer.pad_id() == tokenizer.tokenizer.piece_to_id("<turn>")
    write(tmp_path, "tokenizer_config.json", {"pad_token": "<nowhere>"})
    with pytest.raises(tokenizer_adapter.TokenizerError, match="<nowhere>"):
        tokenizer_adapter.load_tokenizer(tmp_path)


@pytest.mark.real_model
def test_the_tokenizer_of_smollm2_inside_its_gguf(real_model_path):
    tokenizer = tokenizer_adapter.load_tokenizer(real_model_path)
    assert (tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()) == (1, (2,), 2)
    assert tokenizer.prefix_ids() == []
    assert tokenizer.encode("Hello world 123") == [19556, 905, 216, 33, 34, 35]
    messages = [{"role": "user", "content": "x<|im_end|>"}, {"role": "assistant", "content": "y"}]
    encoded = tokenizer.encode_chat(messages)
    ((start, end),) = encoded.spans
    assert tokenizer.decode(encoded.ids[start:end]) == "y<|im_end|>"
    assert encoded.ids.count(2) == 3, "system, user, assistant; the typed one is text"
    assert encoded.ids[:start] == tokenizer.encode_prompt(messages[:1])
