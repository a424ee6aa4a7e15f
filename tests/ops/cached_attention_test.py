"""Attention to a cache equals attention within the row that filled it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import attention, cached_attention

BATCH, HEAD_DIM, SCALE = 2, 8, 0.3
HEADS = {"MHA": (4, 4), "GQA": (6, 2), "MQA": (3, 1)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Cross every chunk boundary with short rows."""
    monkeypatch.setattr(cached_attention, "SLOT_CHUNK", 8)


@pytest.fixture(params=["cpu", "gpu"], ids=["as on CPU", "as on other devices"], autouse=True)
def _backend(request, monkeypatch):
    """Run both ways to multiply, whatever this device would take."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


def qkv(length, heads=(6, 2), batch=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    counts = (heads[0], heads[1], heads[1])
    return tuple(
        jnp.asarray(rng.normal(size=(batch, length, n, HEAD_DIM)), jnp.float32) for n in counts
    )


def filled(k, v, dtype=jnp.float32):
    """Return a cache that holds ``k`` and ``v`` from slot 0 on, without room for more."""
    batch, size, heads, width = k.shape
    slots = jnp.broadcast_to(jnp.arange(size), (batch, size))
    return cached_attention.write(
        *cached_attention.empty(batch, size, heads, width, dtype), k, v, slots
    )


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_cached_attention_equals_the_end_of_the_row(heads, new, window):
    size, lengths = 14, np.array([0, 6, 14 - new])
    q, k, v = qkv(size, heads, batch=3)
    whole = attention.attend(q, k, v, scale=SCALE, window=window, softcap=2.0, precision="exact")
    rows = np.arange(3)[:, None]
    slots = lengths[:, None] + np.arange(new)
    cached = jax.jit(
        lambda q, lengths: cached_attention.attend_cached(
            q,
            *filled(k, v),
            lengths=lengths,
            scale=SCALE,
            window=window,
            softcap=2.0,
            precision="exact",
        )
    )(q[rows, slots], jnp.asarray(lengths))
    np.testing.assert_allclose(cached, whole[rows, slots], atol=2e-6)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_pieces_of_rows_are_extended_side_by_side(heads):
    """Pieces of 4 tokens of two rows in any order, some of one row; one piece is unused."""
    q, k, v = qkv(12, heads, batch=2)
    options = {"scale": SCALE, "window": 5, "precision": "exact"}
    whole = attention.attend(q, k, v, softcap=None, **options)
    rows, lengths = jnp.array([1, 0, 1, 2, 0, 1]), jnp.array([8, 4, 0, 4, 0, 4])
    slots = lengths[:, None] + jnp.arange(4)
    at = (jnp.minimum(rows, 1)[:, None], slots)
    empty = cached_attention.empty(2, 12, heads[1], HEAD_DIM, jnp.float32)
    cache = cached_attention.write(*empty, k[at], v[at], slots, rows)
    for found, expected in zip(cache, filled(k, v), strict=True):
        # Row 0 ends at 8; the piece of row 2, which does not exist, went nowhere.
        expected = np.array(expected)
        (expected[0, :, :, 8:] if expected.shape[3] == 12 else expected[0, :, 8:])[...] = 0.0
        np.testing.assert_array_equal(found, expected)
    out = cached_attention.attend_cached(q[at], *cache, lengths=lengths, rows=rows, **options)
    used = rows < 2
    np.testing.assert_allclose(out[used], whole[at][used], atol=2e-6)


@pytest.mark.parametrize("new", [1, 3])
def test_every_length_and_window_sees_its_slots_and_reads_no_earlier_chunk(new):
    """One row at a time: a shorter row beside it would make the loop start earlier."""
    size, chunk = 19, 4 if new == 1 else 8
    q, k, v = qkv(size, (1, 1), batch=1)

    @jax.jit
    def cached(q, k, v, length, window):
        return cached_attention.attend_cached(
            q, *filled(k, v), lengths=length, scale=SCALE, window=window, precision="exact"
        )

    slots = np.arange(size)
    scores = SCALE * np.asarray(q[0, :, 0], np.float64) @ np.asarray(k[0, :, 0], np.float64).T
    for length, window in itertools.product(range(size - new + 1), range(1, size + 2)):
        queries = length + np.arange(new)
        age = queries[:, None] - slots
        weights = np.where((age >= 0) & (age < window), np.exp(scores[queries]), 0.0)
        expected = weights / weights.sum(axis=1, keepdims=True) @ np.asarray(v[0, :, 0])
        # NaN in a chunk that is read would reach the output, visible or not.
        unread = slots < max(length - window + 1, 0) // chunk * chunk
        unread &= slots < (size - chunk)  # the last chunk is moved back to end with the cache
        poisoned = [jnp.where(unread[:, None, None], jnp.nan, x) for x in (k, v)]
        got = cached(q[:, queries], *poisoned, jnp.array([length]), window)
        np.testing.assert_allclose(
            got[0, :, 0], expected, atol=2e-6, err_msg=f"length {length}, window {window}"
        )


@pytest.mark.parametrize("size", [3, 4, 7, 8])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_slots_beyond_the_filled_part_are_never_read(size, precision):
    q, k, v = qkv(size)
    lengths = jnp.array([0, size - 1])
    stale = jnp.arange(size)[None, :, None, None] > lengths[:, None, None, None]

    def cached(k, v):
        return cached_attention.attend_cached(
            q[:, :1], *filled(k, v), lengths=lengths, scale=SCALE, precision=precision
        )

    np.testing.assert_array_equal(
        cached(k, v), cached(jnp.where(stale, 1e9, k), jnp.where(stale, -1e9, v))
    )


def test_the_trip_count_follows_the_filled_part_without_recompiling():
    size = 16
    q, k, v = qkv(size)
    traces = []

    @jax.jit
    def cached(k, v, lengths):
        traces.append(1)
        return cached_attention.attend_cached(
            q[:, :1], *filled(k, v), lengths=lengths, scale=SCALE, precision="exact"
        )

    for last in (0, 3, 4, 9, 15):
        # NaN in a chunk that is read would reach the output, visible or not.
        unread = -(-(last + 1) // 4) * 4
        clean = cached(k, v, jnp.full(2, last))
        out = cached(
            k.at[:, unread:].set(jnp.nan), v.at[:, unread:].set(jnp.nan), jnp.full(2, last)
        )
        np.testing.assert_array_equal(out, clean)
    assert len(traces) == 1


def test_a_bfloat16_cache_loses_no_more_than_its_rounding():
    q, k, v = qkv(12)
    low = (k.astype(jnp.bfloat16), v.astype(jnp.bfloat16))
    lengths = jnp.array([11, 5])
    options = {"lengths": lengths, "scale": SCALE, "precision": "exact"}
    np.testing.assert_allclose(
        cached_attention.attend_cached(q[:, :1], *filled(k, v, jnp.bfloat16), **options),
        cached_attention.attend_cached(q[:, :1], *filled(*low), **options),
        atol=1e-6,
    )


def test_a_bfloat16_cache_stores_the_nearest_values_in_half_the_memory():
    _, k, v = qkv(5)
    k_cache, v_cache = filled(k, v, jnp.bfloat16)
    assert k_cache.dtype == v_cache.dtype == jnp.uint16
    bits = jax.lax.bitcast_convert_type(v_cache, jnp.bfloat16)
    np.testing.assert_array_equal(bits.swapaxes(1, 2), v.astype(jnp.bfloat16))


def test_slots_past_the_end_are_dropped():
    _, k, v = qkv(2)
    cache = cached_attention.empty(2, 3, 2, HEAD_DIM, jnp.float32)
    slots = jnp.array([[0, 1], [2, 3]])
    k_cache, _ = cached_attention.write(*cache, k, v, slots)
    np.testing.assert_array_equal(k_cache[1, :, :, 2], k[1, 0])
    assert not k_cache[1, :, :, :2].any()


def test_heads_that_do_not_divide_are_refused():
    q, k, v = qkv(4, (3, 2))
    with pytest.raises(ValueError, match="multiple of key heads, got 3 and 2"):
        cached_attention.attend_cached(
            q, *filled(k, v), lengths=jnp.zeros(2, int), scale=SCALE, precision="exact"
        )
