import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunix.rl import packing


def group(prompt, *completions, first=0):
    return packing.PackGroup(
        prompt=np.asarray(prompt, np.int32),
        completions=[np.asarray(c, np.int32) for c in completions],
        indices=list(range(first, first + len(completions))),
    )


def predictions(layout):
    """What the layout says of every completion token: its id and all that its source sees.

    Written without the packing code: walks the visibility rule of ``attend`` directly.
    """
    tokens, positions = layout.tokens.reshape(-1), layout.positions.reshape(-1)
    segments, prefixes = layout.segment_ids.reshape(-1), layout.prefix_ids.reshape(-1)
    row_length = layout.tokens.shape[1]
    found = {}
    for s, t in np.ndindex(layout.slot.shape):
        n = layout.slot[s, t]
        if n == len(layout.targets):
            continue
        i = layout.source[n]
        start = i // row_length * row_length
        seen = [
            j
            for j in range(start, i + 1)
            if segments[j] in (segments[i], prefixes[i])
            if segments[j]
        ]
        context = tuple(int(tokens[j]) for j in seen)
        assert [int(positions[j]) for j in seen] == list(range(len(seen)))
        found[s, t] = (context, int(layout.targets[n]))
    return found


def expected_predictions(groups):
    """Every completion token with the prompt and the completion's earlier tokens before it."""
    return {
        (index, t): (tuple(int(i) for i in (*g.prompt, *completion[:t])), int(completion[t]))
        for g in groups
        for completion, index in zip(g.completions, g.indices, strict=True)
        for t in range(len(completion))
    }


def test_a_group_is_laid_down_as_worked_out_by_hand():
    layout = packing.pack_groups(
        [group([7, 8], [1, 2, 3], [4])], num_sequences=2, max_completion_length=3, row_length=8
    )
    # The prompt, then the first completion without its last token; the second has no other.
    row = [7, 8, 1, 2, 0, 0, 0, 0]
    np.testing.assert_array_equal(layout.tokens[0, :8], row)
    np.testing.assert_array_equal(layout.positions[0, :4], [0, 1, 2, 3])
    np.testing.assert_array_equal(layout.segment_ids[0, :8], [1, 1, 2, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(layout.prefix_ids[0, :8], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(layout.source[:4], [1, 2, 3, 1])
    np.testing.assert_array_equal(layout.targets[:4], [1, 2, 3, 4])
    none = len(layout.targets)
    np.testing.assert_array_equal(layout.slot, [[0, 1, 2], [3, none, none]])
    assert layout.num_tokens == 4


@st.composite
def batches(draw):
    """A few groups of ragged completions, some of them empty."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, first = [], 0
    for _ in range(draw(st.integers(0, 4))):
        lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
        prompt = rng.integers(1, 99, draw(st.integers(1, 7)))
        groups.append(group(prompt, *(rng.integers(1, 99, n) for n in lengths), first=first))
        first += len(lengths)
    return groups


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([1, 16, 32]), st.sampled_from(["pack_groups", "pad_rows"]))
def test_every_token_sees_its_prompt_and_its_own_past_and_nothing_else(groups, length, builder):
    layout = getattr(packing, builder)(
        groups, num_sequences=25, max_completion_length=6, row_length=length
    )
    assert predictions(layout) == expected_predictions(groups)


def test_the_prompt_is_stored_once_for_its_group():
    completions = [[1, 2, 3]] * 4
    layout = packing.pack_groups(
        [group(range(10, 20), *completions)],
        num_sequences=4,
        max_completion_length=3,
        row_length=32,
    )
    assert layout.num_tokens == 10 + 4 * 2
    padded = packing.pad_rows(
        [group(range(10, 20), *completions)],
        num_sequences=4,
        max_completion_length=3,
        row_length=16,
    )
    assert padded.num_tokens == 4 * (10 + 2)


def test_groups_share_rows_longest_first():
    sizes = [(3, 4), (8, 8), (5, 7)]  # prompt and completion: 6, 15 and 11 tokens laid down
    groups = [group(range(1, p + 1), range(1, c + 1), first=i) for i, (p, c) in enumerate(sizes)]
    layout = packing.pack_groups(groups, num_sequences=3, max_completion_length=8, row_length=17)
    assert layout.tokens.shape == (2, 17)
    np.testing.assert_array_equal((layout.segment_ids > 0).sum(axis=1), [15, 17])


def test_a_group_too_long_for_a_row_repeats_its_prompt():
    groups = [group([1] * 10, *([2] * 5 for _ in range(6)))]
    layout = packing.pack_groups(groups, num_sequences=6, max_completion_length=5, row_length=20)
    assert layout.tokens.shape == (3, 20)  # two completions of four tokens behind each prompt
    assert layout.num_tokens == 3 * 18
    assert predictions(layout) == expected_predictions(groups)


def test_a_row_grows_for_a_completion_that_fits_no_row():
    groups = [group([1] * 10, [2] * 30)]
    layout = packing.pack_groups(groups, num_sequences=1, max_completion_length=30, row_length=16)
    assert layout.tokens.shape == (1, 48)


@pytest.mark.parametrize("builder", [packing.pack_groups, packing.pad_rows])
def test_no_groups_make_one_empty_row(builder):
    layout = builder([], num_sequences=2, max_completion_length=3, row_length=64)
    assert (layout.tokens.shape, layout.targets.shape) == ((1, 64), (16,))
    assert not layout.segment_ids.any()
    np.testing.assert_array_equal(layout.slot, np.full((2, 3), len(layout.targets)))


def test_a_reply_without_a_place_is_an_error():
    groups = [packing.PackGroup(prompt=np.ones(1, int), completions=[np.ones(2, int)], indices=[])]
    with pytest.raises(ValueError, match="shorter"):
        packing.pad_rows(groups, num_sequences=1, max_completion_length=2, row_length=16)


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt has no tokens"):
        packing.pack_groups(
            [group([], [1])], num_sequences=1, max_completion_length=1, row_length=16
        )


def test_array_sizes_come_from_a_small_set():
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(200):
        groups = [
            group(rng.integers(1, 9, rng.integers(30, 50)), *(
                rng.integers(1, 9, rng.integers(1, 21)) for _ in range(8)
            ), first=8 * i)
            for i in range(rng.integers(1, 7))
        ]  # fmt: skip
        layout = packing.pack_groups(
            groups, num_sequences=48, max_completion_length=20, row_length=448
        )
        shapes.add((layout.tokens.shape, layout.targets.shape))
    assert len(shapes) <= 8


@pytest.mark.parametrize(
    ("num_targets", "size"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 12), (12, 12), (13, 16)]
)
def test_targets_take_so_many_quarters_of_the_rows(num_targets, size):
    groups = [group([1, 2, 3], range(num_targets))]
    layout = packing.pack_groups(groups, num_sequences=1, max_completion_length=13, row_length=16)
    assert (layout.tokens.shape, layout.targets.shape) == ((1, 16), (size,))
    np.testing.assert_array_equal(layout.slot[0, num_targets:], size)


@pytest.mark.parametrize(("reply", "length"), [(7, 16), (8, 32)])
@pytest.mark.parametrize("builder", [packing.pack_groups, packing.pad_rows])
def test_the_last_token_of_a_reply_takes_no_place(builder, reply, length):
    groups = [group(range(10), range(reply))]  # ten and all but the last of the reply
    layout = builder(groups, num_sequences=1, max_completion_length=8, row_length=1)
    assert layout.tokens.shape == (1, length)


def test_a_group_that_fills_its_row_to_the_last_token_is_not_split():
    groups = [group(range(10), *[[1, 2, 3]] * 3)]  # 10 + 3 * 2
    layout = packing.pack_groups(groups, num_sequences=3, max_completion_length=3, row_length=16)
    assert (layout.tokens.shape, layout.num_tokens) == ((1, 16), 16)


def test_a_group_without_a_reply_makes_no_row_longer():
    groups = [group(range(17)), group(range(40), []), group([1], [2, 3])]
    layout = packing.pack_groups(groups, num_sequences=2, max_completion_length=2, row_length=16)
    assert (layout.tokens.shape, layout.num_tokens) == ((1, 16), 2)


@pytest.mark.parametrize(
    ("n", "expected"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16)]
)
def test_buckets_grow_by_a_half_and_a_third(n, expected):
    assert packing.bucket(n) == expected


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        pytest.param((64, 20, 8), 448, id="two groups of 216 tokens, rounded to 224, per row"),
        pytest.param((64, 200, 8), 512, id="part of a group of 1656 tokens"),
        pytest.param((64, 25, 8), 512, id="two groups of exactly 256 tokens"),
        pytest.param((100, 50, 5), 352, id="one group of 345 tokens"),
        pytest.param((120, 50, 8), 512, id="one group of exactly 512 tokens"),
        pytest.param((900, 200, 8), 1104, id="one prompt with one completion"),
        pytest.param((905, 200, 8), 1104, id="of exactly 1104 tokens"),
        pytest.param((906, 200, 8), 1120, id="and of one more"),
    ],
)
def test_row_length_follows_from_the_settings(settings_, expected):
    prompt, completion, generations = settings_
    length = packing.default_row_length(
        max_prompt_length=prompt, max_completion_length=completion, num_generations=generations
    )
    assert length == expected
