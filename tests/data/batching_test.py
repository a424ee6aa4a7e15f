"""A batch says of every token where it belongs and what it weighs."""

import numpy as np
import pytest

from tunix.data import batching, tokenize


def example(*tokens, weights=None):
    weights = [1.0] * len(tokens) if weights is None else weights
    return tokenize.TokenizedExample(np.asarray(tokens, np.int32), np.asarray(weights, np.float32))


def test_rows_are_padded_on_the_right():
    batch = batching.collate(
        [[example(5, 6, 7, weights=[0, 0, 1])], [example(8)]], num_rows=2, length=4, pad_id=9
    )
    assert batch["input_tokens"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert batch["input_mask"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_positions_restart_and_no_target_crosses_a_border_between_examples():
    batch = batching.collate(
        [[example(5, 6, 7), example(8, 9), example(4)]], num_rows=1, length=7, pad_id=0
    )
    assert batch["input_tokens"].tolist() == [[5, 6, 7, 8, 9, 4, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 3, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 0, 0]]
    assert batch["input_mask"].tolist() == [[0, 1, 1, 0, 1, 0, 0]]


def test_missing_rows_are_empty():
    batch = batching.collate([[example(5, 6)]], num_rows=3, length=2, pad_id=1)
    assert batch["input_tokens"].tolist() == [[5, 6], [1, 1], [1, 1]]
    assert batch["segment_ids"].sum() == 2
    assert batch["input_mask"].sum() == 1


def test_types_are_those_of_a_training_batch():
    batch = batching.collate([[example(5)]], num_rows=1, length=1, pad_id=0)
    assert {name: array.dtype for name, array in batch.items()} == {
        "input_tokens": np.int32,
        "input_mask": np.float32,
        "positions": np.int32,
        "segment_ids": np.int32,
    }


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="row 0 needs 3 tokens or more, the batch has 2"):
        batching.collate([[example(5, 6, 7)]], num_rows=1, length=2, pad_id=0)
    with pytest.raises(ValueError, match="2 rows do not fit a batch of 1"):
        batching.collate([[example(5)], [example(6)]], num_rows=1, length=2, pad_id=0)


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [(1024, (64, 128, 256, 512, 1024)), (100, (64, 100)), (64, (64,)), (10, (10,))],
)
def test_lengths_double_up_to_the_longest(max_length, expected):
    assert batching.length_buckets(max_length) == expected


def test_the_smallest_length_that_holds_a_row_is_chosen():
    assert [batching.bucket_for(n, (64, 128)) for n in (1, 64, 65, 128)] == [64, 64, 128, 128]
    with pytest.raises(ValueError, match="129 tokens do not fit the longest row of 128"):
        batching.bucket_for(129, (64, 128))
