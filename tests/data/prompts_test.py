"""Prompts keep their columns, and one that is too long is never cut."""

import json

import pytest

from tests.data import tokenizers
from tunix.data import errors, prompts
from tunix.utils import config

TOKENIZER = tokenizers.make()
ASK = [{"role": "user", "content": "12 and 34?"}]


def load(rows, **settings):
    options = {"shuffle_seed": None, "last_batch": "keep", "batch_size": 2} | settings
    return prompts.load(rows, TOKENIZER, prompts.PromptDataConfig(**options))


def test_batches_hold_prompts_and_columns_as_they_are():
    rows = [
        {"answer": 46, "prompt": ASK},
        {"answer": 3, "prompt": "1+2="},
        {"answer": 0, "prompt": "0"},
    ]
    batches, account = load(rows)
    assert list(batches) == [
        {"prompts": [ASK, "1+2="], "answer": [46, 3]},
        {"prompts": ["0"], "answer": [0]},
    ]
    assert account.rows == 3
    longest = len(TOKENIZER.encode_prompt(ASK))
    assert str(account) == (
        f"prompts: 3 rows, {longest + 5} tokens, the longest row has {longest}."
    )


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"prompts": "a"}, {}),
        ({"prompt": "a"}, {}),
        ({"question": "a"}, {"prompt_column": "question"}),
    ],
)
def test_the_prompt_column_is_found_or_named(row, settings):
    batches, _ = load([row], **settings)
    assert list(batches) == [{"prompts": ["a"]}]


def test_a_system_prompt_goes_before_every_prompt_and_counts():
    system = {"role": "system", "content": "Be brief."}
    batches, account = load(
        [{"question": "1+1?"}, {"question": ASK}],
        prompt_column="question",
        system_prompt="Be brief.",
    )
    asked = [[system, {"role": "user", "content": "1+1?"}], [system, *ASK]]
    assert list(batches) == [{"prompts": asked}]
    assert account.longest == max(len(TOKENIZER.encode_prompt(turns)) for turns in asked)
    with pytest.raises(errors.DataError, match="has a system message of its own"):
        load([{"prompt": [system, *ASK]}], system_prompt="Be brief.")


def test_a_file_is_read_like_a_list(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "n": 1}) for p in "abc"))
    batches, account = load(path)
    assert [b["prompts"] for b in batches] == [["a", "b"], ["c"]]
    assert account.source == str(path)


def test_a_prompt_that_is_too_long_stops_everything_and_is_named():
    with pytest.raises(errors.DataError) as caught:
        load([{"prompt": "a"}, {"prompt": "a b c d"}], max_prompt_length=3)
    assert "row 1: the prompt has 7 tokens, max_prompt_length is 3" in str(caught.value)


def test_a_prompt_of_messages_is_counted_with_its_template():
    length = len(TOKENIZER.encode_prompt(ASK))
    load([{"prompt": ASK}], max_prompt_length=length)
    with pytest.raises(errors.DataError, match=f"the prompt has {length} tokens"):
        load([{"prompt": ASK}], max_prompt_length=length - 1)


def test_prompts_that_are_too_long_can_be_filtered_but_not_all_of_them():
    rows = [{"prompt": "a"}, {"prompt": "a b c d"}]
    batches, account = load(rows, max_prompt_length=3, too_long="filter")
    assert [b["prompts"] for b in batches] == [["a"]]
    assert account.dropped == {"prompt longer than 3 tokens": ["row 1"]}
    with pytest.raises(errors.DataError, match="no prompt is left"):
        load(rows[1:], max_prompt_length=3, too_long="filter")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        pytest.param({"prompt": "b"}, "row 1: no column 'answer'", id="a missing column"),
        pytest.param({"prompt": "b", "answr": 1},
                     "row 1: no column 'answer' (did you mean 'answr'?)", id="a mistyped column"),
        pytest.param({"prompt": "b", "answer": 1, "x": 2},
                     "row 1: has a column 'x' that row 0 has not", id="a further column"),
        pytest.param({"prompt": "", "answer": 1}, "row 1: column 'prompt' is empty", id="empty"),
        pytest.param({"prompt": [], "answer": 1}, "row 1: column 'prompt': has no messages",
                     id="no messages"),
        pytest.param({"prompt": 7, "answer": 1}, "row 1: column 'prompt': expected a list",
                     id="a number"),
        pytest.param({"prompt": [{"role": "a b", "content": "x"}], "answer": 1},
                     "row 1: column 'prompt': message 0: 'role' 'a b' is not one of",
                     id="a role that is no word"),
    ],
)  # fmt: skip
def test_a_row_that_differs_from_the_first_is_named(row, problem):
    with pytest.raises(errors.DataError) as caught:
        load([{"prompt": "a", "answer": 0}, row])
    assert problem in str(caught.value)


def test_data_without_a_prompt_column_says_how_to_name_it():
    with pytest.raises(errors.DataError, match=r"no column 'prompts' .*set prompt_column"):
        load([{"promts": "a"}])
    with pytest.raises(errors.DataError, match="no column 'question'"):
        load([{"prompt": "a"}], prompt_column="question")


def test_a_column_may_not_take_the_name_of_the_rollouts_own():
    with pytest.raises(errors.DataError, match="column 'completions' would hide"):
        load([{"prompt": "a", "completions": "b"}])


def test_short_batches_are_dropped_unless_asked_for_and_order_is_resumed():
    rows = [{"prompt": str(i)} for i in range(9)]
    batches, _ = load(rows, shuffle_seed=1, last_batch="drop", num_epochs=2)
    whole, first, second = list(batches), iter(batches), iter(batches)
    assert len(whole) == 8
    for _ in range(5):
        next(first)
    second.set_state(first.get_state())
    assert list(second) == whole[5:]


def test_a_prompt_that_holds_its_answer_is_refused():
    question = {"role": "user", "content": "2 + 2?"}
    answer = {"role": "assistant", "content": "4"}
    load([{"prompt": [question, answer, question]}])
    with pytest.raises(errors.DataError, match=r"row 0: column 'prompt' ends with the assistant's"):
        load([{"prompt": [question, answer]}])


def test_every_bad_setting_is_named():
    with pytest.raises(config.ConfigError) as caught:
        prompts.PromptDataConfig(
            max_prompt_length=0,
            too_long="truncate",
            batch_size=0,
            shuffle_seed=-1,
            num_epochs=0,
            last_batch="pad",
        )
    assert len(caught.value.problems) == 6


def test_prompts_are_left_out_by_their_solve_rate_and_counted():
    rows = [{"prompt": p, "rate": rate} for p, rate in zip("abcd", (0.0, 0.2, 0.9, 1), strict=True)]
    settings = {"solve_rate_column": "rate", "min_solve_rate": 0.1, "max_solve_rate": 0.9}
    batches, account = load(rows, **settings)
    assert [b["prompts"] for b in batches] == [["b", "c"]]
    assert account.dropped == {
        "solve rate below 0.1": ["row 0"],
        "solve rate above 0.9": ["row 3"],
    }
    with pytest.raises(errors.DataError, match=r"row 1: column 'rate' must be a share.*'often'"):
        load([rows[0], {"prompt": "x", "rate": "often"}], **settings)
    with pytest.raises(config.ConfigError, match="not read without solve_rate_column"):
        prompts.PromptDataConfig(min_solve_rate=0.5)
