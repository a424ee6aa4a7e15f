"""Held-out rows as questions: what is asked, what is compared with, what is left out."""

import pytest

from tests.data import tokenizers
from tunix.data import errors, questions, sft_config, sources, translation

TOKENIZER = tokenizers.make()


def ask(rows, limit=None, **settings):
    found = [sources.Row(values, f"row {i}") for i, values in enumerate(rows)]
    settings = sft_config.SftDataConfig(**settings)
    return questions.from_rows(found, TOKENIZER, settings, limit=limit, name="held out")


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def test_the_last_reply_of_a_chat_is_asked_for_and_what_came_before_is_the_prompt():
    turns = [say("user", "1"), say("assistant", "2"), say("user", "3"), say("assistant", "4")]
    asked, account = ask([{"messages": turns, "kind": "x"}])
    assert asked.columns == {"reference": ["4"], "messages": [turns], "kind": ["x"]}
    assert list(asked.token_ids) == [TOKENIZER.encode_prompt(turns[:3])]
    assert asked.texts[0].endswith("3<|im_end|>\n<|im_start|>assistant\n")
    assert (account.rows, account.tokens) == (1, len(asked.token_ids[0]))


def test_a_reply_without_weight_is_context():
    turns = [say("user", "1"), say("assistant", "2"), say("user", "3")]
    asked, _ = ask([{"messages": [*turns, say("assistant", "4", weight=0)]}])
    assert asked.columns["reference"] == ["2"]


def test_a_completion_is_asked_for_where_training_would_begin_it():
    asked, _ = ask([{"prompt": "1 + 1 =", "completion": " 2", "level": 3}])
    assert asked.columns == {"reference": [" 2"], "level": [3]}
    assert (list(asked.token_ids), asked.texts) == (
        [TOKENIZER.encode_prompt("1 + 1 =")],
        ["1 + 1 ="],
    )


def test_a_translation_is_asked_for_as_it_is_trained():
    settings = translation.TranslationConfig(source="en", target="de", prefix="German: ")
    asked, _ = ask([{"translation": {"en": "yes", "de": "ja"}}], translation=settings)
    assert (asked.texts, asked.columns["reference"]) == (["German: yes"], ["ja"])


def test_a_limit_takes_rows_from_everywhere():
    rows = [{"prompt": str(i), "completion": "x"} for i in range(10)]
    assert ask(rows, limit=4)[0].texts == ["0", "2", "5", "7"]
    assert ask(rows, limit=99)[0].texts == [str(i) for i in range(10)]


def test_columns_that_only_some_rows_have_are_left_out():
    asked, _ = ask([{"prompt": "a", "completion": "b", "x": 1}, {"prompt": "c", "completion": "d"}])
    assert set(asked.columns) == {"reference"}


def test_a_prompt_that_is_too_long_is_left_out_and_reported():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a" * 40, "completion": "b"}]
    asked, account = ask(rows, max_target_length=8)
    assert asked.texts == ["a"]
    assert account.dropped == {"prompt longer than 8 tokens": ["row 1"]}
    with pytest.raises(errors.DataError, match=r"no question is left.*longer than 8 tokens"):
        ask(rows[1:], max_target_length=8)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"text": "x"}, "row 0: a text has no prompt", id="text"),
        pytest.param({"messages": [say("user", "1")]}, "row 0: .*no.*reply", id="no reply"),
        pytest.param({"prompt": " ", "completion": "x"}, "'prompt' is empty", id="empty prompt"),
        pytest.param(
            {"prompt": "1", "completion": "2", "reference": "3"}, "would hide", id="own reference"
        ),
        pytest.param(
            {"messages": [say("user", "1"), say("assistant", [{"type": "text", "text": "2"}])]},
            "is no text",
            id="reply of parts",
        ),
    ],
)
def test_a_row_that_asks_nothing_is_named(row, message):
    with pytest.raises(errors.DataError, match=message):
        ask([row])


def test_rows_without_a_reply_are_left_out_where_the_settings_say_so():
    rows = [
        {"messages": [say("user", "1")]},
        {"messages": [say("user", "1"), say("assistant", "2")]},
    ]
    asked, account = ask(rows, untrainable="drop")
    assert asked.columns["reference"] == ["2"]
    assert account.rows_dropped == 1
