"""The order of batches depends on seed and epoch alone, and is found again exactly."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunix.data import iterators, packing


def make(size=10, batch_size=3, seed=0, epochs=2, last="keep", group=None, dataset=None):
    return iterators.BatchIterator(
        range(size) if dataset is None else dataset,
        batch_size,
        seed,
        epochs,
        collate=lambda rows: [example for row in rows for example in row],
        last_batch=last,
        group=group,
    )


def pack(order):
    return packing.pack_windows(order, np.arange(1, 41) % 7 + 1, capacity=9, window=5)


def test_without_a_seed_the_order_is_that_of_the_data():
    assert list(make(5, 2, None, 1)) == [[0, 1], [2, 3], [4]]


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own():
    batches = list(make())
    first, second = ([i for batch in half for i in batch] for half in (batches[:4], batches[4:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    assert list(make()) == list(make())
    assert list(make()) != list(make(seed=1))


@pytest.mark.parametrize(("last", "sizes"), [("keep", [3, 3, 3, 1]), ("drop", [3, 3, 3])])
def test_the_short_batch_at_the_end_of_an_epoch(last, sizes):
    iterator = make(last=last)
    assert [len(batch) for batch in iterator] == sizes * 2
    assert len(iterator) == len(sizes) * 2


def test_without_num_epochs_the_data_repeats_for_ever():
    iterator = make(2, 2, 0, None)
    batches = [sorted(next(iterator)) for _ in range(50)]
    assert batches == [[0, 1]] * 50
    with pytest.raises(TypeError, match="has no length"):
        len(iterator)


@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 7),
    seed=st.none() | st.integers(0, 5),
    packed=st.booleans(),
    cut=st.integers(0, 200),
)
def test_a_resumed_iterator_gives_what_an_uninterrupted_one_would(
    size, batch_size, seed, packed, cut
):
    options = {"epochs": 3, "group": pack if packed else None}
    whole = list(make(size, batch_size, seed, **options))
    first = make(size, batch_size, seed, **options)
    head = [next(first) for _ in range(min(cut, len(whole)))]
    state = json.loads(json.dumps(first.get_state()))
    second = make(size, batch_size, seed, **options)
    second.set_state(state)
    assert head + list(second) == whole
    assert list(second) == [], "what is finished stays finished"


def test_a_finished_iterator_resumes_as_finished():
    done = make()
    list(done)
    again = make()
    again.set_state(done.get_state())
    assert list(again) == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"size": 11}, id="more rows"),
        pytest.param({"seed": 1}, id="another seed"),
        pytest.param({"batch_size": 2}, id="another batch size"),
        pytest.param({"group": lambda order: order.reshape(5, 2)}, id="another packing"),
    ],
)
def test_a_position_in_other_data_is_refused(other):
    with pytest.raises(ValueError, match="belongs to other data or settings"):
        make(**other).set_state(make().get_state())


def test_more_epochs_may_be_added_to_a_run():
    short = make(epochs=1)
    list(short)
    longer = make(epochs=2)
    longer.set_state(short.get_state())
    assert list(longer) == list(make(epochs=2))[4:]


def test_data_that_makes_no_batch_is_refused():
    with pytest.raises(ValueError, match="2 examples make no full batch of 3 rows"):
        make(size=2, last="drop")


def test_every_bad_argument_is_named():
    with pytest.raises(ValueError, match="cannot iterate: ") as caught:
        make(size=0, batch_size=0, seed=-1, epochs=0, last="pad")
    for word in ("data set is empty", "batch_size", "shuffle_seed", "num_epochs", "'pad'"):
        assert word in str(caught.value)


def test_an_epoch_without_a_full_batch_is_passed_over():
    plans = iter([[[0], [1]], [[0, 1]], [[1], [0]]])
    iterator = make(2, 2, None, 3, "drop", group=lambda order: next(plans))
    # Not list(iterator): asking for the length would draw plans too.
    assert [next(iterator), next(iterator), next(iterator, None)] == [[0, 1], [1, 0], None]


def test_batches_begin_anew_at_every_pass():
    batches = iterators.Batches(make)
    assert list(batches) == list(batches) == list(make())
    assert len(batches) == 8


def test_the_batches_of_very_many_epochs_are_counted_without_laying_them_out():
    found = iterators.BatchIterator(range(7), 2, 0, 10**9, collate=list, last_batch="drop")
    assert len(found) == 3 * 10**9


def test_epochs_that_differ_are_counted_as_long_as_that_is_possible():
    def packed(order):
        return [[int(i)] for i in order if i != order[0]]

    options = {"collate": list, "last_batch": "keep", "group": packed}
    assert len(iterators.BatchIterator(range(7), 2, 0, 5, **options)) == 15
    with pytest.raises(ValueError, match="1,000,000,000 epochs of 7 examples are too many"):
        len(iterators.BatchIterator(range(7), 2, 0, 10**9, **options))
