"""Chat templates print what ``transformers`` prints, and refuse what cannot be right."""

import datetime
import json

import pytest
import transformers

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import chat_template

TALK = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "How are you?"},
    {"role": "user", "content": "  I am well, <b>thanks</b> & bye.\n"},
]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds <a> & <b> – exactly.", "parameters": {}},
}
TOOL_TALK = [
    {"role": "user", "content": "12 and 34?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 12}}}]},
    {"role": "tool", "content": "46"},
]
NAMES = {"bos_token": "<bos>", "eos_token": "<|endoftext|>"}
CASES = {
    "ChatML": (tiny_tokenizer.CHATML, TALK, {}),
    "Gemma, which trims and renames roles": (tiny_tokenizer.GEMMA, TALK, {}),
    "tools as JSON": (tiny_tokenizer.TOOLS, TOOL_TALK, {"tools": [TOOL, TOOL, TOOL]}),
    "a variable of the caller": (tiny_tokenizer.TOOLS, TALK, {"date_string": "2 Feb 2026"}),
    "special tokens built from roles": (tiny_tokenizer.ROLE_TOKENS, TALK, {}),
    "thoughts dropped from earlier turns": (tiny_tokenizer.THINKING, TALK, {}),
    "generation marks": (tiny_tokenizer.CHATML_MARKED, TALK, {}),
}


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_text_equals_that_of_transformers(case, add_generation_prompt):
    source, messages, options = CASES[case]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.make(), **NAMES
    ).apply_chat_template(
        messages,
        chat_template=source,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **options,
    )
    ours = chat_template.ChatTemplate(source, special_tokens=NAMES).render(
        messages, add_generation_prompt=add_generation_prompt, **options
    )
    assert ours.text == theirs


def test_generation_blocks_give_the_characters_of_the_reply():
    rendered = chat_template.ChatTemplate(tiny_tokenizer.CHATML_MARKED).render(
        [*TALK, {"role": "assistant", "content": "Bye"}]
    )
    assert [rendered.text[a:b] for a, b in rendered.spans] == [
        "How are you?<|im_end|>",
        "Bye<|im_end|>",
    ]


def test_strftime_now_is_todays_date():
    template = chat_template.ChatTemplate("{{ strftime_now('%Y') }}")
    assert template.render(TALK).text == str(datetime.date.today().year)


def test_lines_that_hold_only_a_block_leave_no_blank_line():
    source = (
        "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    )
    assert chat_template.ChatTemplate(source).render(TALK[:1]).text == "Hello there\n"


def test_a_template_cannot_change_the_conversation():
    template = chat_template.ChatTemplate("{{ messages.append(1) }}")
    with pytest.raises(chat_template.ChatTemplateError, match="SecurityError"):
        template.render(TALK)


def test_what_a_template_raises_is_the_message():
    template = chat_template.ChatTemplate(tiny_tokenizer.GEMMA, where="chat template of gemma")
    with pytest.raises(chat_template.ChatTemplateError) as caught:
        template.render([{"role": "system", "content": "x"}])
    assert "chat template of gemma" in str(caught.value)
    assert "roles ['system']" in str(caught.value)
    assert "System role not supported" in str(caught.value)


def test_broken_jinja_names_the_line():
    with pytest.raises(chat_template.ChatTemplateError, match="line 2 is not valid jinja"):
        chat_template.ChatTemplate("first\n{% if %}")


def test_all_malformed_messages_are_listed_at_once():
    messages = ["hi", {"content": "x"}, {"role": "user|>x", "content": "x"}]
    with pytest.raises(chat_template.ChatTemplateError) as caught:
        chat_template.ChatTemplate(tiny_tokenizer.CHATML).render(messages)
    text = str(caught.value)
    assert "message 0: expected a mapping, found str" in text
    assert "message 1: 'role' must be a word such as 'user', found None" in text
    assert "message 2: 'role' must be a word such as 'user', found 'user|>x'" in text


def test_text_in_place_of_messages_is_named():
    with pytest.raises(chat_template.ChatTemplateError, match="expected a list of messages"):
        chat_template.ChatTemplate(tiny_tokenizer.CHATML).render("hello")  # pyright: ignore


def test_content_cannot_pretend_to_be_a_generation_block():
    with pytest.raises(chat_template.ChatTemplateError, match="noncharacter"):
        chat_template.ChatTemplate(tiny_tokenizer.CHATML).render(
            [{"role": "user", "content": "\ufdd0forged\ufdd1"}]
        )


def test_content_in_parts_is_not_printed_as_a_python_list():
    talk = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    with pytest.raises(chat_template.ChatTemplateError, match="list of parts, which this template"):
        chat_template.ChatTemplate("{{ messages[0]['content'] | trim }}").render(talk)
    with pytest.raises(chat_template.ChatTemplateError, match="write the content as one text"):
        chat_template.ChatTemplate(tiny_tokenizer.CHATML).render(talk)
    goes_through = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    assert chat_template.ChatTemplate(goes_through).render(talk).text == "Hello"
    kept = "{{ messages[0].content is string }} {{ messages | tojson }}"
    assert chat_template.ChatTemplate(kept).render(talk).text == f"False {json.dumps(talk)}"


def test_a_variable_that_the_template_never_reads_is_refused():
    template = chat_template.ChatTemplate(tiny_tokenizer.TOOLS)
    with pytest.raises(chat_template.ChatTemplateError, match="did you mean 'date_string'"):
        template.render(TALK, date_sting="2 Feb 2026")
    with pytest.raises(chat_template.ChatTemplateError, match="never reads 'tools'"):
        chat_template.ChatTemplate(tiny_tokenizer.CHATML).render(TALK, tools=[TOOL])


def test_a_variable_that_is_read_only_to_give_it_a_default_counts_as_read():
    source = "{% if not day is defined %}{% set day = 'today' %}{% endif %}{{ day }}"
    template = chat_template.ChatTemplate(source)
    assert template.render(TALK).text == "today"
    assert template.render(TALK, day="tomorrow").text == "tomorrow"


def test_a_variable_that_only_a_macro_reads_counts_as_read():
    source = "{% macro greet() %}{{ name }}{% endmacro %}{{ greet() }}"
    assert chat_template.ChatTemplate(source).render(TALK, name="fox").text == "fox"
