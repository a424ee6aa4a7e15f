import dataclasses
import itertools
import tracemalloc

import jax
import numpy as np
import pytest

from tests.rl import helpers, trajectory_test
from tunix.rl import trajectory
from tunix.rl.objectives import aggregation

ADVANTAGES = [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [0.2, 0.3, -0.5], [1.5, -0.5, -1.0]]
make = helpers.make_step


def members_of(groups):
    return [one for group in groups for one in group.trajectories]


def test_chunks_have_one_shape_and_each_trajectory_lies_in_one():
    groups = helpers.make_groups(ADVANTAGES)
    step = make(groups, shape=(1, 48), skip_dead=True)
    assert len(step.batches) > 1
    shapes = {tuple(np.shape(x) for x in jax.tree.leaves(batch)) for batch in step.batches}
    assert len(shapes) == 1
    laid_down = [i for members in step.members for i in members]
    assert sorted(laid_down) == [0, 1, 2, *range(6, 12)]  # the dead group needs no row
    for batch, members in zip(step.batches, step.members, strict=True):
        lengths = [members_of(groups)[i].num_trained for i in members]
        assert batch.mask.sum() == batch.num_targets == sum(lengths)
        np.testing.assert_array_equal(np.bincount(batch.sequence[batch.mask]), lengths)


def test_the_shape_is_the_same_whatever_is_laid_down():
    few, many = helpers.make_groups([[1.0]]), helpers.make_groups(ADVANTAGES * 9)
    shapes = [
        [np.shape(x) for x in jax.tree.leaves(batch)]
        for groups in (few, many)
        for batch in make(groups).batches
    ]
    assert len(shapes) > 2 and all(shape == shapes[0] for shape in shapes)


def test_what_is_known_of_tokens_comes_back_to_its_trajectory():
    groups = helpers.make_groups(ADVANTAGES)
    step = make(groups, shape=(1, 48))
    found = step.per_trajectory(lambda batch: batch.sampler_logps)
    for values, one in zip(found, members_of(groups), strict=True):
        np.testing.assert_array_equal(values, one.trained_logps)
    ids = step.per_trajectory(lambda batch: batch.targets)
    for values, one in zip(ids, members_of(groups), strict=True):
        np.testing.assert_array_equal(values, one.trained_ids)
    skipped = make(groups, skip_dead=True).per_trajectory(lambda batch: batch.sampler_logps)
    assert not np.concatenate(skipped[3:6]).any()
    assert [len(values) for values in skipped] == [len(values) for values in found]


@pytest.mark.parametrize("aggregate", aggregation.AGGREGATIONS.values())
def test_dead_trajectories_are_not_laid_down_but_count(aggregate):
    groups = helpers.make_groups(ADVANTAGES)
    whole = make(groups, aggregate=aggregate)
    step = make(groups, aggregate=aggregate, skip_dead=True)
    assert whole.weight == 0.0 and step.weight > 0.0
    assert sum(len(members) for members in step.members) == 9
    assert step.num_tokens < whole.num_tokens
    totals = [x.weight + sum(batch.weight for batch in x.batches) for x in (step, whole)]
    np.testing.assert_allclose(*totals, rtol=1e-6)
    nothing = make(helpers.make_groups([[0.0, 0.0]]), skip_dead=True)
    assert (len(nothing.batches), nothing.weight) == (0, 2.0)


def test_where_nothing_is_learned_a_chunk_can_show_what_others_look_like():
    dead, live = helpers.make_groups([[0.0, 0.0]]), helpers.make_groups([[1.0, 0.5]])
    step = make(dead, skip_dead=True, at_least_one=True)
    (shown,), (usual,) = step.batches, make(live, skip_dead=True, at_least_one=True).batches
    assert jax.tree.map(np.shape, shown) == jax.tree.map(np.shape, usual)
    assert (shown.mask.sum(), shown.num_targets, shown.weight, step.weight) == (0, 0, 0.0, 2.0)
    assert not any(values.any() for values in step.per_trajectory(lambda b: b.sampler_logps))


def test_truncated_completions_are_kept_or_count_nowhere():
    groups = helpers.make_groups(ADVANTAGES, seed=3)
    truncated = [one.truncated for one in members_of(groups)]
    assert any(truncated)
    kept, masked = make(groups), make(groups, mask_truncated=True)
    assert sorted(itertools.chain(*kept.members)) == list(range(12))
    expected = [i for i, is_cut in enumerate(truncated) if not is_cut]
    assert sorted(itertools.chain(*masked.members)) == expected
    assert masked.weight + sum(batch.weight for batch in masked.batches) == len(expected)


def test_ratios_start_from_the_policy_the_sampler_or_the_trainer_before():
    (group,) = helpers.make_groups([[1.0]])
    (one,) = group.trajectories
    for on_policy in (True, False):
        batch = helpers.one_batch([group], on_policy=on_policy)
        assert bool(batch.on_policy) == on_policy
        np.testing.assert_array_equal(batch.old_logps[: one.num_trained], one.trained_logps)
    earlier = dataclasses.replace(one, old_logps=one.trained_logps - 0.5)
    batch = helpers.one_batch([dataclasses.replace(group, trajectories=[earlier])])
    np.testing.assert_array_equal(batch.old_logps[: one.num_trained], one.trained_logps - 0.5)
    np.testing.assert_array_equal(batch.sampler_logps[: one.num_trained], one.trained_logps)


def test_how_full_the_rows_are_is_counted():
    groups = helpers.make_groups([[1.0, -1.0]])
    step = make(groups, shape=(1, 48))
    own = sum(one.num_trained - 1 for one in groups[0].trajectories)
    assert step.num_tokens == len(groups[0].prompt_ids) + own
    assert step.num_slots == 48


def test_an_environment_is_read_and_predicts_nothing():
    one = dataclasses.replace(trajectory_test.dialogue(), token_advantages=np.float32([1, 2, 3]))
    sibling = one.fork(3).appended(trajectory_test.span("policy", [4, 4], turn=1))
    group = trajectory.Group(prompt="?", trajectories=[one, sibling])
    batch = helpers.one_batch([group], shape=(1, 16))
    # The prompt 1 2 once; then 3 4 | 5 6 7 | 8, of which the last is predicted and not read, and
    # what lies behind it is not there; then the fork's 3 4 | 5 6 7 | 4 4.
    row = [1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 4, 0, 0, 0]
    np.testing.assert_array_equal(batch.tokens[0], row)
    np.testing.assert_array_equal(batch.targets[:5], [3, 4, 8, 4, 4])
    np.testing.assert_array_equal(batch.source[:5], [1, 2, 6, 11, 12])
    np.testing.assert_array_equal(batch.sequence[:6], [0, 0, 0, 1, 1, 15])
    np.testing.assert_array_equal(batch.mask, np.arange(16) < 5)
    np.testing.assert_array_equal(batch.advantages[:5], [1.0, 2.0, 3.0, 0.0, 0.0])
    np.testing.assert_allclose(batch.weights[:5], [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert batch.weight == 2.0


def test_no_array_of_a_batch_grows_with_trajectories_times_the_longest_of_them():
    # 8 prompts x 8 completions, one of 4,096 tokens and the rest short.
    rng = np.random.default_rng(0)

    def completion(length):
        ids = rng.integers(0, 61, length).astype(np.int32)
        return trajectory.Trajectory.of_completion(
            np.arange(9, dtype=np.int32), ids, np.zeros(length, np.float32), 0, advantage=1.0
        )

    lengths = [[4096 if i == j == 0 else 20 for j in range(8)] for i in range(8)]
    groups = [
        trajectory.Group(prompt="?", trajectories=[completion(n) for n in row]) for row in lengths
    ]
    tokens = sum(map(sum, lengths))
    tracemalloc.start()
    step = make(groups, shape=(1, 4112), max_completion_length=4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    per_token = sum(np.asarray(x).nbytes for b in step.batches for x in jax.tree.leaves(b)) / tokens
    # Four arrays of rows and ten of targets, of 4 bytes, in two chunks, one a third full.
    assert per_token < 14 * 4 * 1.8
    assert peak < 4 * 14 * 4 * tokens < 64 * 4096 * 4 * 2
