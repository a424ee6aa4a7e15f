"""Who sees whom in a packed row, entry by entry."""

import jax.numpy as jnp
import numpy as np

from tunix.ops import segment_mask


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
    found = segment_mask.segment_mask(segments, prefixes)
    np.testing.assert_array_equal(found[0], np.array(want, bool))
