"""Which tiles are planned, checked pair by pair against what they hide."""

import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import attention_tiles, visibility

CHUNKS, SIZE = 6, 4
TOKENS = CHUNKS * SIZE


def rules_of(positions=None, segments=None, prefixes=None, window=None, spans=None, order=None):
    def cut(x):
        if x is None:
            return None
        return jnp.asarray(np.reshape(x, (-1, CHUNKS, SIZE)).swapaxes(0, 1), jnp.int32)

    return attention_tiles.Rules(
        tokens=visibility.Visibility(
            positions=cut(positions),
            segment_ids=cut(segments),
            prefix_ids=cut(prefixes),
            span_ids=cut(spans),
            order=cut(order),
        ),
        mask=None,
        window=None if window is None else jnp.int32(window),
    )


def tiling_of(group=1):
    return attention_tiles.Tiling(num_chunks=CHUNKS, size=SIZE, group=group)


def visited(plan):
    """Return the planned pairs as an ``[n, n]`` array of booleans."""
    grid = np.zeros((CHUNKS, CHUNKS), bool)
    for i in range(CHUNKS):
        grid[i, np.asarray(plan.others)[i, : int(plan.counts[i])]] = True
    return grid


def test_causality_leaves_the_lower_triangle_with_masks_on_the_diagonal():
    plan = attention_tiles.plan(rules_of(), tiling_of())
    np.testing.assert_array_equal(visited(plan), np.tri(CHUNKS, dtype=bool))
    np.testing.assert_array_equal(plan.is_open, np.tri(CHUNKS, k=-1, dtype=bool))


def test_a_window_leaves_a_band():
    # A window of 5 reaches 4 tokens back: one chunk, from the first token of a chunk.
    plan = attention_tiles.plan(rules_of(window=5), tiling_of())
    np.testing.assert_array_equal(visited(plan), np.tri(CHUNKS) - np.tri(CHUNKS, k=-2))
    # From the last token of a chunk it does not reach the first one of the chunk before.
    assert not np.asarray(plan.is_open).any()


@pytest.mark.parametrize("shift", [None, 0, 5], ids=["row order", "positions", "shifted positions"])
def test_every_window_visits_exactly_the_tiles_with_a_visible_pair(shift):
    # One pair is all that some tiles have: windows congruent to 2 modulo the chunk.
    positions = None if shift is None else np.arange(TOKENS) + shift
    age = np.arange(TOKENS)[:, None] - np.arange(TOKENS)
    for window in range(1, TOKENS + 2):
        seen = (age >= 0) & (age < window)
        tiles = seen.reshape(CHUNKS, SIZE, CHUNKS, SIZE)
        plan = attention_tiles.plan(rules_of(positions, window=window), tiling_of())
        np.testing.assert_array_equal(visited(plan), tiles.any(axis=(1, 3)), f"window {window}")
        np.testing.assert_array_equal(plan.is_open, tiles.all(axis=(1, 3)), f"window {window}")


def test_packed_sequences_leave_blocks_on_the_diagonal():
    segments = [[1] * 8 + [2] * 4 + [3] * 12]
    plan = attention_tiles.plan(rules_of(segments=segments), tiling_of())
    expected = np.zeros((CHUNKS, CHUNKS), bool)
    expected[:2, :2] = expected[2, 2] = expected[3:, 3:] = True
    np.testing.assert_array_equal(visited(plan), expected & np.tri(CHUNKS, dtype=bool))
    np.testing.assert_array_equal(plan.is_open, expected & np.tri(CHUNKS, k=-1, dtype=bool))


def test_completions_visit_their_prompt_and_themselves():
    segments = [[1] * 4 + [2] * 8 + [3] * 8 + [0] * 4]
    prefixes = [[0] * 4 + [1] * 16 + [0] * 4]
    plan = attention_tiles.plan(rules_of(segments=segments, prefixes=prefixes), tiling_of())
    assert np.asarray(plan.counts).tolist() == [1, 2, 3, 2, 3, 0]
    assert np.asarray(plan.others)[4, :3].tolist() == [0, 3, 4]
    keys_first = attention_tiles.plan(
        rules_of(segments=segments, prefixes=prefixes), tiling_of(), keys_first=True
    )
    np.testing.assert_array_equal(visited(keys_first), visited(plan).T)


def test_a_span_reaches_forward_and_over_the_window():
    spans = [[0] * 4 + [1] * 12 + [0] * 8]
    plan = attention_tiles.plan(rules_of(spans=spans, window=1), tiling_of())
    expected = np.eye(CHUNKS, dtype=bool)
    expected[1:4, 1:4] = True
    np.testing.assert_array_equal(visited(plan), expected)


def test_chunks_of_a_zigzag_visit_what_comes_before_them():
    # Chunks 0 to 5 of the sequence lie as 0 5 1 4 2 3.
    blocks = np.array([0, 5, 1, 4, 2, 3])
    order = (blocks[:, None] * SIZE + np.arange(SIZE)).reshape(1, -1)
    plan = attention_tiles.plan(rules_of(order=order), tiling_of())
    np.testing.assert_array_equal(visited(plan), blocks[None] <= blocks[:, None])
    np.testing.assert_array_equal(plan.is_open, blocks[None] < blocks[:, None])


@pytest.mark.parametrize("seed", range(5))
def test_skipped_tiles_hide_everything_and_open_ones_nothing(seed):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 6, (2, TOKENS)), axis=1)
    rules = rules_of(
        positions=rng.integers(0, 30, (2, TOKENS)),
        segments=segments if seed % 2 else rng.permutation(segments, axis=1),
        prefixes=rng.integers(0, 6, (2, TOKENS)),
        spans=np.sort(rng.integers(0, 9, (2, TOKENS)), axis=1) * (seed > 2),
        window=12,
        order=rng.permuted(np.tile(np.arange(TOKENS), (2, 1)), axis=1) if seed > 1 else None,
    )
    tiling = tiling_of(group=2)
    plan = attention_tiles.plan(rules, tiling)
    nothing_open = jnp.zeros((CHUNKS, CHUNKS), bool)
    planned = visited(plan)
    for i, j in np.ndindex(CHUNKS, CHUNKS):
        bias = np.asarray(attention_tiles.bias(rules, tiling, nothing_open, i, j))
        assert bias.shape == (2, 2 * SIZE, SIZE)
        np.testing.assert_array_equal(bias[:, :SIZE], bias[:, SIZE:])  # one copy per head
        turned = attention_tiles.bias(rules, tiling, nothing_open, i, j, keys_first=True)
        np.testing.assert_array_equal(turned, bias.swapaxes(1, 2))
        if not planned[i, j]:
            assert (bias == attention_tiles.HIDDEN).all()
        if plan.is_open[i, j]:
            assert (bias == 0.0).all()
