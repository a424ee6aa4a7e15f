import dataclasses

import jax
import numpy as np

from tests.rl import helpers
from tunix.rl import batching

ADVANTAGES = [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [0.2, 0.3, -0.5], [1.5, -0.5, -1.0]]


def make(groups, *, from_sampler=True, **changes):
    settings = dataclasses.replace(helpers.SETTINGS, **changes)
    return batching.make_step_batches(groups, settings, from_sampler=from_sampler)


def test_micro_batches_have_one_shape_and_each_sequence_counts_in_one():
    groups = helpers.make_groups(ADVANTAGES)
    step = make(groups, micro_batch_size=1, skip_dead=True)
    assert len(step.batches) == 3  # the dead group needs none
    shapes = {tuple(np.shape(x) for x in jax.tree.leaves(batch)) for batch in step.batches}
    assert len(shapes) == 1
    lengths = [t.num_trained for g in groups for t in g.trajectories]
    np.testing.assert_array_equal(sum(batch.lengths for batch in step.batches), lengths)


def test_dead_sequences_are_not_laid_down_but_keep_their_length():
    groups = helpers.make_groups(ADVANTAGES)
    (batch,) = make(groups, skip_dead=True).batches
    none = len(batch.targets)
    np.testing.assert_array_equal((batch.slot < none).any(axis=1), batch.live)
    np.testing.assert_array_equal(batch.live, np.ravel(ADVANTAGES) != 0.0)
    assert np.all(batch.lengths > 0)


def test_truncated_completions_are_kept_or_masked():
    groups = helpers.make_groups(ADVANTAGES, seed=3)
    truncated = np.asarray([t.truncated for g in groups for t in g.trajectories])
    assert truncated.any()
    (kept,), (masked,) = make(groups).batches, make(groups, mask_truncated=True).batches
    assert np.all(kept.lengths > 0)
    np.testing.assert_array_equal(masked.lengths == 0, truncated)
    np.testing.assert_array_equal(~masked.live, truncated)


def test_ratios_start_from_the_sampler_or_from_the_policy():
    groups = helpers.make_groups(ADVANTAGES)
    (from_sampler,), (on_policy,) = make(groups).batches, make(groups, from_sampler=False).batches
    first = groups[0].trajectories[0].trained_logps
    np.testing.assert_array_equal(from_sampler.old_logps[0, : len(first)], first)
    assert on_policy.old_logps is None


def test_arrays_divide_among_shards():
    groups = helpers.make_groups(ADVANTAGES[:3])  # nine sequences
    (batch,) = make(groups, num_shards=4).batches
    for leaf in jax.tree.leaves(batch):
        assert np.ndim(leaf) == 0 or leaf.shape[0] % 4 == 0
    np.testing.assert_array_equal(batch.lengths[9:], 0)


def test_how_full_the_rows_are_is_counted():
    groups = helpers.make_groups([[1.0, -1.0]])
    step = make(groups)
    own = sum(t.num_trained - 1 for t in groups[0].trajectories)
    assert step.num_tokens == len(groups[0].prompt_ids) + own
    assert step.num_slots == 48
