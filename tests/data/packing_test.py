"""Packing keeps every example once, within the row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunix.data import batching, packing, tokenize

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([10], [[0]], id="a full row"),
        pytest.param([4, 6, 5, 5], [[0, 1], [2, 3]], id="pairs that fill a row"),
        pytest.param([3, 8, 7, 2], [[0, 2], [1, 3]], id="the longest goes first"),
        pytest.param([6, 6, 6], [[0], [1], [2]], id="no two fit"),
    ],
)
def test_groups_of_ten_tokens(lengths, expected):
    assert packing.first_fit_decreasing(lengths, 10) == expected


def test_an_example_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="example 1 has 11 tokens, a row holds 10"):
        packing.first_fit_decreasing([3, 11], 10)


@given(LENGTHS)
def test_every_example_is_in_one_row_and_no_row_overflows(lengths):
    groups = packing.first_fit_decreasing(lengths, 12)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 12 for group in groups)


@given(LENGTHS)
def test_no_two_rows_could_be_one(lengths):
    sums = sorted(
        sum(lengths[i] for i in group) for group in packing.first_fit_decreasing(lengths, 12)
    )
    assert len(sums) < 2 or sums[0] + sums[1] > 12


@given(LENGTHS, st.integers(1, 10), st.randoms(use_true_random=False))
def test_a_window_never_mixes_with_the_next(lengths, window, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = packing.pack_windows(np.asarray(order), np.asarray(lengths), capacity=12, window=window)
    flat = [i for row in rows for i in row]
    for start in range(0, len(order), window):
        chunk = order[start : start + window]
        assert sorted(flat[start : start + window]) == sorted(chunk)


def example(tokens, weights):
    return tokenize.TokenizedExample(np.asarray(tokens, np.int32), np.asarray(weights, np.float32))


TOKENS = st.lists(
    st.tuples(st.integers(1, 99), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=8
)
EXAMPLES = st.lists(
    TOKENS.map(lambda pairs: example([t for t, _ in pairs], [w for _, w in pairs])),
    min_size=1,
    max_size=20,
)


@given(EXAMPLES)
def test_a_packed_batch_holds_every_token_and_weight_once(examples):
    groups = packing.first_fit_decreasing([len(e.tokens) for e in examples], 8)
    rows = [[examples[i] for i in group] for group in groups]
    batch = batching.collate(rows, num_rows=len(rows), length=8, pad_id=7)
    real = batch["segment_ids"] > 0
    in_order = [examples[i] for group in groups for i in group]
    assert batch["input_tokens"][real].tolist() == [t for e in in_order for t in e.tokens]
    total = sum(e.loss_weights[1:].sum() for e in examples)
    assert batch["input_mask"].sum() == total
    assert real.sum() == sum(len(e.tokens) for e in examples)
