"""A mixture keeps its proportions, wastes no example, and depends on seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import tokenizers
from tunix.data import errors, mixing, sft_data
from tunix.utils import config


def test_without_a_seed_data_sets_take_turns_by_weight():
    order = mixing.mixed_order([4, 2], [2, 1], shuffle_seed=None)
    assert order(0).tolist() == [0, 4, 1, 2, 5, 3]
    assert order(1).tolist() == order(0).tolist()


@pytest.mark.parametrize(
    ("stop", "counts"), [("first_exhausted", [10, 30]), ("all_exhausted", [100, 300])]
)
def test_an_epoch_ends_with_the_first_or_the_last_data_set(stop, counts):
    order = mixing.mixed_order([10, 300], [1, 3], shuffle_seed=0, stop=stop)
    for epoch in range(3):
        indices = order(epoch)
        assert [(indices < 10).sum(), (indices >= 10).sum()] == counts


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seed=st.none() | st.integers(0, 3),
    stop=st.sampled_from(["first_exhausted", "all_exhausted"]),
    data=st.data(),
)
def test_no_example_comes_again_before_its_data_set_is_through(sizes, seed, stop, data):
    weights = data.draw(st.lists(st.floats(0.5, 5), min_size=len(sizes), max_size=len(sizes)))
    order = mixing.mixed_order(sizes, weights, shuffle_seed=seed, stop=stop)
    drawn = np.concatenate([order(epoch) for epoch in range(4)])
    starts = np.cumsum([0, *sizes])
    for first, size in zip(starts, sizes, strict=False):
        own = drawn[(drawn >= first) & (drawn < first + size)]
        times = np.bincount(own - first, minlength=size)
        assert times.max() - times.min() <= 1
    np.testing.assert_array_equal(order(2), order(2))


def test_the_seed_shuffles_examples_and_turns():
    one, two = (mixing.mixed_order([20, 20], [1, 1], shuffle_seed=s)(0) for s in (0, 1))
    assert sorted(one) == sorted(two) == list(range(40))
    assert one.tolist() != two.tolist()
    assert set(one[:8] // 20) == {0, 1}


def test_every_bad_argument_is_named():
    with pytest.raises(config.ConfigError) as caught:
        mixing.mixed_order([3, 0], [1.0, -1.0, 2.0], shuffle_seed=0)
    assert caught.value.problems == (
        "2 data sets have 3 weights; give one for each",
        "weights must be positive numbers, got [1.0, -1.0, 2.0]",
        "every data set needs an example, their sizes are [3, 0]",
    )


def load(*, packing=True, seed=0):
    parts = [
        [{"text": "a" * (2 + i % 5)} for i in range(12)],
        [{"prompt": "x", "completion": "b" * (1 + i % 4)} for i in range(40)],
    ]
    settings = sft_data.SftDataConfig(
        max_target_length=16, batch_size=2, packing=packing, shuffle_seed=seed, num_epochs=3
    )
    return sft_data.load_mixture(parts, [1, 2], tokenizers.make(), settings)


def test_a_mixture_of_formats_packs_and_resumes_exactly():
    batches, reports = load()
    assert [account.rows for account in reports] == [12, 40]
    whole, first, second = list(batches), iter(batches), iter(load()[0])
    examples = sum(int(row.max()) for b in whole for row in b["segment_ids"])
    assert examples == 3 * (12 + 24)
    for _ in range(len(whole) // 2):
        next(first)
    second.set_state(first.get_state())
    for ours, theirs in zip(second, whole[len(whole) // 2 :], strict=True):
        np.testing.assert_array_equal(ours["input_tokens"], theirs["input_tokens"])


def test_a_fault_in_any_part_is_named_with_its_file(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"txt": "a"}')
    settings = sft_data.SftDataConfig()
    parts = [[{"text": "a"}], tmp_path / "b.jsonl"]
    with pytest.raises(errors.DataError, match=r"b\.jsonl:1: columns"):
        sft_data.load_mixture(parts, [1, 1], tokenizers.make(), settings)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e308, 0.0, -1.0])
def test_weights_are_positive_numbers_that_can_be_added(weight):
    with pytest.raises(config.ConfigError, match="weights must be"):
        mixing.mixed_order([4, 2], [1.0, weight], shuffle_seed=None)


@pytest.mark.parametrize(
    ("sizes", "weights", "position"),
    [
        pytest.param([10, 10], [1e-6, 1.0], 1, id="a millionth"),
        pytest.param([10, 10], [1.0, 1e-30], 0, id="almost nothing"),
        pytest.param([1, 20_000], [1.0, 1.0], 0, id="one example beside many"),
        pytest.param([10, 10, 10], [1.0, 1.0, 1e-6], 0, id="of three"),
    ],
)
def test_a_mixture_that_would_repeat_a_data_set_without_end_is_refused_before_it_is_laid_out(
    sizes, weights, position
):
    with pytest.raises(config.ConfigError) as caught:
        mixing.mixed_order(sizes, weights, shuffle_seed=0, stop="all_exhausted")
    assert f"data set {position} " in caught.value.problems[0]
    assert "set stop to 'first_exhausted'" in caught.value.problems[0]
    order = mixing.mixed_order(sizes, weights, shuffle_seed=0)
    assert len(order(0)) <= sum(sizes)


def test_a_data_set_may_be_repeated_often():
    order = mixing.mixed_order([1, 5000], [1.0, 1.0], shuffle_seed=None, stop="all_exhausted")
    assert (order(0) == 0).sum() == 5000
