"""Who sees whom, entry by entry."""

import jax.numpy as jnp
import numpy as np

from tunix.ops import visibility


def test_a_token_sees_its_segment_its_prefix_and_itself():
    segments = jnp.array([[1, 1, 2, 3, 0, 0]])
    prefixes = jnp.array([[1, 1, 1, 1, 0, 0]])
    want = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    seen = visibility.Visibility(segment_ids=segments, prefix_ids=prefixes)
    found = seen.dense_mask(segments.shape)
    np.testing.assert_array_equal(found[0], np.array(want, bool))


def test_a_mask_a_window_and_an_order_say_what_is_seen_entry_by_entry():
    seen = visibility.Visibility(
        order=jnp.array([[2, 0, 3, 1]]),
        mask=jnp.array([[[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]], bool),
    )
    tokens = jnp.zeros((2, 4), jnp.int32)
    found = seen.dense_mask(tokens.shape)
    want = [[1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1]]
    np.testing.assert_array_equal(found, np.array([want, want], bool))
    np.testing.assert_array_equal(seen.positions_in(tokens.shape), [[2, 0, 3, 1]] * 2)
    # In the order 1 3 0 2 each sees itself and the one before, unless that is masked.
    want = [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1]]
    near = seen.pairs(tokens.shape, window=2)
    np.testing.assert_array_equal(near, np.array([want, want], bool))


def test_a_span_sees_itself_whole_but_no_other_segment():
    seen = visibility.Visibility(
        segment_ids=jnp.array([[1, 1, 1, 2]]), span_ids=jnp.array([[0, 3, 3, 3]])
    )
    want = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    found = seen.dense_mask((1, 4))
    np.testing.assert_array_equal(found, np.array([want], bool))
