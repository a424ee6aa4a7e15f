"""Everything wrong with data in one message: each kind once, with its rows."""

import json

import pytest

from tests.data import tokenizers
from tunix.data import errors, prompts, sft_config, sft_data
from tunix.data.preference import preference_config, preference_data


def shown(*problems, source="x"):
    first, *lines = str(errors.DataError(source, problems)).split("\n  - ")
    assert first == f"cannot use {source}:"
    return lines


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        pytest.param(["f:2: is empty"], ["f:2: is empty"], id="one row"),
        pytest.param(
            ["f:2: is empty", "f:5: is empty", "f:9: is empty"],
            ["3 rows: is empty; the first is f:2, then 5, 9"],
            id="three lines of a file",
        ),
        pytest.param(
            ["f: row 2: bad", "g: row 0: bad", "g: row 7: bad"],
            ["3 rows: bad; the first is f: row 2, then g: row 0, 7"],
            id="rows of two files",
        ),
        pytest.param(
            ["row 0: bad", "row 1: bad"], ["2 rows: bad; the first is row 0, then 1"], id="a list"
        ),
        pytest.param(
            ["f: item 3: bad", "f: item 4: bad"],
            ["2 rows: bad; the first is f: item 3, then 4"],
            id="items of a JSON list",
        ),
        pytest.param(
            ["f:2: bad", "f:3: worse", "f:4: bad"],
            ["2 rows: bad; the first is f:2, then 4", "f:3: worse"],
            id="two kinds, each where it is first met",
        ),
        pytest.param(["bad", "bad"], ["2 times: bad"], id="sentences about no row"),
        pytest.param(
            ["f:2: has 9 tokens", "f:3: has 8 tokens"],
            ["f:2: has 9 tokens", "f:3: has 8 tokens"],
            id="a few that differ in numbers stay apart",
        ),
        pytest.param(
            [f"f:{i}: bad" for i in range(1, 31)],
            ["30 rows: bad; the first is f:1, then " + ", ".join(map(str, range(2, 21)))
             + " and 10 more"],
            id="many rows are counted",
        ),
    ],
)  # fmt: skip
def test_a_repeated_problem_is_said_once_with_its_rows(problems, expected):
    assert shown(*problems) == expected
    assert errors.DataError("x", problems).problems == tuple(problems)


def test_many_problems_that_differ_in_numbers_hide_no_other_kind():
    long = [f"f:{i}: has {100 + i} tokens, 8 fit" for i in range(1, 1001)]
    lines = shown(*long, "f:2000: is empty")
    assert len(lines) == 2
    assert lines[0].startswith("1000 rows, of the first: has 101 tokens, 8 fit; the first is f:1, ")
    assert lines[0].endswith(", 20 and 980 more")
    assert lines[1] == "f:2000: is empty"


def test_a_very_long_sentence_keeps_its_place_and_its_remedy():
    (line,) = shown("f:2: columns " + "a" * 100_000 + "; rename columns")
    assert line.startswith("f:2: columns aaa")
    assert line.endswith("aaa; rename columns")
    assert len(line) < 1_100


def write(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return str(path)


def faults_of(read):
    with pytest.raises(errors.DataError) as caught:
        read()
    return caught.value.problems


def rows_of(problems):
    return {int(problem.split(": ")[0].rpartition(":")[2]) for problem in problems}


LONG = "x" * 99


def test_rows_for_tuning_are_read_parsed_and_tokenized_in_one_pass(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"txt": "neither format"},
        {"prompt": "a", "completion": "b"},
        "{broken\n",
        {"prompt": "a"},
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": LONG},
        {"prompt": "a \ud83d", "completion": "b"},
    )
    settings = sft_config.SftDataConfig(max_target_length=16)
    found = faults_of(lambda: sft_data.load(path, tokenizers.make(), settings))
    assert rows_of(found) == {1, 3, 4, 5, 6, 7}


def test_pairs_are_read_parsed_and_tokenized_in_one_pass(tmp_path):
    good = {"prompt": "a", "chosen": " b", "rejected": " c"}
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "a"},
        good,
        "{broken\n",
        good | {"chosen": ""},
        good | {"chosen": " c"},
        good | {"chosen": LONG},
    )
    settings = preference_config.PreferenceDataConfig(max_prompt_length=16, max_response_length=16)
    found = faults_of(lambda: preference_data.read_pairs(path, tokenizers.make(), settings))
    assert rows_of(found) == {1, 3, 4, 5, 6}


def test_ratings_are_read_parsed_and_tokenized_in_one_pass(tmp_path):
    good = {"prompt": "a", "completion": "b", "label": True}
    rows = [{"prompt": "a"}, good, "{broken\n", good | {"label": 3}, good | {"completion": LONG}]
    path = write(tmp_path / "a.jsonl", *rows)
    settings = preference_config.PreferenceDataConfig(max_prompt_length=16, max_response_length=16)
    found = faults_of(lambda: preference_data.read_ratings(path, tokenizers.make(), settings))
    assert rows_of(found) == {1, 3, 4, 5}


def test_prompts_are_read_parsed_and_tokenized_in_one_pass(tmp_path):
    rows = [{"prompt": "a"}, "{broken\n", {"prompt": ""}, {"prompt": LONG}, {"p": "a"}]
    path = write(tmp_path / "a.jsonl", *rows)
    settings = prompts.PromptDataConfig(max_prompt_length=16)
    found = faults_of(lambda: prompts.load(path, tokenizers.make(), settings))
    assert rows_of(found) == {2, 3, 4, 5}


def test_prompts_without_their_column_in_the_first_row_name_that_row(tmp_path):
    path = write(tmp_path / "a.jsonl", {"promt": "a"}, {"prompt": "b"}, {"prompt": ""})
    found = faults_of(lambda: prompts.load(path, tokenizers.make(), prompts.PromptDataConfig()))
    assert {1, 3} <= rows_of(found)


def test_every_source_of_a_mixture_is_read_before_anything_is_said(tmp_path):
    paths = [
        write(tmp_path / "a.jsonl", {"text": ""}),
        write(tmp_path / "b.jsonl", {"text": "b"}),
        write(tmp_path / "c.jsonl", "{broken\n", {"text": 3}),
    ]
    settings = sft_config.SftDataConfig()
    with pytest.raises(errors.DataError) as caught:
        sft_data.load_mixture(paths, [1, 1, 1], tokenizers.make(), settings)
    assert caught.value.subject == f"{paths[0]}, {paths[2]}"
    assert len(caught.value.problems) == 3


def test_every_column_of_a_row_is_looked_at(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "\\ud83d", "completion": "\\ud83e"}\n')
    found = faults_of(lambda: sft_data.load(path, tokenizers.make(), sft_config.SftDataConfig()))
    assert [problem.split("'")[1] for problem in found] == ["prompt", "completion"]
