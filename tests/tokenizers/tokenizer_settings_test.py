"""Files beside a tokenizer: several templates by name, and values of every wrong kind."""

import datetime
import json

import pytest
import transformers

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import chat_template, tokenizer_adapter

USER = {"role": "user", "content": "x"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
ASKED = "{{ messages[0].content }}"
NAMED = {
    "default": "default:{{ messages[0].content }}",
    "tool_use": "tools:{{ messages[0].content }}{{ tools | tojson }}",
    "rag": "rag:{{ messages[0].content }}{{ documents | tojson }}",
}


@pytest.fixture
def folder(tmp_path):
    tiny_tokenizer.make().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    return tmp_path


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def in_the_config(folder, names):
    entries = [{"name": name, "template": NAMED[name]} for name in names]
    write(folder, "tokenizer_config.json", {"eos_token": "<|endoftext|>", "chat_template": entries})


def in_files(folder, names):
    for name in names:
        path = f"additional_chat_templates/{name}.jinja"
        write(folder, "chat_template.jinja" if name == "default" else path, NAMED[name])


@pytest.mark.parametrize("places", [in_the_config, in_files])
@pytest.mark.parametrize("names", [["default", "tool_use", "rag"], ["tool_use", "default"],
                                   ["default", "rag"], ["default"]])  # fmt: skip
@pytest.mark.parametrize("tools", [None, TOOLS, []])
def test_the_template_is_the_one_that_transformers_chooses(folder, places, names, tools):
    places(folder, names)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = tokenizer_adapter.load_tokenizer(folder)
    wrapped = tokenizer_adapter.TokenizerAdapter(theirs)
    options = {} if tools is None else {"tools": tools}
    if tools and "tool_use" not in names:
        with pytest.raises(chat_template.ChatTemplateError, match="never reads 'tools'"):
            ours.apply_chat_template([USER], **options)
        return
    expected = theirs.apply_chat_template([USER], tokenize=False, **options)
    assert expected.startswith("tools:x" if tools is not None and len(names) > 1 and
                               "tool_use" in names else "default:x")  # fmt: skip
    for tokenizer in (ours, wrapped, tokenizer_adapter.TokenizerAdapter(ours)):
        assert tokenizer.apply_chat_template([USER], **options) == expected
        assert tokenizer.decode(tokenizer.encode_prompt([USER], **options)) == expected


def test_a_conversation_whose_template_is_not_there_names_those_that_are(folder):
    in_the_config(folder, ["tool_use", "rag"])
    tokenizer = tokenizer_adapter.load_tokenizer(folder)
    assert tokenizer.encode_prompt([USER], tools=TOOLS)
    with pytest.raises(chat_template.ChatTemplateError) as caught:
        tokenizer.encode_prompt([USER])
    assert "chat templates called ['rag', 'tool_use'], and for this conversation needs one" in str(
        caught.value
    )


def test_the_tokens_that_close_replies_of_every_template_end_a_generation(folder):
    closes = "{% for m in messages %}{{ m.content }}TOKEN{% endfor %}{{ tools }}"
    write(folder, "chat_template.jinja", closes.replace("TOKEN", "<|im_end|>"))
    write(folder, "additional_chat_templates/tool_use.jinja", closes.replace("TOKEN", "<|end|>"))
    ids = {text: i for i, text in enumerate(tiny_tokenizer.SPECIAL)}
    found = tokenizer_adapter.load_tokenizer(folder).eos_ids()
    assert found == (0, ids["<|im_end|>"], ids["<|end|>"])


def test_a_fixed_date_is_what_templates_print(folder):
    write(folder, "chat_template.jinja", "{{ strftime_now('%d %b %Y') }}: " + ASKED)
    date = datetime.date(2024, 7, 26)
    fixed = tokenizer_adapter.load_tokenizer(folder, date=date)
    assert fixed.apply_chat_template([USER]) == "26 Jul 2024: x"
    assert tokenizer_adapter.TokenizerAdapter(fixed).apply_chat_template([USER]) == "26 Jul 2024: x"
    today = tokenizer_adapter.load_tokenizer(folder)
    assert today.apply_chat_template([USER]) == f"{datetime.date.today():%d %b %Y}: x"
    assert today.reads_date
    write(folder, "chat_template.jinja", NAMED["default"])
    assert not tokenizer_adapter.load_tokenizer(folder).reads_date


def test_all_texts_of_one_tokenizer_tell_the_same_time(folder):
    write(folder, "chat_template.jinja", "{{ strftime_now('%H:%M:%S.%f') }}" + ASKED)
    tokenizer = tokenizer_adapter.load_tokenizer(folder)
    assert len({tokenizer.apply_chat_template([USER]) for _ in range(5)}) == 1


WRONG = {
    "eos_token, a number": ("tokenizer_config.json", {"eos_token": 2},
                            "eos_token must be the text of a token, in quotes, found 2"),
    "bos_token, zero": ("tokenizer_config.json", {"bos_token": 0}, "bos_token must be the text"),
    "pad_token, a list": ("tokenizer_config.json", {"pad_token": ["a"]}, "pad_token must be the"),
    "eos_token without content": ("tokenizer_config.json", {"eos_token": {"lstrip": False}},
                                  "eos_token must be the text of a token"),
    "bos_token in the other file": ("special_tokens_map.json", {"bos_token": 1.5},
                                    "bos_token must be the text"),
    "chat_template, a number": ("tokenizer_config.json", {"chat_template": 3},
                                "chat_template must be jinja text, or a list of objects with a"),
    "chat_template, a list of texts": ("tokenizer_config.json", {"chat_template": ["a"]},
                                       "chat_template must be jinja text"),
    "chat_template without a name": ("tokenizer_config.json",
                                     {"chat_template": [{"template": "a"}]}, "chat_template must"),
    "chat_template, true": ("chat_template.json", {"chat_template": True}, "chat_template must be"),
    "eos_token_id, text": ("generation_config.json", {"eos_token_id": "1"},
                           "eos_token_id must be the number of a token, or a list of numbers, fo"),
    "eos_token_id, a fraction": ("generation_config.json", {"eos_token_id": 1.5}, "eos_token_id m"),
    "eos_token_id, true": ("config.json", {"eos_token_id": True}, "eos_token_id must be the num"),
    "eos_token_id, texts": ("config.json", {"eos_token_id": [1, "2"]}, "eos_token_id must be the"),
    "pad_token_id, an object": ("config.json", {"pad_token_id": {}}, "pad_token_id must be the"),
    "pad_token_id, huge": ("config.json", {"pad_token_id": 10**30}, "pad_token_id must be the"),
    "eos_token_id, negative": ("config.json", {"eos_token_id": -2}, "eos_token_id must be the num"),
    "a list in place of the config": ("tokenizer_config.json", [], "expected a JSON object, found "
                                      "list; copy the file again"),
    "a number in place of the config": ("generation_config.json", 5, "expected a JSON object"),
    "text in place of tokens": ("special_tokens_map.json", '"x"', "expected a JSON object, found"),
    "an empty config": ("tokenizer_config.json", "", "not valid JSON at column 1"),
    "a config cut off": ("tokenizer_config.json", '{"eos_token": "<|e', "not valid JSON at column"),
    "a config 1,000 deep": ("generation_config.json", "[" * 1000 + "]" * 1000, "nests more than"),
    "a number of 10,000 digits": ("config.json", '{"eos_token_id": ' + "1" * 10_000 + "}",
                                  "has a whole number of more than 4,300 digits"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_a_wrong_kind_is_named_with_its_file(folder, case):
    name, content, problem = WRONG[case]
    write(folder, name, content)
    with pytest.raises(tokenizer_adapter.TokenizerError) as caught:
        tokenizer_adapter.load_tokenizer(folder)
    assert f"\n  - {folder / name}: {problem}" in str(caught.value)


def test_all_faults_are_listed_at_once(folder):
    write(folder, "tokenizer_config.json", {"eos_token": 1, "pad_token": "<nowhere>"})
    write(folder, "generation_config.json", {"eos_token_id": "1"})
    (folder / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(tokenizer_adapter.TokenizerError) as caught:
        tokenizer_adapter.load_tokenizer(folder)
    assert str(caught.value).count("\n  - ") == 4
    assert "pad_token '<nowhere>' is not in the tokenizer's vocabulary" in str(caught.value)
    assert "chat_template.jinja: not UTF-8 at byte 1" in str(caught.value)


def test_a_token_of_half_a_character_is_none_of_the_vocabulary(folder):
    write(folder, "tokenizer_config.json", {"eos_token": "\ud83d"})
    with pytest.raises(tokenizer_adapter.TokenizerError, match=r"tokenizer_config.json: eos_token"):
        tokenizer_adapter.load_tokenizer(folder)


def test_minus_one_says_that_there_is_no_token(folder):
    write(folder, "tokenizer_config.json", {})
    write(folder, "config.json", {"bos_token_id": -1, "eos_token_id": 2, "pad_token_id": -1})
    tokenizer = tokenizer_adapter.load_tokenizer(folder)
    assert (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (None, 2, 2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param(tiny_tokenizer.make().to_str()[:500], id="cut off"),
        pytest.param("5", id="a number"),
        pytest.param("[" * 1000, id="nested"),
        pytest.param('{"model": {"type": "BPE"}}', id="without a vocabulary"),
    ],
)
def test_a_damaged_tokenizer_is_named(folder, content):
    write(folder, "tokenizer.json", content)
    with pytest.raises(tokenizer_adapter.TokenizerError) as caught:
        tokenizer_adapter.load_tokenizer(folder)
    place = (
        f"{folder / 'tokenizer.json'}: not a tokenizer that can be read ({len(content):,} bytes)"
    )
    assert str(caught.value).startswith(place)
    assert "copy the file again from where the model is published" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x0a\x05\xff", b"{}" * 300])
def test_a_damaged_sentencepiece_model_is_named(tmp_path, content):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(tokenizer_adapter.TokenizerError) as caught:
        tokenizer_adapter.load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.model") in str(caught.value)
    assert "again from where" in str(caught.value)


def test_half_a_character_is_refused_in_every_text(folder):
    write(folder, "chat_template.jinja", NAMED["default"])
    tokenizer = tokenizer_adapter.load_tokenizer(folder)
    for encode in (
        tokenizer.encode_text,
        tokenizer.encode_ordinary,
        tokenizer.encode_prompt,
        lambda text: tokenizer.encode_prompt([USER | {"content": text}]),
    ):
        with pytest.raises(tokenizer_adapter.TokenizerError, match=r"'.ud83d' at position"):
            encode("a \ud83d b")
        assert encode("a \U0001f600 b")
