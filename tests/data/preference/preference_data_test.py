"""From rows to tokenized preferences: prompts, limits, and what is said about bad rows."""

import json

import numpy as np
import pytest

from tests.data import tokenizers
from tunix.data import errors, sources
from tunix.data.preference import preference_data, preference_formats
from tunix.utils import config

USER = {"role": "user", "content": "ab?"}


def says(text):
    return {"role": "assistant", "content": text}


def settings(**changes):
    return preference_data.PreferenceDataConfig(**changes)


def pairs_of(rows, **changes):
    return preference_data.read_pairs(rows, tokenizers.make(), settings(**changes)).examples


def text(ids):
    return tokenizers.make().decode(list(ids))


def problems_of(read, rows, **changes):
    with pytest.raises(errors.DataError) as error:
        read(rows, tokenizers.make(), settings(**changes))
    return error.value.problems


def test_a_pair_of_texts_with_a_prompt():
    (pair,) = pairs_of([{"prompt": "ab", "chosen": " cd", "rejected": " e"}])
    assert text(pair.prompt) == "ab"
    assert [text(answer.tokens[:-1]) for answer in pair.answers] == [" cd", " e"]
    assert [answer.tokens[-1] for answer in pair.answers] == [tokenizers.EOS] * 2
    assert [answer.length for answer in pair.answers] == [4, 3]
    assert all(answer.mask.all() for answer in pair.answers)


def test_conversations_share_the_messages_they_begin_with():
    explicit = {"prompt": [USER], "chosen": [says("yes")], "rejected": [says("no")]}
    implicit = {"chosen": [USER, says("yes")], "rejected": [USER, says("no")]}
    told_twice = {"prompt": "ab?", **implicit}
    for row in (explicit, implicit, told_twice):
        (pair,) = pairs_of([row])
        assert text(pair.prompt) == "<|im_start|>user\nab?<|im_end|>\n<|im_start|>assistant\n"
        assert [text(a.tokens) for a in pair.answers] == ["yes<|im_end|>", "no<|im_end|>"]


def test_only_what_the_assistant_says_counts_in_a_longer_answer():
    row = {
        "prompt": [USER],
        "chosen": [says("c"), {"role": "user", "content": "d"}, says("e")],
        "rejected": [says("f")],
    }
    (pair,) = pairs_of([row])
    counting = pair.chosen.tokens[pair.chosen.mask]
    assert text(counting) == "c<|im_end|>e<|im_end|>"
    assert "user\nd" in text(pair.chosen.tokens)
    assert pair.chosen.mask[-1]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        pytest.param("Human: hi Bot: yes", "Human: hi Bot: no", "Human: hi Bot:", id="words"),
        pytest.param("the cat sat", "the car", "the", id="not within a word"),
        pytest.param("a b c", "a b", "a b", id="one continues the other"),
        pytest.param("x", "y", "", id="nothing"),
    ],
)
def test_texts_share_whole_words(chosen, rejected, prompt):
    assert preference_formats.common_text(chosen, rejected) == prompt


def test_margins_and_labels_are_read():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}
    assert pairs_of([row])[0].margin == 2.0
    rows = [
        {"prompt": p, "completion": "x" + p, "label": label}
        for p, label in (("a", True), ("b", 0), ("c", 1))
    ]
    ratings = preference_data.read_ratings(rows, tokenizers.make(), settings()).examples
    assert [rating.is_desirable for rating in ratings] == [True, False, True]


def test_every_rating_gets_the_answer_of_the_next_row_with_another_prompt():
    prompts = ["a", "a", "b", "c", "a"]
    rows = [{"prompt": p, "completion": f"{i}", "label": True} for i, p in enumerate(prompts)]
    ratings = preference_data.read_ratings(rows, tokenizers.make(), settings()).examples
    found = [text(rating.foreign.tokens[:-1]) for rating in ratings]
    assert found == ["2", "2", "3", "4", "2"]


def test_ratings_of_one_prompt_are_refused():
    rows = [{"prompt": "a", "completion": c, "label": True} for c in "xy"]
    (problem,) = problems_of(preference_data.read_ratings, rows)
    assert "all rows have the same prompt" in problem


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "choosen": "b", "rejected": "c"}, "no column 'chosen' (did you mean"),
        (GOOD | {"chosen": ""}, "column 'chosen' is empty"),
        (GOOD | {"chosen": [says("b")]}, "must both be text or both be lists of messages"),
        (GOOD | {"prompt": [USER]}, "'prompt' is a list of messages, so"),
        ({"chosen": "x", "rejected": "y"}, "share no beginning to be the prompt"),
        ({"chosen": "x y", "rejected": "x"}, "'rejected' says nothing behind the prompt"),
        ({"chosen": [USER, says("b")], "rejected": [USER]}, "'rejected' says nothing behind"),
        (
            {"prompt": [says("a")], "chosen": [USER, says("b")], "rejected": [says("c")]},
            "the answer in 'chosen' begins with role 'user'",
        ),
        (
            {"prompt": "other", "chosen": [USER, says("b")], "rejected": [USER, says("c")]},
            "the text of 'prompt' is no message that 'chosen' and 'rejected' share",
        ),
        (GOOD | {"chosen": [], "rejected": [says("b")], "prompt": [USER]}, "has no messages"),
        (GOOD | {"margin": "much"}, "'margin' must be a number, found 'much'"),
        (GOOD | {"margin": float("nan")}, "'margin' must be a finite number, got nan"),
        (GOOD | {"margin": -float("inf")}, "'margin' must be a finite number, got -inf"),
        (GOOD | {"margin": 1e300}, "'margin' must be a finite number in float32"),
        (GOOD | {"tools": "none"}, "'tools' must be a list of JSON schemas"),
        (GOOD | {"rejected": "b"}, "are the same tokens, so there is nothing to prefer"),
        (GOOD | {"prompt": "abcdef"}, "the prompt has 6 tokens, max_prompt_length is 4; raise it"),
        (GOOD | {"rejected": "bcdef"}, "longest answer has 6 tokens, max_response_length is 4"),
    ],
)
def test_a_bad_pair_is_named_with_its_file_and_line(tmp_path, row, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    (problem,) = problems_of(
        preference_data.read_pairs, path, max_prompt_length=4, max_response_length=4
    )
    assert problem.startswith(f"{path}:2")
    assert message in problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "'label' must be true (good) or false (bad), found 2"),
        ({"label": "good"}, "'label' must be true (good) or false (bad), found 'good'"),
        ({"completion": " "}, "column 'completion' is empty"),
        ({"prompt": [USER]}, "'prompt' and 'completion' must both be text or both lists"),
    ],
)
def test_a_bad_rating_is_named_with_its_row(change, message):
    good = {"prompt": "a", "completion": "b", "label": True}
    (problem,) = problems_of(preference_data.read_ratings, [good, good | change])
    assert problem.startswith("row 1")
    assert message in problem


def test_all_bad_rows_are_listed_at_once():
    rows = [GOOD | {"chosen": ""}, GOOD, GOOD | {"margin": "x"}, {"prompt": "a"}]
    found = problems_of(preference_data.read_pairs, rows)
    assert [p.partition(":")[0] for p in found] == ["row 0", "row 2", "row 3", "row 3"]


def test_truncation_keeps_the_end_of_prompts_and_the_beginning_of_answers():
    dataset = preference_data.read_pairs(
        [{"prompt": "abcdef", "chosen": "ghijk", "rejected": "l"}, GOOD],
        tokenizers.make(),
        settings(max_prompt_length=2, max_response_length=3, too_long="truncate"),
    )
    pair = dataset.examples[0]
    assert [text(x) for x in (pair.prompt, pair.chosen.tokens)] == ["ef", "ghi"]
    assert text(pair.rejected.tokens[:-1]) == "l"
    report = str(dataset.report)
    assert "Truncated 1 row (row 0)" in report
    assert "1 row (row 0) train no token that ends a reply" in report


def test_rows_can_be_dropped_and_are_reported():
    rows = [GOOD, GOOD | {"prompt": "abcdef"}, GOOD | {"rejected": "b"}]
    dataset = preference_data.read_pairs(
        rows,
        tokenizers.make(),
        settings(max_prompt_length=2, too_long="drop", identical="drop"),
    )
    assert len(dataset.examples) == dataset.report.rows == 1
    assert dataset.report.dropped == {
        "longer than max_prompt_length or max_response_length": ["row 1"],
        "both answers are the same": ["row 2"],
    }
    # The prompt once, both answers with their EOS.
    assert (dataset.report.tokens, dataset.report.trained_tokens) == (5, 4)


def test_columns_can_be_renamed():
    row = {"question": "a", "better": "b", "worse": "c"}
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    dataset = preference_data.read_pairs([row], tokenizers.make(), settings(), columns=names)
    assert text(dataset.examples[0].prompt) == "a"


def test_settings_are_checked_all_at_once():
    with pytest.raises(config.ConfigError) as error:
        settings(too_long="cut", batch_size=0, row_length=8, shuffle_seed=-1)
    assert len(error.value.problems) == 4


def test_a_prompt_that_the_template_renders_by_what_follows_is_refused():
    # Prints the length of all messages before the first one.
    template = (
        "{{ messages | map(attribute='content') | join | length }}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = {"prompt": [USER], "chosen": [says("c")], "rejected": [says("defghijklmn")]}
    with pytest.raises(errors.DataError, match=r"row 0.*the template rewrites earlier turns"):
        preference_data.read_pairs([row], tokenizers.make(template), settings())


def test_the_rows_of_a_source_keep_their_place():
    rows = sources.read_rows([GOOD, GOOD | {"chosen": "x"}])
    dataset = preference_data.tokenize_pairs(rows, tokenizers.make(), settings())
    assert [text(pair.chosen.tokens[:1]) for pair in dataset.examples] == ["b", "x"]
    assert np.array_equal(dataset.examples[0].prompt, dataset.examples[1].prompt)
