"""Data that was edited between two starts of a run is noticed, even where row lengths match."""

import itertools
import json

import numpy as np
import pytest

from tests.data import tokenizers
from tunix.data import fingerprint, prompts, sft_config, sft_data, sft_stream
from tunix.data.preference import preference_batches, preference_config, preference_data
from tunix.rl.collecting import curriculum

TEXTS = [{"text": f"row {i} of text"} for i in range(9)]
PAIRS = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(9)]
RATINGS = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(9)]
ASKED = [{"prompt": f"q{i}", "answer": str(i)} for i in range(9)]


def sft(path, **settings):
    config = sft_config.SftDataConfig(max_target_length=64, batch_size=2, **settings)
    return sft_data.load(path, tokenizers.make(), config)[0]


def stream(path):
    config = sft_config.SftDataConfig(max_target_length=64, batch_size=2, shuffle_seed=0)
    return sft_stream.SftStream(path, tokenizers.make(), config, window=4)


def preferences(path, read, batches):
    config = preference_config.PreferenceDataConfig(
        max_prompt_length=8, max_response_length=8, batch_size=2
    )
    return batches(read(path, tokenizers.make(), config).examples, config)


def pairs(path):
    return preferences(path, preference_data.read_pairs, preference_batches.pair_batches)


def ratings(path):
    return preferences(path, preference_data.read_ratings, preference_batches.rating_batches)


def asked(path):
    return prompts.load(path, tokenizers.make(), prompts.PromptDataConfig(batch_size=2))[0]


def drawn(path):
    rows, _ = prompts.load_rows(path, tokenizers.make(), prompts.PromptDataConfig(batch_size=2))
    config = curriculum.CurriculumConfig()
    return curriculum.Curriculum(rows, config, batch_size=2, num_batches=4, seed=0)


KINDS = {
    "text": (sft, TEXTS, "text"),
    "packed text": (lambda path: sft(path, packing=True, num_epochs=9), TEXTS, "text"),
    "a stream": (stream, TEXTS, "text"),
    "pairs": (pairs, PAIRS, "rejected"),
    "rated answers": (ratings, RATINGS, "completion"),
    "prompts": (asked, ASKED, "prompt"),
    "a column that rewards read": (asked, ASKED, "answer"),
    "a curriculum": (drawn, ASKED, "answer"),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def after(batches, count):
    """Return where ``batches`` stand after so many, as JSON keeps it."""
    iterator = iter(batches)
    list(itertools.islice(iterator, count))
    return json.loads(json.dumps(iterator.get_state()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_the_same_length_is_refused_at_resume(kind, tmp_path):
    load, rows, column = KINDS[kind]
    path = tmp_path / "data.jsonl"
    state = after(load(write(path, rows)), 2)
    iter(load(str(path))).set_state(state)  # the same data is taken
    edited = [dict(row) for row in rows]
    edited[1][column] = edited[1][column][:-1] + "#"
    again = iter(load(write(path, edited)))
    with pytest.raises(ValueError, match="the content of its rows has changed"):
        again.set_state(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_without_a_fingerprint_is_taken_as_older_versions_saved_it(kind, tmp_path):
    load, rows, _ = KINDS[kind]
    path = write(tmp_path / "data.jsonl", rows)
    whole = iter(load(path))
    list(itertools.islice(whole, 2))
    state = json.loads(json.dumps(whole.get_state()))
    for key in (fingerprint.KEY, "window_content"):
        state.pop(key, None)
    resumed = iter(load(path))
    resumed.set_state(state)
    assert repr(next(resumed)) == repr(next(whole))


@pytest.mark.parametrize("count", range(1, 5))
def test_a_stream_notices_an_edit_of_any_row_that_it_has_read(count, tmp_path):
    path = tmp_path / "data.jsonl"
    state = after(stream(write(path, TEXTS)), count)
    read = 4 if count <= 2 else 8  # windows of four rows
    for i in range(read):
        edited = [dict(row) for row in TEXTS]
        edited[i]["text"] = "row # of text"
        with pytest.raises(ValueError, match="has changed"):
            iter(stream(write(path, edited))).set_state(state)
    iter(stream(write(path, [*TEXTS[:read], {"text": "new"}, {"text": "new"}]))).set_state(state)


def test_the_same_rows_elsewhere_and_in_another_kind_of_file_are_the_same(tmp_path):
    state = after(sft(write(tmp_path / "a.jsonl", TEXTS)), 1)
    (tmp_path / "b.json").write_text(json.dumps(TEXTS, indent=2))
    iter(sft(str(tmp_path / "b.json"))).set_state(state)
    iter(sft(TEXTS)).set_state(state)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": [{"b": "x"}]}, {"a": [{"b": "y"}]}, False),
        ({"a": None}, {"a": ""}, False),
        ({"a": object()}, {"a": object()}, True),  # it says nothing but where it lies in memory
        ({"a": np.float32(1.5)}, {"a": np.float32(2.5)}, False),
        ({"a": "\ud83d"}, {"a": "\ud83e"}, False),
    ],
)
def test_a_fingerprint_is_that_of_the_values(one, other, same):
    assert (fingerprint.of_row(one) == fingerprint.of_row(other)) == same


def test_the_order_of_rows_counts():
    assert fingerprint.combined([1, 2]) != fingerprint.combined([2, 1])
    assert fingerprint.combined([2], fingerprint.combined([1])) == fingerprint.combined([1, 2])
