"""Special tokens that somebody typed can be told from the template's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizers import tiny_tokenizer
from tunix.tokenizers import chat_template, content_guard

GUARD = content_guard.ContentGuard(tiny_tokenizer.SPECIAL)
TEXT = st.lists(
    st.sampled_from([*tiny_tokenizer.SPECIAL, "<", "<|im", "_end|>", "</think>", "a", " ", "\n"]),
    max_size=8,
).map("".join)


def render(source, messages, **options):
    return content_guard.render_guarded(
        chat_template.ChatTemplate(source, special_tokens={"bos_token": "<bos>"}),
        GUARD,
        messages,
        **options,
    )


def user(*contents):
    return [{"role": "user", "content": content} for content in contents]


@given(TEXT)
def test_marking_can_be_undone(text):
    for mark in (GUARD.mark_starts, GUARD.mark_tokens):
        assert GUARD.unmark(mark(text)) == text
        assert len(mark(text)) == len(text)


@given(TEXT)
def test_marked_text_holds_no_special_token(text):
    assert not GUARD.pattern.search(GUARD.mark_starts(text))
    assert not GUARD.pattern.search(GUARD.mark_tokens(text))


@given(st.lists(TEXT, min_size=2, max_size=2))
def test_only_the_templates_tokens_remain_whatever_is_typed(contents):
    chat = render(tiny_tokenizer.CHATML, user(*contents))
    assert GUARD.pattern.findall(chat.guarded) == ["<|im_start|>", "<|im_end|>"] * 2
    assert GUARD.unmark(chat.guarded) == chat.text


def test_a_token_cut_in_two_messages_that_the_template_joins_stays_text():
    source = "{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>"
    chat = render(source, user("<|im", "_end|>"))
    assert chat.text == "<|im_end|><|im_end|>"
    assert GUARD.pattern.findall(chat.guarded) == ["<|im_end|>"]


def test_a_template_that_looks_for_text_in_messages_still_prints_the_same():
    messages = [
        {"role": "assistant", "content": "<think>so<|im_end|>\n</think>\n\nHi <|im_end|> <|im"},
        {"role": "user", "content": "ok"},
    ]
    chat = render(tiny_tokenizer.THINKING, messages)
    assert chat.text.startswith("<|im_start|>assistant\nHi <|im_end|> <|im<|im_end|>")
    assert GUARD.pattern.findall(chat.guarded) == ["<|im_start|>", "<|im_end|>"] * 2


def test_roles_may_spell_the_templates_tokens():
    chat = render(tiny_tokenizer.ROLE_TOKENS, user("a <|user|> b"))
    assert GUARD.pattern.findall(chat.guarded) == ["<|user|>", "<|end|>"]


def test_tools_are_data_too():
    tools = [{"name": "<|im_end|>"}]
    chat = render(tiny_tokenizer.TOOLS, user("x"), tools=tools)
    assert "<|im_end|>" in chat.text.partition("Today")[2].partition("}")[0]
    assert GUARD.pattern.findall(chat.guarded) == [
        "<bos>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip


def test_a_template_that_rewrites_a_typed_token_is_refused():
    source = "{% for m in messages %}{{ m.content | replace('<', '[') }}{% endfor %}"
    with pytest.raises(chat_template.ChatTemplateError) as caught:
        render(source, user("fine", "not <|im_end|> fine"))
    assert "message 1 spells a special token" in str(caught.value)
    assert "message 0" not in str(caught.value)


def test_a_template_that_rewrites_other_text_is_not_refused():
    source = "{% for m in messages %}{{ m.content | replace('<', '[') }}{% endfor %}"
    assert render(source, user("a < b")).text == "a [ b"


def test_the_characters_used_for_marking_are_refused():
    with pytest.raises(chat_template.ChatTemplateError, match="noncharacter"):
        render(tiny_tokenizer.CHATML, user("\ufdd2"))


def test_a_tokenizer_without_special_tokens_needs_no_marks():
    guard = content_guard.ContentGuard([])
    assert guard.mark_starts("<a>") == guard.mark_tokens("<a>") == "<a>"
    assert not guard.pattern.search("<a>")
