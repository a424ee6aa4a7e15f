"""Batches of preferences: rows, shapes, packing, order."""

import jax
import numpy as np
import pytest

from tests.sft import toys
from tests.sft.dpo import helpers
from tunix.data.preference import preference_batches, preference_batching, preference_config

PAIRS = helpers.pairs(11)


def settings(**changes):
    return preference_config.PreferenceDataConfig(**{"shuffle_seed": None, **changes})


def answers_of(batch):
    """Prompt-to-answer text of every answer in a batch, read back from its rows."""
    found = []
    rows = batch.rows
    for r in range(rows.tokens.shape[0]):
        for a in range(rows.lengths.shape[1]):
            of = rows.answer[r] == a
            if of.any():
                found.append(tuple(rows.targets[r, of].tolist()))
                assert of.sum() == rows.lengths[r, a]
    return found


def wanted(pairs):
    return [tuple(answer.tokens.tolist()) for pair in pairs for answer in pair.answers]


def test_one_pair_by_hand():
    rng = np.random.default_rng(0)
    pair = helpers.preference_tokens.TokenizedPair(
        np.array([5, 6], np.int32), helpers.answer(rng, 3), helpers.answer(rng, 1)
    )
    a, b, c = pair.chosen.tokens
    (d,) = pair.rejected.tokens
    rows = preference_batching.collate_pairs([[pair]], num_rows=1, length=8, num_targets=4).rows
    assert rows.tokens.tolist() == [[5, 6, a, b, 0, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0]]
    assert rows.segment_ids.tolist() == [[1, 1, 2, 2, 0, 0, 0, 0]]
    assert rows.prefix_ids.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert rows.source.tolist() == [[1, 2, 3, 1]]
    assert rows.targets.tolist() == [[a, b, c, d]]
    assert rows.answer.tolist() == [[0, 0, 0, 1]]
    assert rows.lengths.tolist() == [[3, 1]]
    assert rows.ends is None


def test_the_last_tokens_are_laid_down_where_they_are_read():
    rng = np.random.default_rng(0)
    pair = helpers.preference_tokens.TokenizedPair(
        np.array([5, 6], np.int32), helpers.answer(rng, 3), helpers.answer(rng, 1)
    )
    rows = preference_batching.collate_pairs([[pair]], num_rows=1, length=8, with_last=True).rows
    assert rows.ends.tolist() == [[4, 5]]
    assert rows.tokens[0, [4, 5]].tolist() == [pair.chosen.tokens[-1], pair.rejected.tokens[-1]]


@pytest.mark.parametrize("packing", [False, True])
def test_every_pair_comes_once(packing):
    batches = preference_batches.pair_batches(
        PAIRS, settings(batch_size=3, packing=packing, shuffle_seed=1, last_batch="keep")
    )
    found = [answer for batch in batches for answer in answers_of(batch)]
    assert sorted(found) == sorted(wanted(PAIRS))


def test_packing_needs_fewer_rows_of_one_shape():
    padded = list(preference_batches.pair_batches(PAIRS, settings(batch_size=2, last_batch="keep")))
    packed = list(
        preference_batches.pair_batches(
            PAIRS, settings(batch_size=2, packing=True, row_length=40, last_batch="keep")
        )
    )
    assert len(packed) < len(padded)
    assert {batch.rows.tokens.shape for batch in packed} == {(2, 40)}
    assert len({batch.rows.lengths.shape for batch in packed}) == 1


def test_a_row_that_cannot_hold_the_longest_pair_is_refused():
    with pytest.raises(ValueError, match="has 12 tokens, row_length is 8"):
        preference_batches.pair_batches(PAIRS, settings(packing=True, row_length=8))


def test_all_batches_have_the_length_of_the_longest_rounded_up_or_not_or_their_own():
    rng = np.random.default_rng(0)
    long = helpers.preference_tokens.TokenizedPair(
        helpers.tokens(rng, 30), helpers.answer(rng, 40), helpers.answer(rng, 12)
    )
    lengths = {
        pad_to: {
            batch.rows.tokens.shape[1]
            for batch in preference_batches.pair_batches(
                [*PAIRS, long], settings(batch_size=1, pad_to=pad_to)
            )
        }
        for pad_to in ("longest", "bucket", "max")
    }
    assert lengths == {"longest": {128}, "bucket": {64, 80}, "max": {80}}


@pytest.mark.parametrize("packing", [False, True])
def test_all_batches_have_room_for_the_tokens_that_any_of_them_predicts(packing):
    batches = list(preference_batches.pair_batches(PAIRS, settings(batch_size=1, packing=packing)))
    room = {batch.rows.targets.shape for batch in batches}
    used = [(batch.rows.answer < batch.rows.lengths.shape[1]).sum() for batch in batches]
    assert len(room) == 1
    assert max(used) <= room.pop()[1] <= (2 if packing else 1) * max(used)
    assert sum(used) == sum(int(a.mask.sum()) for pair in PAIRS for a in pair.answers)


def shapes(**changes):
    found = preference_batches.pair_batches(PAIRS, settings(batch_size=4, **changes))
    return [batch.rows.tokens.shape for batch in found]


def test_the_last_short_batch_is_dropped_or_filled():
    assert len(shapes(last_batch="drop")) == len(PAIRS) // 4 == 2
    assert shapes(pad_to="max") == [(4, 12)] * 3


def test_epochs_and_windows_of_packing_are_read():
    assert len(shapes(num_epochs=3)) == 9
    packed = {"packing": True, "row_length": 40}
    assert len(shapes(**packed)) == 1
    assert len(shapes(**packed, packing_window=1)) == 3


def test_the_seed_decides_the_order():
    def order(seed):
        found = preference_batches.pair_batches(PAIRS, settings(batch_size=4, shuffle_seed=seed))
        return [answer for batch in found for answer in answers_of(batch)]

    assert order(None) == wanted(PAIRS)
    assert order(1) == order(1) != order(2)


def test_an_iterator_resumes_exactly():
    batches = preference_batches.pair_batches(
        PAIRS, settings(batch_size=2, packing=True, shuffle_seed=5, num_epochs=None)
    )
    one = iter(batches)
    for _ in range(7):
        next(one)
    other = iter(batches)
    other.set_state(one.get_state())
    for _ in range(5):
        toys.assert_bit_identical(next(one), next(other))


def test_ratings_lie_beside_answers_to_other_prompts():
    ratings = helpers.ratings(4)
    (batch,) = preference_batches.rating_batches(ratings, settings(batch_size=4))
    assert batch.is_desirable[:, 0].tolist() == [rating.is_desirable for rating in ratings]
    assert answers_of(batch) == [tuple(x.answer.tokens.tolist()) for x in ratings]
    foreign = preference_batching.PairBatch(rows=batch.foreign, margin=None)
    assert answers_of(foreign) == [tuple(x.foreign.tokens.tolist()) for x in ratings]
    jax.tree.map(np.asarray, batch)
