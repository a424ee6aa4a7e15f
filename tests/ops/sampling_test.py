"""Draws have the right frequencies, and the log-probs of what was really drawn from."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunix.ops import sampling

NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def settings_of(rows):
    """Return arrays of settings from one dict per row; what is missing is neutral."""
    full = [{**NEUTRAL, **row} for row in rows]
    return sampling.SamplingArrays(
        **{
            name: jnp.asarray([row[name] for row in full], jnp.int32 if name == "top_k" else None)
            for name in NEUTRAL
        }
    )


_sample = jax.jit(sampling.sample)


def draw(logits, rows, seed=0, **kwargs):
    logits = jnp.asarray(logits, jnp.float32)
    keys = jax.random.split(jax.random.key(seed), len(rows))
    drawn = _sample(logits, settings_of(rows), keys, **kwargs)
    return types.SimpleNamespace(
        tokens=np.asarray(drawn.tokens),
        logps=np.asarray(drawn.logps),
        sampled_logps=np.asarray(drawn.sampled_logps),
    )


def reference_probs(logits, *, temperature, top_k, top_p, min_p, **_):
    """Return the truncated distribution and how near a boundary was to a coin toss.

    Written the slow way: sort, count, accumulate, in float64.
    """
    logits = np.asarray(logits, np.float64)
    weights = np.exp((logits - logits.max()) / temperature)
    kept = np.ones(len(logits), bool)
    margin = np.inf
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[::-1][top_k - 1]
    if top_p < 1.0:
        inside = np.where(kept, weights, 0.0)
        above = np.array([inside[logits > x].sum() for x in logits]) / inside.sum()
        margin = min(margin, np.abs(above - top_p).min())
        kept &= above < top_p
    if min_p > 0.0:
        margin = min(margin, np.abs(weights - min_p).min())
        kept &= weights >= min_p
    probs = np.where(kept, weights, 0.0)
    return probs / probs.sum(), margin


def support(logits, row, tries=4000):
    """Return how often each token came, and the sampled log-prob it came with."""
    draws = draw(np.tile(logits, (tries, 1)), [row] * tries)
    counts = np.bincount(draws.tokens, minlength=len(logits))
    logps = np.full(len(logits), np.nan)
    logps[draws.tokens] = draws.sampled_logps
    return counts, logps


MIXED_LOGITS = np.array([2.0, -1.0, 0.5, 0.5, -3.0, 1.0, 0.0, 1.9, -0.5, 0.5])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({}, id="the plain policy"),
        pytest.param({"temperature": 2.5}, id="a hot policy"),
        pytest.param({"top_k": 3}, id="top-k"),
        pytest.param({"top_k": 4}, id="top-k whose last place is shared by three tokens"),
        pytest.param({"top_p": 0.6}, id="top-p"),
        pytest.param({"min_p": 0.2}, id="min-p"),
        pytest.param({"temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.05}, id="all"),
    ],
)
def test_frequencies_match_the_distribution(row):
    n = 200_000
    expected, _ = reference_probs(MIXED_LOGITS, **{**NEUTRAL, **row})
    draws = draw(np.tile(MIXED_LOGITS, (n, 1)), [row] * n)
    frequencies = np.bincount(draws.tokens, minlength=len(expected)) / n
    four_sigma = 4 * np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(frequencies - expected) <= four_sigma).all()
    np.testing.assert_allclose(draws.sampled_logps, np.log(expected[draws.tokens]), atol=1e-6)


def test_frequencies_across_blocks_of_a_larger_vocabulary():
    n, vocab = 200_000, 300
    logits = np.random.default_rng(0).normal(size=vocab) * 2
    expected, _ = reference_probs(logits, **NEUTRAL)
    batches = [draw(np.tile(logits, (n // 10, 1)), [{}] * (n // 10), seed) for seed in range(10)]
    frequencies = sum(np.bincount(b.tokens, minlength=vocab) for b in batches) / n
    assert (np.abs(frequencies - expected) <= 4.5 * np.sqrt(expected / n)).all()


@st.composite
def logits_and_settings(draw_value):
    """Rows that are random, full of ties, flat, or shorter than a group of the search."""
    vocab = draw_value(st.sampled_from([1, 2, 7, 130, 3000]))
    rng = np.random.default_rng(draw_value(st.integers(0, 2**32 - 1)))
    kind = draw_value(st.sampled_from(["random", "tied", "flat", "peaked", "banned"]))
    logits = rng.normal(size=vocab) * {"peaked": 6.0, "flat": 0.0}.get(kind, 1.0)
    if kind == "tied":
        logits = np.round(logits * 2) / 2
    if kind == "banned":
        logits[rng.random(vocab) < 0.5] = -np.inf
        logits[rng.integers(vocab)] = 0.0
    row = {
        "temperature": draw_value(st.sampled_from([0.3, 1.0, 4.0])),
        "top_k": draw_value(st.sampled_from([0, 1, 2, 5, 64, 65, 200, vocab, vocab + 9])),
        "top_p": draw_value(st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])),
        "min_p": draw_value(st.sampled_from([0.0, 0.01, 0.5, 1.0])),
    }
    return logits.astype(np.float32), row


@settings(max_examples=100, deadline=None)
@given(logits_and_settings())
def test_kept_set_and_kept_mass_match_a_sort(case):
    logits, row = case
    expected, margin = reference_probs(logits, **{**NEUTRAL, **row})
    draws = draw(np.tile(logits, (32, 1)), [row] * 32)
    if margin < 1e-5:  # a token whose place float32 cannot tell
        return
    assert (expected[draws.tokens] > 0.0).all()
    np.testing.assert_allclose(draws.sampled_logps, np.log(expected[draws.tokens]), atol=2e-5)
    policy, _ = reference_probs(logits, **{**NEUTRAL, "temperature": row["temperature"]})
    np.testing.assert_allclose(draws.logps, np.log(policy[draws.tokens]), atol=2e-5)


def test_every_row_of_a_batch_has_its_own_settings():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(8, 500)).astype(np.float32)
    rows = [
        {"temperature": 0.0},
        {},
        {"top_k": 5},
        {"top_k": 100},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"min_p": 0.3},
        {"temperature": 0.5, "top_k": 80, "top_p": 0.5},
    ]
    together = draw(logits, rows)
    assert together.tokens[0] == logits[0].argmax()
    assert together.sampled_logps[0] == 0.0
    for i, row in enumerate(rows[1:], start=1):
        expected, _ = reference_probs(logits[i], **{**NEUTRAL, **row})
        np.testing.assert_allclose(
            together.sampled_logps[i], np.log(expected[together.tokens[i]]), atol=1e-5
        )


def test_a_row_draws_the_same_whatever_its_batch_mates_need():
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.normal(size=(2, 3000)) * [[5.0], [0.01]], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    peaked = {"top_p": 0.8}
    alone = sampling.sample(logits[:1], settings_of([peaked]), keys[:1])
    with_flat = sampling.sample(logits, settings_of([peaked, {"top_p": 0.5}]), keys)
    assert alone.tokens[0] == with_flat.tokens[0]
    assert alone.sampled_logps[0] == with_flat.sampled_logps[0]


def test_the_nucleus_of_a_hand_worked_row():
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    counts, logps = support(logits, {"top_p": 0.6})
    assert (counts > 0).tolist() == [True, True, False, False]
    np.testing.assert_allclose(logps[:2], np.log([2 / 3, 1 / 3]), rtol=1e-5)


def test_tokens_that_tie_at_the_nucleus_boundary_are_kept_together():
    logits = np.log([0.4, 0.2, 0.2, 0.2])
    counts, logps = support(logits, {"top_p": 0.5})
    assert (counts > 0).all()
    np.testing.assert_allclose(logps, logits, atol=1e-6)


def test_top_p_counts_the_mass_that_top_k_kept():
    # Of the top two, 5/8 and 3/8; 0.6 of that is reached by the first alone.
    counts, logps = support(np.log([0.5, 0.3, 0.2]), {"top_k": 2, "top_p": 0.6})
    assert (counts > 0).tolist() == [True, False, False]
    assert logps[0] == 0.0


def test_top_k_is_not_blurred_by_a_temperature_that_makes_all_weights_equal():
    logits = np.linspace(0.0, 1.0, 100)
    counts, logps = support(logits, {"temperature": 1e20, "top_k": 2})
    assert np.flatnonzero(counts).tolist() == [98, 99]
    np.testing.assert_allclose(logps[98:], np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_without_overflow(temperature):
    draws = draw([[1e4, 3.0, 1e4 + 1.0, -1e30]], [{"temperature": temperature}])
    assert draws.tokens[0] == 2
    assert draws.logps[0] == 0.0
    assert draws.sampled_logps[0] == 0.0


def test_a_huge_temperature_is_uniform():
    draws = draw(np.tile([[5.0, -5.0, 0.0, 1.0]], (4000, 1)), [{"temperature": 1e30}] * 4000)
    np.testing.assert_allclose(draws.logps, np.log(0.25), atol=1e-6)
    assert (np.bincount(draws.tokens, minlength=4) > 850).all()


def test_greedy_takes_the_first_of_equal_maxima_and_reports_the_policy_at_temperature_one():
    logits = np.full((1, 300), -2.0)
    logits[0, [140, 290]] = 1.0
    draws = draw(logits, [{"temperature": 0.0, "top_k": 3, "top_p": 0.1}])
    assert draws.tokens[0] == 140
    np.testing.assert_allclose(draws.logps[0], -np.log(2.0 + 298 * np.exp(-3.0)), rtol=1e-6)
    assert draws.sampled_logps[0] == 0.0


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    logits = np.array([[2.0, -1.0, 1.0, 0.5]])
    seen = jnp.asarray([[True, True, False, False]])
    n = 3000
    draws = draw(
        np.tile(logits, (n, 1)),
        [{"repetition_penalty": 2.0}] * n,
        seen=jnp.tile(seen, (n, 1)),
    )
    penalised = np.array([1.0, -2.0, 1.0, 0.5])
    expected = penalised - np.log(np.exp(penalised).sum())
    np.testing.assert_allclose(draws.sampled_logps, expected[draws.tokens], atol=1e-6)
    policy = logits[0] - np.log(np.exp(logits[0]).sum())
    np.testing.assert_allclose(draws.logps, policy[draws.tokens], atol=1e-6)


def test_a_penalty_of_one_leaves_seen_tokens_alone():
    logits = np.random.default_rng(0).normal(size=(4, 50))
    seen = jnp.ones((4, 50), bool)
    with_seen, without = draw(logits, [{}] * 4, seen=seen), draw(logits, [{}] * 4)
    assert (with_seen.tokens == without.tokens).all()
    np.testing.assert_array_equal(with_seen.logps, with_seen.sampled_logps)


def test_banned_tokens_never_come_and_the_policy_log_prob_still_counts_them():
    logits = np.tile(np.log([[0.5, 0.25, 0.25]]), (500, 1))
    banned = jnp.asarray([True, False, False])
    draws = draw(logits, [{}] * 250 + [{"temperature": 0.0}] * 250, banned=banned)
    assert (draws.tokens != 0).all()
    np.testing.assert_allclose(draws.logps, np.log(0.25), rtol=1e-5)
    np.testing.assert_allclose(draws.sampled_logps[:250], np.log(0.5), rtol=1e-5)


def test_impossible_tokens_are_never_drawn():
    logits = np.full((2000, 257), -np.inf)
    logits[:, [0, 256]] = 0.0
    draws = draw(logits, [{}] * 2000)
    assert set(draws.tokens) == {0, 256}
    np.testing.assert_allclose(draws.logps, np.log(0.5), rtol=1e-6)


def test_rare_tokens_come_as_often_as_they_should():
    # 2**-26 is below the resolution of one float32 uniform; together they are 1/64.
    vocab = 2**20 + 1
    logits = np.zeros((1, vocab), np.float32)
    logits[0, 0] = np.log(63 * 2**20)
    n = 64 * 64
    keys = jax.random.split(jax.random.key(5), n)
    params = settings_of([{}])
    tokens = jax.jit(
        lambda x: jax.lax.map(lambda k: sampling.sample(x, params, k[None]).tokens[0], keys)
    )(jnp.asarray(logits))
    rare = np.asarray(tokens)
    rare = rare[rare > 0]
    assert 64 - 4 * 8 < len(rare) < 64 + 4 * 8
    assert len(set(rare.tolist())) == len(rare)


@pytest.mark.parametrize(
    ("uniform", "index"),
    [
        pytest.param(0.0, 1, id="the least uniform skips what weighs nothing"),
        pytest.param(0.49, 1, id="within the first weight"),
        pytest.param(0.5, 3, id="a border belongs to the next weight"),
        pytest.param(0.99, 3, id="within the second"),
        pytest.param(1.0, 3, id="rounded up to the total: the last that weighs something"),
    ],
)
def test_a_uniform_picks_the_weight_it_falls_into(uniform, index):
    weights = jnp.array([[0.0, 2.0, 0.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    picked = sampling._pick(weights, jnp.full(2, uniform))
    assert picked.tolist() == [index, 0]


def test_no_setting_recompiles():
    traces = 0

    @jax.jit
    def traced(logits, params, keys):
        nonlocal traces
        traces += 1
        return sampling.sample(logits, params, keys)

    logits = jnp.zeros((2, 40))
    for row in ({}, {"top_k": 3}, {"temperature": 0.0}, {"top_p": 0.2}, {"min_p": 0.1}):
        traced(logits, settings_of([row, {}]), jax.random.split(jax.random.key(0), 2))
    assert traces == 1
