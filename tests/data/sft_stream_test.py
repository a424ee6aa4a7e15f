"""A stream gives every example once an epoch, and continues exactly where it was."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import tokenizers
from tunix.data import batching, errors, sft_data, sft_stream

TOKENIZER = tokenizers.make()


def rows(n):
    return [{"prompt": "a", "completion": "b" * (2 + i * i % 7)} for i in range(n)]


def stream(source, *, window=5, batch_size=2, **settings):
    config = sft_data.SftDataConfig(max_target_length=16, batch_size=batch_size, **settings)
    return sft_stream.SftStream(source, TOKENIZER, config, window=window)


def tokens_of(batches):
    """Return the lengths of all examples, sorted."""
    found = []
    for batch in batches:
        for row in batch["segment_ids"]:
            found += [int((row == k).sum()) for k in range(1, row.max() + 1)]
    return sorted(found)


@given(
    n=st.integers(1, 23),
    window=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    packing=st.booleans(),
    seed=st.none() | st.integers(0, 3),
    cut=st.integers(0, 60),
)
def test_a_stream_holds_every_example_and_resumes_exactly(
    n, window, batch_size, packing, seed, cut
):
    options = {"packing": packing, "shuffle_seed": seed, "num_epochs": 2}
    make = lambda: stream(rows(n), window=window, batch_size=batch_size, **options)  # noqa: E731
    whole = list(make())
    expected = [len(TOKENIZER.encode(r["completion"])) + 2 for r in rows(n)]
    assert tokens_of(whole) == sorted(expected * 2)
    first = iter(make())
    for _ in range(min(cut, len(whole))):
        next(first)
    second = iter(make())
    second.set_state(json.loads(json.dumps(first.get_state())))
    rest = list(second)
    assert len(rest) == len(whole) - min(cut, len(whole))
    for ours, theirs in zip(rest, whole[cut:], strict=True):
        np.testing.assert_array_equal(ours["input_tokens"], theirs["input_tokens"])
        np.testing.assert_array_equal(ours["segment_ids"], theirs["segment_ids"])


def test_in_order_and_unpacked_a_stream_is_the_data_set_in_memory():
    settings = sft_data.SftDataConfig(max_target_length=16, batch_size=3, shuffle_seed=None)
    in_memory, _ = sft_data.load(rows(11), TOKENIZER, settings)
    for window in (1, 4, 100):
        streamed = sft_stream.SftStream(rows(11), TOKENIZER, settings, window=window)
        for ours, theirs in zip(streamed, in_memory, strict=True):
            np.testing.assert_array_equal(ours["input_tokens"], theirs["input_tokens"])


def test_batches_have_the_length_of_the_first_window_unless_an_example_is_longer():
    lengths = [3, 5, 2, 4, 100, 6, 7, 3]
    source = [{"prompt": "a", "completion": "b" * n} for n in lengths]
    config = sft_data.SftDataConfig(max_target_length=200, batch_size=2, shuffle_seed=None)
    batches = sft_stream.SftStream(source, TOKENIZER, config, window=4)
    assert [b["input_tokens"].shape[1] for b in batches] == [64, 64, 200, 64]


def test_epochs_differ_in_order_and_the_seed_decides():
    one, two = (list(stream(rows(8), window=8, shuffle_seed=s, num_epochs=2)) for s in (0, 1))
    again = list(stream(rows(8), window=8, shuffle_seed=0, num_epochs=2))
    flat = [
        np.concatenate([b["input_tokens"] for b in epoch])
        for epoch in (one[:4], one[4:], two[:4], again[:4])
    ]
    assert not np.array_equal(flat[0], flat[1])
    assert not np.array_equal(flat[0], flat[2])
    np.testing.assert_array_equal(flat[0], flat[3])


def test_faults_of_the_first_window_stop_the_start_and_later_ones_name_their_row():
    bad = [*rows(7), {"prompt": "a"}, *rows(2)]
    with pytest.raises(errors.DataError, match="row 7: no column 'completion'"):
        stream(bad, window=8)
    batches = iter(stream(bad, window=4))
    next(batches)
    next(batches)
    with pytest.raises(errors.DataError, match="row 7: no column 'completion'"):
        next(batches)


def test_rows_are_read_only_as_they_are_needed():
    class Endless:
        read = 0

        def __iter__(self):
            while True:
                self.read += 1
                yield {"text": "abc"}

    source = Endless()
    batches = iter(stream(source, window=4))
    source.read = 0
    next(batches)
    assert source.read == 4


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], errors.DataError, "it is empty"),
        ((r for r in rows(2)), TypeError, "a generator can be read only once; pass a path"),
        ([{"prompt": "a", "completion": "b" * 99}], errors.DataError, "no row is left to train"),
    ],
    ids=["no rows", "a generator", "all dropped"],
)
def test_what_cannot_be_streamed_is_refused_at_the_start(source, error, message):
    with pytest.raises(error, match=message):
        stream(source, too_long="drop")


def test_a_position_of_other_settings_or_of_longer_data_is_refused():
    first = iter(stream(rows(9)))
    for _ in range(4):
        next(first)
    with pytest.raises(ValueError, match="belongs to other settings"):
        iter(stream(rows(9), packing=True)).set_state(first.get_state())
    with pytest.raises(ValueError, match="it has 3 rows now and had 5 or more"):
        iter(stream(rows(3))).set_state(first.get_state())


def test_hosts_share_the_rows_of_every_batch():
    settings = sft_data.SftDataConfig(max_target_length=16, batch_size=4, packing=True)
    load = lambda shard: list(sft_stream.SftStream(rows(30), TOKENIZER, settings, shard=shard))  # noqa: E731
    whole = load(batching.WHOLE)
    parts = [load(batching.Shard(process_index=i, process_count=2)) for i in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))
