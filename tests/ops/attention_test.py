"""Attention against a direct float64 computation, packed against separate rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.ops import attention, tiled_attention, visibility

BATCH, HEAD_DIM, SCALE = 2, 8, 0.3
HEADS = {"MHA": (4, 4), "GQA": (6, 2), "MQA": (3, 1)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Cross every chunk boundary with short rows."""
    monkeypatch.setattr(tiled_attention, "LEAST_CHUNK", 8)
    monkeypatch.setattr(tiled_attention, "GREATEST_CHUNK", 8)


def qkv(length, heads=(6, 2), batch=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    counts = (heads[0], heads[1], heads[1])
    return tuple(
        jnp.asarray(rng.normal(size=(batch, length, n, HEAD_DIM)), jnp.float32) for n in counts
    )


def attend(q, k, v, *, window=None, softcap=None, precision="exact", **rules):
    return attention.attend(
        q,
        k,
        v,
        visibility.Visibility(**rules),
        scale=SCALE,
        window=window,
        softcap=softcap,
        precision=precision,
    )


def visible_by_rule(length, batch=BATCH, positions=None, segments=None, prefixes=None, window=None):
    """Return the mask of the contract, one entry at a time."""
    mask = np.zeros((batch, length, length), bool)
    for b, i, j in np.ndindex(batch, length, length):
        mask[b, i, j] = j <= i
        if segments is not None:
            linked = {segments[b][i]} | ({prefixes[b][i]} if prefixes is not None else set())
            mask[b, i, j] &= segments[b][j] in linked - {0} and segments[b][i] != 0
        if window is not None:
            age = i - j if positions is None else positions[b][i] - positions[b][j]
            mask[b, i, j] &= age < window
    return mask


def naive(q, k, v, mask, softcap=None):
    """Return attention with repeated keys and full scores; rows that see nothing are 0."""
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    scores = jnp.einsum("bind,bjnd->bnij", q, k, precision="highest") * SCALE
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = jnp.asarray(mask)[:, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1) * mask
    return jnp.einsum("bnij,bjnd->bind", weights, v, precision="highest")


def assert_same_function(ours, reference, args, atol=3e-6):
    """Compare values and all gradients under a random cotangent."""
    out, pull = jax.vjp(jax.jit(ours), *args)
    expected, expected_pull = jax.vjp(reference, *args)
    np.testing.assert_allclose(out, expected, atol=atol)
    g = jnp.asarray(np.random.default_rng(9).normal(size=out.shape), jnp.float32)
    for grad, expected_grad in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(grad, expected_grad, atol=4 * atol)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_causal_attention_of_every_head_layout(heads, length):
    mask = visible_by_rule(length)
    assert_same_function(
        lambda q, k, v: attend(q, k, v, precision="exact"),
        lambda q, k, v: naive(q, k, v, mask),
        qkv(length, heads),
    )


@pytest.mark.parametrize("window", [1, 3, 8, 100])
@pytest.mark.parametrize("given", [False, True], ids=["row index", "positions"])
def test_a_window_counts_back_from_the_query(window, given):
    length = 19
    # Row 1 restarts and skips, so that positions differ from the row index.
    positions = np.stack([np.arange(length), np.r_[np.arange(6), np.arange(4, 17)]])
    mask = visible_by_rule(length, positions=positions if given else None, window=window)
    assert_same_function(
        lambda q, k, v: attend(
            q,
            k,
            v,
            positions=jnp.asarray(positions) if given else None,
            window=window,
            precision="exact",
        ),
        lambda q, k, v: naive(q, k, v, mask),
        qkv(length),
    )


def test_a_window_of_one_returns_the_own_value():
    q, k, v = qkv(11, (2, 2))
    out = attend(q, k, v, window=1, precision="exact")
    np.testing.assert_allclose(out, v, rtol=1e-6)


@pytest.mark.parametrize("length", [6, 20])
def test_softcap_bounds_scores_before_the_mask(length):
    q, k, v = qkv(length)
    mask = visible_by_rule(length)
    assert_same_function(
        lambda q, k, v: attend(q, k, v, softcap=0.8, precision="exact"),
        lambda q, k, v: naive(q, k, v, mask, softcap=0.8),
        (3 * q, k, v),
    )


SEGMENTS = [
    [1] * 5 + [2] * 9 + [3] * 6 + [0] * 2,
    [0] * 3 + [4] * 10 + [2] * 1 + [0] * 1 + [9] * 7,
]
PREFIXES = [
    [0] * 5 + [1] * 9 + [1] * 6 + [0] * 2,
    [0] * 3 + [0] * 10 + [4] * 1 + [4] * 1 + [0] * 7,
]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["segments", "segments and prefixes"])
def test_packed_rows_follow_the_segment_rule(prefixes, window):
    length = len(SEGMENTS[0])
    positions = np.tile(np.arange(length) % 7, (2, 1))
    mask = visible_by_rule(length, 2, positions, SEGMENTS, prefixes, window)
    assert_same_function(
        lambda q, k, v: attend(
            q,
            k,
            v,
            positions=jnp.asarray(positions),
            segment_ids=jnp.asarray(SEGMENTS),
            prefix_ids=None if prefixes is None else jnp.asarray(prefixes),
            window=window,
            precision="exact",
        ),
        lambda q, k, v: naive(q, k, v, mask),
        qkv(length),
    )


@pytest.mark.parametrize("window", [None, 4, jnp.int32(4)], ids=["none", "four", "traced four"])
def test_a_span_sees_itself_whole(window):
    length = len(SEGMENTS[0])
    spans = np.array([[0] * 2 + [1] * 3 + [2] * 6 + [0] * 11, [0] * 4 + [1] * 12 + [2] * 6])
    mask = visible_by_rule(length, 2, None, SEGMENTS, None, 4 if window is not None else None)
    for b, i, j in np.ndindex(2, length, length):
        if spans[b, i] == spans[b, j] != 0 and SEGMENTS[b][i] == SEGMENTS[b][j] != 0:
            mask[b, i, j] = True
    assert_same_function(
        lambda q, k, v: attend(
            q,
            k,
            v,
            segment_ids=jnp.asarray(SEGMENTS),
            span_ids=jnp.asarray(spans),
            window=window,
            precision="exact",
        ),
        lambda q, k, v: naive(q, k, v, mask),
        qkv(length),
    )


@pytest.mark.parametrize("length", [6, 20], ids=["one tile", "several tiles"])
def test_permuted_tokens_give_permuted_outputs_and_gradients(length):
    rng = np.random.default_rng(4)
    segments = np.sort(rng.integers(0, 4, (BATCH, length)), axis=1)
    positions, spans = rng.integers(0, 9, (2, BATCH, length))
    rules = {"positions": positions, "segment_ids": segments, "span_ids": spans * (spans < 3)}
    rules["prefix_ids"] = rng.integers(0, 4, (BATCH, length))
    rules["order"] = np.tile(np.arange(length), (BATCH, 1))
    mask = rng.random((BATCH, length, length)) < 0.8
    places = np.stack([rng.permutation(length) for _ in range(BATCH)])
    rows = np.arange(BATCH)[:, None]

    @jax.jit
    def run(args, g, rules, mask):
        out, pull = jax.vjp(lambda *args: attend(*args, window=5, mask=mask, **rules), *args)
        return out, *pull(g)

    args = qkv(length)
    expected = run(args, args[0], rules, mask)
    unordered = run(args, args[0], {k: v for k, v in rules.items() if k != "order"}, mask)
    found = run(
        [x[rows, places] for x in args],
        args[0][rows, places],
        {name: x[rows, places] for name, x in rules.items()},
        mask[rows[..., None], places[:, :, None], places[:, None]],
    )
    for a, b, c in zip(found, expected, unordered, strict=True):
        np.testing.assert_allclose(a, b[rows, places], atol=1e-5)
        np.testing.assert_allclose(b, c, atol=1e-6)


def test_completions_packed_behind_their_prompt_equal_separate_rows():
    prompt, first, second = 5, 7, 4
    q, k, v = qkv(prompt + first + second, batch=1)
    segments = jnp.asarray([[1] * prompt + [2] * first + [3] * second])
    prefixes = jnp.asarray([[0] * prompt + [1] * (first + second)])
    positions = jnp.concatenate([jnp.arange(prompt + first), jnp.arange(prompt, prompt + second)])[
        None
    ]
    options = {"window": 6, "precision": "exact"}
    packed = attend(
        q, k, v, positions=positions, segment_ids=segments, prefix_ids=prefixes, **options
    )
    for start, size in ((prompt, first), (prompt + first, second)):
        own = np.r_[np.arange(prompt), np.arange(start, start + size)]
        alone = attend(q[:, own], k[:, own], v[:, own], **options)
        np.testing.assert_allclose(packed[:, own], alone, atol=1e-6)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("length", [6, 20])
def test_padding_is_exactly_zero_forward_and_backward(length, precision):
    q, k, v = qkv(length)
    segments = jnp.asarray(np.stack([np.arange(length) < 4, np.zeros(length)]), jnp.int32)

    def out(q, k, v):
        return attend(q, k, v, segment_ids=segments, precision=precision)

    values, pull = jax.vjp(jax.jit(out), q, k, v)
    np.testing.assert_array_equal(values[0, 4:], 0.0)
    np.testing.assert_array_equal(values[1], 0.0)
    assert float(jnp.abs(values[0, :4]).min()) > 0.0
    for grad in pull(jnp.ones_like(values)):
        np.testing.assert_array_equal(grad[0, 4:], 0.0)
        np.testing.assert_array_equal(grad[1], 0.0)
        assert bool(jnp.isfinite(grad).all())


def test_tiles_are_skipped_only_where_nothing_is_visible():
    """Random rules of every kind: whatever is skipped or left unmasked must not matter."""
    length = 43

    @jax.jit
    def both(args, rules, mask, g):
        out, pull = jax.vjp(
            lambda *args: attend(*args, **rules, window=9, precision="exact"),
            *args,
        )
        expected, expected_pull = jax.vjp(lambda *args: naive(*args, mask), *args)
        return (out, *pull(g)), (expected, *expected_pull(g))

    for seed in range(6):
        rng = np.random.default_rng(seed)
        # Sorted rows as packing makes them, and unsorted ones that nothing should make.
        segments = rng.integers(0, 5, (2, length))
        if seed < 4:
            segments = np.sort(segments, axis=1)[:, :: 1 if seed % 2 else -1]
        prefixes = rng.integers(0, 5, (2, length))
        positions = (
            rng.integers(0, 20, (2, length)) if seed > 2 else np.tile(np.arange(length), (2, 1))
        )
        mask = visible_by_rule(length, 2, positions, segments, prefixes, 9)
        rules = {"positions": positions, "segment_ids": segments, "prefix_ids": prefixes}
        rules = {name: jnp.asarray(x, jnp.int32) for name, x in rules.items()}
        args = qkv(length, seed=seed)
        ours, expected = both(args, rules, jnp.asarray(mask), jnp.ones_like(args[0]))
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_attention_mask_restricts_further():
    length = 20
    extra = np.random.default_rng(3).random((BATCH, length, length)) < 0.5
    extra[1, 4] = False  # sees nothing
    mask = visible_by_rule(length) & extra
    assert_same_function(
        lambda q, k, v: attend(
            q,
            k,
            v,
            mask=jnp.asarray(extra),
            precision="exact",
        ),
        lambda q, k, v: naive(q, k, v, mask),
        qkv(length),
    )


@pytest.mark.parametrize("length", [6, 20])
def test_fast_mode_stays_within_bfloat16_error(length):
    args = qkv(length)

    def total(precision, *args):
        return attend(*args, precision=precision)

    out, pull = jax.vjp(lambda *a: total("fast", *a), *args)
    expected, expected_pull = jax.vjp(lambda *a: total("exact", *a), *args)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=0.01 * float(jnp.abs(expected).max()))
    for grad, exact in zip(pull(out), expected_pull(out), strict=True):
        np.testing.assert_allclose(grad, exact, atol=0.02 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_scores_of_long_rows_are_never_held_at_once(precision, monkeypatch):
    monkeypatch.setattr(tiled_attention, "GREATEST_CHUNK", 64)
    length = 1024
    shapes = [jax.ShapeDtypeStruct((1, length, 4, 8), jnp.float32)] * 3

    def loss(q, k, v):
        return attend(q, k, v, precision=precision).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
    all_scores = 4 * 4 * length * length
    assert compiled.memory_analysis().temp_size_in_bytes < all_scores / 2


@pytest.mark.parametrize(
    ("backend", "length", "rows", "expected"),
    [
        pytest.param("cpu", 1, 1, 1, id="a lone token"),
        pytest.param("cpu", 256, 9, 256, id="one chunk of the greatest size"),
        pytest.param("cpu", 257, 9, 136, id="two equal ones, rounded up to eights"),
        pytest.param("cpu", 800, 9, 200, id="four that fit exactly"),
        pytest.param("cpu", 257, 10, 88, id="ten rows of 256 ** 2 are too many: three of 88"),
        pytest.param("cpu", 256, 36, 128, id="36 rows of 128 ** 2 are not"),
        pytest.param("cpu", 256, 37, 64, id="37 are"),
        pytest.param("cpu", 256, 10_000, 64, id="never below the least"),
        pytest.param("gpu", 1024, 10_000, 1024, id="other devices take long ones"),
        pytest.param("gpu", 1025, 1, 520, id="and cut longer rows as well"),
    ],
)
def test_chunks_are_equal_and_their_tiles_fit_the_cache(
    backend, length, rows, expected, monkeypatch
):
    monkeypatch.undo()  # the real sizes
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert tiled_attention._chunk_size(length, rows) == expected


def test_heads_that_do_not_divide_are_refused():
    q, k, v = qkv(4, (3, 2))
    with pytest.raises(ValueError, match="multiple of key heads, got 3 and 2"):
        attend(q, k, v, precision="exact")


def test_prefixes_without_segments_are_refused():
    q, k, v = qkv(4)
    with pytest.raises(ValueError, match="need segment_ids"):
        attend(q, k, v, prefix_ids=jnp.ones((2, 4), jnp.int32), precision="exact")
