"""Columns decide what a row is; a row that is not so is named with its column."""

import pytest

from tunix.data import errors, formats, sources

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "ho"}


def parse(*rows, **options):
    return formats.parse_rows(sources.read_rows(rows), **options)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"text": "a"}, formats.Text("a"), id="text"),
        pytest.param(
            {"prompt": "a", "completion": "b"}, formats.PromptCompletion("a", "b"), id="two texts"
        ),
        pytest.param(
            {"messages": [USER, REPLY]}, formats.Conversation([USER, REPLY]), id="messages"
        ),
        pytest.param(
            {"messages": [USER], "prompt": "hi", "text": "x", "tools": [{"name": "f"}]},
            formats.Conversation([USER], [{"name": "f"}]),
            id="messages come first, tools with them",
        ),
        pytest.param(
            {"prompt": [USER, REPLY, USER], "completion": [REPLY]},
            formats.Conversation([USER, REPLY, USER, REPLY], train_from=3),
            id="messages in two columns: only the completion is trained",
        ),
    ],
)
def test_a_format_follows_from_the_columns(row, expected):
    assert parse(row) == [expected]


def test_a_named_format_is_used_although_another_would_fit():
    assert parse({"text": "a", "messages": []}, format_name="text") == [formats.Text("a")]


def test_columns_of_no_format_list_what_each_needs():
    with pytest.raises(errors.DataError) as caught:
        parse({"txt": "a"})
    assert "row 0: columns ['txt'] fit none of" in str(caught.value)
    assert "'prompt_completion': ['prompt', 'completion']" in str(caught.value)
    assert "(did you mean 'text'?)" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        ({"prompt": "a", "answer": "b"}, "data_config.columns={completion: answer} (quoted"),
        ({"question": "a", "completion": "b"}, "data_config.columns={prompt: question} (quoted"),
        (
            {"prompt": "a", "answer": "b", "id": "c"},
            "data_config.columns={completion: NAME}, NAME being one of ['answer', 'id']",
        ),
        ({"prompt": "a", "completon": "b"}, "(did you mean 'completion'?)"),
    ],
)
def test_a_lone_missing_column_is_made_of_one_that_is_there(row, remedy):
    with pytest.raises(errors.DataError) as caught:
        parse(row)
    assert remedy in str(caught.value)
    assert not any(f"did you mean {column!r}" in str(caught.value) for column in row)


def test_a_column_that_is_needed_itself_is_no_misspelled_other():
    row = sources.Row({"prompt": "a", "prompts": "b"}, "row 0")
    assert "did you mean 'prompt'" in sources.missing_column(row, "promt", ["promt"])
    assert "did you mean 'prompts'" in sources.missing_column(row, "promt", ["promt", "prompt"])


def test_a_mistyped_format_gets_a_suggestion():
    with pytest.raises(errors.DataError, match="did you mean 'messages'"):
        parse({"messages": []}, format_name="mesages")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        pytest.param({"massages": []}, "row 1: no column 'messages' (did you mean 'massages'?)",
                     id="a missing column"),
        pytest.param({"messages": "hi"},
                     "row 1: column 'messages': expected a list of messages, found str", id="text"),
        pytest.param({"messages": []}, "row 1: column 'messages': has no messages", id="empty"),
        pytest.param({"messages": ["hi"]}, "message 0: expected an object with role and content",
                     id="a message that is text"),
        pytest.param({"messages": [{"from": "user", "content": "x"}]},
                     "message 0: 'role' must be a word such as 'user', found None, its keys are "
                     "['content', 'from']", id="other keys"),
        pytest.param({"messages": [USER, {"role": "assistant"}]}, "message 1: 'content' is missing",
                     id="no content"),
        pytest.param({"messages": [{"role": "user", "content": 3}]},
                     "message 0: 'content' must be text, found int", id="a number"),
        pytest.param({"messages": [USER, {"role": "assistant", "content": ""}]},
                     "message 1: the assistant says nothing", id="an empty reply"),
        pytest.param({"messages": [USER], "tools": "f"},
                     "row 1: column 'tools' must be a list of JSON schemas, found str", id="tools"),
    ],
)  # fmt: skip
def test_a_faulty_conversation_is_named(row, problem):
    with pytest.raises(errors.DataError) as caught:
        parse({"messages": [USER]}, row)
    assert problem in str(caught.value)


def test_a_reply_may_be_a_call_of_a_tool_alone():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert parse({"messages": [USER, call]}) == [formats.Conversation([USER, call])]


def test_faulty_texts_are_named_all_at_once():
    with pytest.raises(errors.DataError) as caught:
        parse({"prompt": "a", "completion": "b"}, {"prompt": 3, "completion": ""},
              {"prompt": "a", "completion": ["b"]}, {"prompt": "a"})  # fmt: skip
    assert caught.value.problems == (
        "row 1: column 'prompt' must be text, found int; put it in quotes, or remove the row",
        "row 1: column 'completion' is empty; remove the row or write it",
        "row 2: column 'completion' must be text, found list; put it in quotes, or remove the row",
        "row 3: no column 'completion'; found ['prompt']; every row must be a 'prompt_completion'",
    )
