import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunix.rl.batches import packing


def answer(index, ids, is_target=None):
    ids = np.asarray(ids, np.int32)
    marks = np.ones(len(ids), bool) if is_target is None else np.asarray(is_target, bool)
    return packing.Answer.of(index, ids, marks)


def group(prompt, *completions, first=0):
    return packing.PackGroup(
        prompt=np.asarray(prompt, np.int32),
        answers=[answer(first + i, c) for i, c in enumerate(completions)],
    )


def pack(groups, rows, length):
    return packing.pack_groups(groups, packing.Shape(num_rows=rows, row_length=length))


def predictions(layouts):
    """What the layouts say of every target, in its trajectory's order: its id and what it sees.

    Written without the packing code: walks the visibility rule of ``attend`` directly.
    """
    found = {}
    for layout in layouts:
        tokens, positions = layout.tokens.reshape(-1), layout.positions.reshape(-1)
        segments, prefixes = layout.segment_ids.reshape(-1), layout.prefix_ids.reshape(-1)
        row_length = layout.tokens.shape[1]
        for n in np.flatnonzero(layout.mask):
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
            own = found.setdefault(layout.members[layout.sequence[n]], [])
            own.append((context, int(layout.targets[n])))
    return found


def expected_predictions(groups):
    """Every target with the prompt and all earlier tokens of its answer before it."""
    return {
        one.index: [
            (tuple(int(i) for i in (*g.prompt, *one.token_ids[:t])), int(one.token_ids[t]))
            for t in np.flatnonzero(one.is_target)
        ]
        for g in groups
        for one in g.answers
        if one.is_target.any()
    }


def test_a_group_is_laid_down_as_worked_out_by_hand():
    (layout,) = pack([group([7, 8], [1, 2, 3], [4])], 1, 8)
    # The prompt, then the first completion without its last token; the second has no other.
    np.testing.assert_array_equal(layout.tokens, [[7, 8, 1, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(layout.positions[0, :4], [0, 1, 2, 3])
    np.testing.assert_array_equal(layout.segment_ids, [[1, 1, 2, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(layout.prefix_ids, [[1, 1, 1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(layout.source[:4], [1, 2, 3, 1])
    np.testing.assert_array_equal(layout.targets[:4], [1, 2, 3, 4])
    np.testing.assert_array_equal(layout.sequence, [0, 0, 0, 1, 7, 7, 7, 7])
    np.testing.assert_array_equal(layout.mask, np.arange(8) < 4)
    assert (layout.members, layout.num_tokens) == ([0, 1], 4)


def test_what_is_not_trained_is_read_up_to_the_last_token_that_is():
    one = packing.PackGroup(
        prompt=np.asarray([7]), answers=[answer(3, [1, 2, 3, 4, 5], [1, 0, 0, 1, 0])]
    )
    (layout,) = pack([one], 1, 8)
    np.testing.assert_array_equal(layout.tokens, [[7, 1, 2, 3, 0, 0, 0, 0]])
    np.testing.assert_array_equal(layout.source[:2], [0, 3])
    np.testing.assert_array_equal(layout.targets[:2], [1, 4])
    assert (layout.members, layout.mask.sum()) == ([3], 2)


@st.composite
def batches(draw):
    """A few groups of ragged answers, some of them empty, some not trained here and there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.4, 1.0]))
    groups, first = [], 0
    for _ in range(draw(st.integers(0, 4))):
        lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
        prompt = rng.integers(1, 99, draw(st.integers(1, 7)))
        answers = [
            answer(first + i, rng.integers(1, 99, n), rng.random(n) < share)
            for i, n in enumerate(lengths)
        ]
        groups.append(packing.PackGroup(prompt=prompt, answers=answers))
        first += len(lengths)
    return groups


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([(1, 1), (1, 16), (3, 16), (2, 32)]))
def test_every_token_sees_its_prompt_and_its_own_past_and_nothing_else(groups, shape):
    layouts = pack(groups, *shape)
    assert predictions(layouts) == expected_predictions(groups)
    assert len({layout.tokens.shape for layout in layouts}) <= 1
    assert all(len(layout.targets) == layout.tokens.size for layout in layouts)
    assert all(np.all(np.diff(layout.sequence) >= 0) for layout in layouts)


def test_the_prompt_is_stored_once_for_its_group():
    (layout,) = pack([group(range(10, 20), *[[1, 2, 3]] * 4)], 1, 32)
    assert layout.num_tokens == 10 + 4 * 2


def test_groups_share_rows_longest_first():
    sizes = [(3, 4), (8, 8), (5, 7)]  # prompt and completion: 6, 15 and 11 tokens laid down
    groups = [group(range(1, p + 1), range(1, c + 1), first=i) for i, (p, c) in enumerate(sizes)]
    (layout,) = pack(groups, 2, 17)
    np.testing.assert_array_equal((layout.segment_ids > 0).sum(axis=1), [15, 17])
    first, second = pack(groups, 1, 17)
    assert ((first.segment_ids > 0).sum(), (second.segment_ids > 0).sum()) == (15, 17)


def test_a_group_too_long_for_a_row_repeats_its_prompt():
    groups = [group([1] * 10, *([2] * 5 for _ in range(6)))]
    (layout,) = pack(groups, 4, 20)
    # Two completions of four tokens behind each prompt, and a row of padding.
    np.testing.assert_array_equal((layout.segment_ids > 0).sum(axis=1), [18, 18, 18, 0])
    assert predictions([layout]) == expected_predictions(groups)


def test_a_chunk_is_full_when_its_targets_are():
    # A prompt of one token and twelve completions of one: one token to read, twelve to predict.
    groups = [group([1], *[[2]] * 12)]
    layouts = pack(groups, 1, 8)
    assert [int(layout.mask.sum()) for layout in layouts] == [8, 4]
    assert predictions(layouts) == expected_predictions(groups)


def test_a_row_grows_for_a_completion_that_fits_no_row():
    assert [x.tokens.shape for x in pack([group([1] * 10, [2] * 30)], 1, 16)] == [(1, 48)]


def test_no_groups_make_no_chunk():
    assert pack([], 2, 64) == []
    assert pack([group([1, 2], [])], 2, 64) == []


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt has no tokens"):
        pack([group([], [1])], 1, 16)


@pytest.mark.parametrize(("reply", "length"), [(7, 16), (8, 32)])
def test_the_last_token_of_a_reply_takes_no_place(reply, length):
    # Ten and all but the last of the reply.
    assert [x.tokens.shape for x in pack([group(range(10), range(reply))], 1, 1)] == [(1, length)]


def test_a_group_that_fills_its_row_to_the_last_token_is_not_split():
    (layout,) = pack([group(range(10), *[[1, 2, 3]] * 3)], 1, 16)  # 10 + 3 * 2
    assert layout.num_tokens == 16


def test_a_group_without_a_reply_makes_no_row_longer():
    groups = [group(range(17)), group(range(40), []), group([1], [2, 3])]
    (layout,) = pack(groups, 1, 16)
    assert (layout.tokens.shape, layout.num_tokens) == ((1, 16), 2)


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
    assert shape_of(settings_).row_length == expected


def shape_of(lengths, **settings_):
    prompt, completion, generations = lengths
    return packing.chunk_shape(
        max_prompt_length=prompt,
        max_completion_length=completion,
        num_generations=generations,
        **settings_,
    )


SMALL, LARGE = (8, 6, 4), (64, 200, 8)
"""Groups of 28 tokens, 16 to a row of 512; of 1656, two completions to a row: four rows each."""


@pytest.mark.parametrize(
    ("lengths", "settings_", "rows"),
    [
        pytest.param(
            SMALL, {}, packing.chunk_tokens() // 512, id="as many as the tokens of a chunk"
        ),
        pytest.param((5000, 200, 8), {}, 1, id="one at least"),
        pytest.param(SMALL, {"micro_batch_size": 18}, 1, id="a row of eighteen groups"),
        pytest.param(SMALL, {"micro_batch_size": 19}, 2, id="and one group more"),
        pytest.param(LARGE, {"micro_batch_size": 3}, 12, id="four for each large group"),
        pytest.param(SMALL, {"mini_batch_size": 2}, 1, id="no more than a mini-batch needs"),
        pytest.param(SMALL, {"num_shards": 8}, 8, id="one for each device"),
        pytest.param(LARGE, {"micro_batch_size": 3, "num_shards": 8}, 16, id="equally many each"),
    ],
)
def test_rows_of_a_chunk_follow_from_the_settings(lengths, settings_, rows):
    assert shape_of(lengths, **settings_).num_rows == rows


def test_passes_without_a_gradient_may_take_fewer_rows():
    shape = shape_of(LARGE, micro_batch_size=3)
    assert shape.at_most(5, 1).num_rows == 5
    assert shape.at_most(5, 4).num_rows == 8
    assert shape.at_most(100, 1) == shape
